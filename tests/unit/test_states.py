"""The states step: a caption's states do not depend on what stands beside it, and it is asked for as the instructions ask for it."""

import json
from pathlib import Path

import pytest
import torch
from data_steps import pictures, row, run_step, write_manifest
from toy_model import build

from infra.step import Artifact, StepContext
from mmcore.data.chat import REQUESTS
from mmcore.signals import NEGATIVES, compute_states, request
from pipelines.data_config import ShardsConfig
from pipelines.states import distinct_captions

CAPTIONS = ["a dot", "a red dot"]


def test_states_of_many_requests_are_those_of_each_alone():
    model = build(lora=True)
    captions = [caption for caption in CAPTIONS for _ in range(3)]
    requests = [request("image", caption, number % 3) for number, caption in enumerate(captions)]
    together, lse = compute_states(model, "image", captions, requests)
    for number, (caption, asking) in enumerate(zip(captions, requests, strict=True)):
        alone, own_lse = compute_states(model, "image", [caption], [asking])
        assert torch.allclose(together[number], alone[0], atol=1e-5) and torch.allclose(lse[number], own_lse[0], atol=1e-5)
    assert torch.equal(together[0, -NEGATIVES:], together[2, -NEGATIVES:]) and not torch.equal(together[0, :-NEGATIVES], together[1, :-NEGATIVES])


def _asking(number: int, request: str, caption: str, answer: str, split: str = "train") -> dict:
    turns = [{"from": "human", "value": request}, {"from": "gpt", "value": answer}]
    record = row(number, "", source="draw", modality="text", text=caption)
    return {**record, "media": [], "split": split, "conversations": json.dumps(turns)}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    root = tmp_path_factory.mktemp("states")
    captions = [{**found, "texts": [text]} for found, text in zip(pictures(root, 4), ["a cat", "a cat", "a cat", "a dog"], strict=True)]
    asked = [
        _asking(0, "a cat, if you please", "a cat", "<image>"),
        _asking(1, "draw a cat", "a cat", "<image>"),
        _asking(2, "what now?", "a cat", "A cat: <image>"),
        _asking(3, "a cat for the test", "a cat", "<image>", split="test"),
        _asking(4, "a dog at last", "a dog", "<image>"),
    ]
    for name, rows in (("captions", captions), ("instruct", asked)):
        write_manifest(root, rows, f"manifest_{name}")
        run_step(root, f"shards_{name}", "pipelines.shards:run", ShardsConfig(samples_per_shard=10), {"manifest": f"manifest_{name}", "lists": "lists"})
    return root


def _context(root: Path, *groups: str) -> StepContext:
    inputs = {}
    for group in groups:
        name = "shards_cc3m" if group == "captions" else f"shards_{group}"
        inputs[name] = Artifact(name=name, path=root / f"shards_{group}", fingerprint="f", digest="d", result={})
    return StepContext(name="states", config=None, inputs=inputs, sources={}, output=root, work=root, stores=root / "stores")


def test_instructions_say_how_a_caption_is_asked_for(context):
    found = distinct_captions(_context(context, "captions", "instruct"), ["image"], 60)
    ways = {caption: [asking for _, text, _, asking in found if text == caption] for caption in ("a cat", "a dog")}
    assert ways["a cat"][:2] == [REQUESTS["image"][0].format("a cat"), "a cat, if you please"]
    assert len(ways["a cat"]) == 5 == len(set(ways["a cat"]))  # three samples, two instructions, one of them the plainest wording
    assert ways["a dog"] == ["draw a dog", "a dog at last"]
    assert [number for *_, number, _ in found if number < 2] == [0, 1, 0, 1]
    assert not {"a cat for the test", "what now?"} & {asking for *_, asking in found}  # the test split; an answer in words


def test_without_instructions_or_with_one_request_wordings_are_as_many_as_samples(context):
    alone = distinct_captions(_context(context, "captions"), ["image"], 60)
    assert [(text, number) for _, text, number, _ in alone] == [("a cat", 0), ("a cat", 1), ("a cat", 2), ("a dog", 0)]
    once = distinct_captions(_context(context, "captions", "instruct"), ["image"], 1)
    assert [asking for *_, asking in once] == ["draw a cat", "draw a dog"]
