"""Training data from real shards: a record that says more than a row can hold is refused by name before the first step, and others are not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from data_steps import pictures, png, run_step, write_manifest
from toy_model import SPEC, STAGE3

from infra.step import AnyloomError
from mmcore.stores.shards import ShardSet
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig
from pipelines.toys.parts import tiny_llama
from pipelines.training.config import TrainConfig
from pipelines.training.data import dataset_samples

TURNS = ("<image>\nwhat is it?", "noise", "{}and this?", "noise too")


def conversation(again: str) -> list[dict[str, str]]:
    """Two exchanges; again: what stands before the second question."""
    return [{"from": ("human", "gpt")[place % 2], "value": text.format(again)} for place, text in enumerate(TURNS)]


def shards_of(root: Path, records: list[dict[str, object]]) -> ShardSet:
    """The records of an instruction list, with two pictures beside it, as shards."""
    folder = root / "mine"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(seed))
    (folder / "list.json").write_text(json.dumps(records))
    config, sources = DatasetSpec(name="asked", format="instruct", path="instruct/asked.json", split="train", licence="MIT"), {"asked": folder / "list.json"}
    run_step(root, "manifest_instruct", "pipelines.shards.manifest:run", ManifestConfig(datasets=(config,)), {}, sources)
    assert run_step(root, "shards_instruct", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest_instruct"}, sources)["written"] == len(records)
    return ShardSet(root / "shards_instruct", root / "stores")


def train(root: Path) -> None:
    """Stage 3 on the shards below root."""
    base, tokenizer = tiny_llama(0)
    base.save_pretrained(root / "weights_lm" / "lm")
    tokenizer.save_pretrained(root / "weights_lm" / "lm")
    stage = replace(STAGE3, mixture=(("asked", 1.0),), dialogues=("asked",), caption_turn=False, balance_answers=False)
    inputs = {"weights_lm": "weights_lm", "shards_instruct": "shards_instruct"}
    run_step(root, "stage3", "pipelines.training.train:run", TrainConfig(stage=stage, model=SPEC), inputs)


def test_a_record_with_a_second_input_medium_is_refused_before_the_first_step(tmp_path):
    """The list accepts it, one picture in each of two questions; a row would hold the first only, and ask about the second all the same."""
    one, two = {"image": "a.png", "conversations": conversation("")}, {"input_image": ["a.png", "b.png"], "conversations": conversation("<image>\n")}
    shards = shards_of(tmp_path, [one, two])
    with pytest.raises(AnyloomError, match=r"^sample asked-0+1 has 2 input media, a training row takes one: split the record or leave it out$"):
        dataset_samples({"instruct": shards}, ["asked"])
    with pytest.raises(AnyloomError, match=r"sample asked-0+1 has 2 input media"):
        train(tmp_path)
    assert not (tmp_path / "work" / "stage3" / "checkpoints").exists() and not list((tmp_path / "stage3").iterdir())


def test_media_of_answers_and_one_medium_of_questions_make_a_row(tmp_path):
    drawn = [{"from": "human", "value": "<image>\nmake two like it"}, {"from": "gpt", "value": "<image><image>"}]
    shards = shards_of(tmp_path, [{"input_image": "a.png", "output_image": ["x.png", "y.png"], "conversations": drawn}])
    (sample,) = dataset_samples({"instruct": shards}, ["asked"])[0]["asked"]
    assert sample.modality == "image" and sample.conversations == (("<image>\nmake two like it", "<image><image>"),)


@pytest.mark.parametrize("again", ["<image>", "<image> and <image>"])
def test_questions_that_name_the_medium_again_are_refused_before_the_first_step(again, tmp_path):
    """Manifests that no list made may say so too."""
    rows = [{**row, "conversations": json.dumps(conversation(again if i else ""))} for i, row in enumerate(pictures(tmp_path, 2, "asked"))]
    write_manifest(tmp_path, rows)
    run_step(tmp_path, "shards_instruct", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    named = 1 + again.count("<image>")
    with pytest.raises(AnyloomError, match=rf"^stage3: sample asked-000001 names <image> {named} times but a training row takes 1 image: split the record"):
        train(tmp_path)
    assert not (tmp_path / "work" / "stage3" / "checkpoints").exists() and not list((tmp_path / "stage3").iterdir())
