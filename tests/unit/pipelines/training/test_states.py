"""The states step: a caption's states do not depend on what stands beside it, and it is asked for as the instructions ask for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_steps import pictures, row, run_step, write_manifest
from toy_model import build

from infra.step import Artifact, StepContext
from mmcore.chat.asking import Asking, request
from mmcore.chat.rows import Turn
from mmcore.chat.wordings import REQUESTS
from mmcore.training.batching import collate
from mmcore.training.signals import NEGATIVES, compute_exchanges, compute_states, exchange_row, signal_row
from mmcore.types import Shown
from pipelines.shards.config import ShardsConfig
from pipelines.training.config import StatesConfig
from pipelines.training.data import to_sample
from pipelines.training.states import _asking as _asking_of
from pipelines.training.states import distinct_captions, exchanges

CAPTIONS = ["a dot", "a red dot"]


def test_states_of_many_requests_are_those_of_each_alone():
    model = build(lora=True)
    captions = [caption for caption in CAPTIONS for _ in range(3)]
    requests = [Asking(text=request("image", caption, number % 3)) for number, caption in enumerate(captions)]
    together, lse = compute_states(model, "image", captions, requests)
    for number, (caption, asking) in enumerate(zip(captions, requests, strict=True)):
        alone, own_lse = compute_states(model, "image", [caption], [asking])
        assert torch.allclose(together[number], alone[0], atol=1e-5) and torch.allclose(lse[number], own_lse[0], atol=1e-5)
    assert torch.equal(together[0, -NEGATIVES:], together[2, -NEGATIVES:]) and not torch.equal(together[0, :-NEGATIVES], together[1, :-NEGATIVES])


@pytest.mark.parametrize("said", ("", "a dot"))
def test_a_request_that_ends_a_conversation_has_the_states_of_the_trained_row(said):
    model = build(lora=True)
    way = Asking(text="now draw a dot", before=(("what is it?", "a cat"),), modality="image", key="k", caption="a cat on a mat", said=said)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, dict(model.spec.encoders)["image"].width, generator=generator)
    media = {"image": (features, torch.tensor([3, 2]), [1, 2])}
    ways = [Asking(text="draw a dot", said=said), way, way]
    states, _ = compute_states(model, "image", ["a dot"] * 3, ways, media)
    for place, length in ((1, 3), (2, 2)):
        turns = [Turn("what is it?", "a cat"), Turn("now draw a dot", (said, Shown("image")) if said else (Shown("image"),))]
        trained = model.chat.question_row("image", length, turns, "a cat on a mat", dialogue=True)
        hidden = model(collate([trained], {"image": (features[place - 1 : place, :length], torch.tensor([length]), [0])}))[0]
        block = list(model.lm.table.block("image"))
        start = trained.ids.tolist().index(block[0]) - 1
        assert torch.allclose(states[place, : 1 + len(block)], hidden[start : start + 1 + len(block)], atol=1e-5)
    assert not torch.allclose(states[1, :5], states[2, :5], atol=1e-3) and not torch.allclose(states[0, :5], states[1, :5], atol=1e-3)
    assert torch.equal(states[0, -NEGATIVES:], states[1, -NEGATIVES:])
    _, places = signal_row(model.chat, "image", "a dot", ways[0])
    row_of, _ = signal_row(model.chat, "image", "a dot", ways[0])
    assert places[-1] == len(row_of.ids) - 1 - bool(said)  # what follows a caption that is said for a picture is the picture


def test_no_signal_follows_an_exchange_in_words():
    model, talk = build(lora=True), [("what is it?", "a cat"), ("and that?", "no dog")]
    replies = compute_exchanges(model, talk, batch=1)
    states, lse = compute_states(model, "image", CAPTIONS, replies=replies)
    own, _ = compute_states(model, "image", CAPTIONS)
    assert torch.allclose(states[:, :-NEGATIVES], own[:, :-NEGATIVES], atol=1e-5) and not torch.allclose(states[:, -NEGATIVES:], own[:, -NEGATIVES:], atol=1e-3)
    for number, exchange in enumerate(talk):
        row_of, places = exchange_row(model.chat, *exchange)
        words = [*model.chat.question_prompt(exchange[0], opened=False), *model.chat.spoken(exchange[1])]
        assert row_of.ids.tolist() == words and len(places) == NEGATIVES and places[-1] == len(words) - 1  # the end of the answer too
        hidden_TD = model(collate([row_of], {}))[0]
        assert torch.allclose(replies[0][number], hidden_TD[places], atol=1e-5)
        assert torch.allclose(replies[1][number], model.lm.base_logits(hidden_TD[places]).logsumexp(-1), atol=1e-5)
    taken = [[torch.equal(own_ND, reply_ND) for reply_ND in replies[0]] for own_ND in states[:, -NEGATIVES:]]
    assert all(sum(row) == 1 for row in taken)  # each caption has one of them as it is
    assert all(torch.equal(lse[place, -NEGATIVES:], replies[1][row.index(True)]) for place, row in enumerate(taken))
    assert torch.allclose(replies[0], compute_exchanges(model, talk, batch=2)[0], atol=1e-5)
    with pytest.raises(ValueError, match="no exchanges"):
        compute_exchanges(model, [], batch=1)


def test_exchanges_are_the_training_instructions_in_words(context):
    assert exchanges(_context(context, "captions", "instruct")) == [("how are you?", "well")] and exchanges(_context(context, "captions")) == []


def _config(requests: int, caption_turn: bool = True) -> StatesConfig:
    return StatesConfig(model=build(lora=False).spec, requests=requests, caption_turn=caption_turn)


def _asking(number: int, request: str, caption: str, answer: str, split: str = "train") -> dict:
    turns = [{"from": "human", "value": request}, {"from": "gpt", "value": answer}]
    record = row(number, "", source="draw", modality="text", text=caption)
    return {**record, "media": [_given()] * answer.count("<image>"), "split": split, "conversations": json.dumps(turns)}


def _given() -> dict:
    """An image that an answer gives."""
    return {"role": "output", "modality": "image", "uri": "x.png", "start_s": None, "end_s": None}


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
        _asking(5, "how are you?", "", "well"),
    ]
    about = {**pictures(root, 1)[0], "key": "talk-000000", "source": "talk", "texts": ["a cat"], "split": "train"}
    turns = ["<image>\nwhat is it?", "grey", "and now a cat", "<image>"]
    two = [*turns[:2], "draw a cat", "<image>", "again", "<image>"]
    for number, values in enumerate((turns, two)):
        said = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
        media = [*about["media"], *[_given()] * sum(value.count("<image>") for value in values[1::2])]
        asked.append({**about, "key": f"talk-{number:06d}", "media": media, "conversations": json.dumps(said)})
    for name, rows in (("captions", captions), ("instruct", asked)):
        write_manifest(root, rows, f"manifest_{name}")
        run_step(root, f"shards_{name}", "pipelines.shards.plan:run", ShardsConfig(samples_per_shard=10), {"manifest": f"manifest_{name}", "lists": "lists"})
    return root


def _context(root: Path, *groups: str) -> StepContext:
    inputs = {}
    for group in groups:
        name = "shards_cc3m" if group == "captions" else f"shards_{group}"
        inputs[name] = Artifact(name=name, path=root / f"shards_{group}", fingerprint="f", digest="d", result={})
    return StepContext(name="states", config=None, inputs=inputs, sources={}, output=root, work=root, stores=root / "stores")


def test_instructions_say_how_a_caption_is_asked_for(context):
    found = distinct_captions(_context(context, "captions", "instruct"), ["image"], _config(60))
    numbered = sorted(found, key=lambda item: item[2])
    ways = {caption: [asking.text for _, text, _, asking in numbered if text == caption and asking.alone] for caption in ("a cat", "a dog")}
    assert ways["a cat"][:2] == [REQUESTS["image"][0].format("a cat"), "a cat, if you please"]
    assert len(ways["a cat"]) == 5 == len(set(ways["a cat"]))  # three samples, two instructions, one of them the plainest wording
    assert ways["a dog"] == ["draw a dog", "a dog at last"]
    for caption, others in (("a cat", 1), ("a dog", 0)):  # others: at the end of a conversation
        assert [number for _, text, number, _ in numbered if text == caption] == list(range(len(ways[caption]) + others))
    lengths = [len(way.text) for *_, way in found if way.alone]
    assert lengths == sorted(lengths)  # a batch of them needs little padding
    assert not {"a cat for the test", "what now?"} & {asking.text for *_, asking in found}  # the test split; an answer in words


@pytest.mark.parametrize("caption_turn", (True, False))
def test_conversations_that_end_in_a_request_are_ways_to_ask_too(context, caption_turn):
    found = distinct_captions(_context(context, "captions", "instruct"), ["image"], _config(60, caption_turn))
    (way,) = [way for *_, way in found if not way.alone]  # the one with two pictures in answers is none
    caption = "a cat" if caption_turn else None  # its picture is the first captioned one
    assert way == Asking(text="and now a cat", before=(("what is it?", "grey"),), modality="image", key="talk-000000", caption=caption)
    assert found[-1][3] == way  # after all requests alone


def test_answers_that_say_the_caption_first_are_ways_to_ask(context):
    found = distinct_captions(_context(context, "captions"), ["image"], replace(_config(60), restate=True))
    assert {way.said for *_, way in found} == {"a cat", "a dog"} and all(way.said == text for _, text, _, way in found)
    sample = to_sample({"key": "k", "source": "s", "modality": "text", "texts": ["a cat"], "conversations": [], "media": []}, "")
    image = Shown("image")
    answers = {("a cat", image): "a cat", (image,): "", ("A cat: ", image): None, ("a cat", image, " there"): None, (image, image): None, "<image>": None}
    for answer, said in answers.items():
        way = _asking_of(replace(sample, conversations=(("draw a cat", answer),)), {})
        assert (way.said if way else None) == said
    seen = replace(sample, modality="image", conversations=(((image, "draw a cat like it"), (image,)),))
    assert _asking_of(seen, {}).text == "draw a cat like it"
    later = replace(seen, conversations=(("hello", "hi"), (("draw a cat like ", image, "!"), (image,))))
    assert _asking_of(later, {}).text == ("draw a cat like ", image, "!")  # where it stands


def test_without_instructions_or_with_one_request_wordings_are_as_many_as_samples(context):
    alone = distinct_captions(_context(context, "captions"), ["image"], _config(60))
    assert sorted((text, number) for _, text, number, _ in alone) == [("a cat", 0), ("a cat", 1), ("a cat", 2), ("a dog", 0)]
    once = distinct_captions(_context(context, "captions", "instruct"), ["image"], _config(1))
    assert [asking.text for *_, asking in once] == ["draw a cat", "draw a dog"]
