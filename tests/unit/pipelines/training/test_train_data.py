"""Training data from real shards: what a row cannot hold is a ledger row before the first step, and the others are trained on."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_steps import pictures, png, run_step, write_manifest
from toy_model import SPEC, STAGE3

from flows.running.run import rows_left_out
from infra.step import AnyloomError
from mmcore.stores.shards import ShardSet
from mmcore.types import Shown
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig
from pipelines.toys.parts import tiny_llama
from pipelines.training.config import TrainConfig
from pipelines.training.data import dataset_samples

CASES = Path(__file__).parents[3] / "cases"
IMAGE = Shown("image")


def turns(*values: str, system: str = "") -> list[dict[str, str]]:
    """Question, answer, question, ..., behind a turn of the system if it says something."""
    said = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return [{"from": "system", "value": system}, *said] if system else said


def manifest_of(root: Path, records: list[dict[str, object]]) -> dict[str, Path]:
    """The records of an instruction list, with two pictures beside it, as a manifest."""
    folder = root / "mine"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(seed))
    (folder / "list.json").write_text(json.dumps(records))
    config, sources = DatasetSpec(name="asked", format="instruct", path="instruct/asked.json", split="train", licence="MIT"), {"asked": folder / "list.json"}
    run_step(root, "manifest_instruct", "pipelines.shards.manifest:run", ManifestConfig(datasets=(config,)), {}, sources)
    return sources


def shards_of(root: Path, records: list[dict[str, object]]) -> ShardSet:
    """The same as shards, every record of them written."""
    sources = manifest_of(root, records)
    assert run_step(root, "shards_instruct", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest_instruct"}, sources)["written"] == len(records)
    return ShardSet(root / "shards_instruct", root / "stores")


def train(root: Path, **changes: object) -> dict[str, object]:
    """Stage 3 on the shards below root, of whose pictures there are no features."""
    base, tokenizer = tiny_llama(0)
    base.save_pretrained(root / "weights_lm" / "lm")
    tokenizer.save_pretrained(root / "weights_lm" / "lm")
    stage = replace(STAGE3, **{"mixture": (("asked", 1.0),), "caption_turn": False, "balance_answers": False, "steps": 3, "warmup_steps": 1, **changes})
    inputs = {"weights_lm": "weights_lm", "shards_instruct": "shards_instruct"}
    return run_step(root, "stage3", "pipelines.training.train:run", TrainConfig(stage=stage, model=SPEC), inputs)


def ledger(root: Path) -> list[tuple[str, str, str]]:
    """(key, status, reason) of the stage's ledger."""
    path = root / "stage3" / "ledger.parquet"
    return [(row["key"], row["status"], row["reason"]) for row in pq.read_table(path).to_pylist()] if path.exists() else []


def test_what_a_record_says_of_its_media_is_what_a_sample_says(tmp_path):
    drawn = turns("<image>\nmake two like it", "<image><image>")
    later = json.loads((CASES / "later_turn" / "record.json").read_text())[0]["conversations"]
    html = turns("<image>\nwrite it", "<html><body><video>clip</video></body></html>", "and the <image> tag?", "<image>")
    records = [
        {"input_image": "a.png", "output_image": ["x.png", "y.png"], "conversations": drawn},
        {"image": "a.png", "conversations": later},
        {"image": "a.png", "conversations": html},
        {"image": "a.png", "conversations": turns("is <image> red?", "no", system="Be brief.")},
    ]
    shards = shards_of(tmp_path, records)
    first, second, third, fourth = dataset_samples({"instruct": shards}, ["asked"])[0]["asked"]
    assert first.modality == "image" and first.conversations == (((IMAGE, "\nmake two like it"), (IMAGE, IMAGE)),)
    assert second.conversations == (("I will show you something.", "Go ahead."), ((IMAGE, "\nWhat is it?"), "a square"))
    assert third.conversations == (((IMAGE, "\nwrite it"), "<html><body><video>clip</video></body></html>"), ("and the <image> tag?", "<image>"))
    assert fourth.conversations == ((("is ", IMAGE, " red?"), "no"),) and fourth.system == "Be brief."


def test_records_that_no_row_can_hold_are_ledger_rows_and_the_others_are_trained_on(tmp_path):
    """Two input media, a medium that is not encoded, an answer that the recipe cannot give, captions alone; and texts that only look like it."""
    fine = [{"conversations": turns(f"what is <video> {i}?", f"<image_0{i}> and <image>", system="<|im_end|>")} for i in range(6)]
    bad = [
        {"input_image": ["a.png", "b.png"], "conversations": turns("<image>\nthis?", "a", "<image>\nand this?", "b")},
        {"image": "a.png", "conversations": turns("<image>\nwhat?", "noise")},
        {"output_video": "x.mp4", "conversations": turns("film it", "<video>")},
        {"output_image": "x.png", "image_captions": ["a dot"], "conversations": []},
    ]
    shards_of(tmp_path, [*fine, *bad])
    result = train(tmp_path)
    expected = ["several_media", "no_features", "no_signal_tokens", "nothing_to_learn"]
    assert sorted(ledger(tmp_path)) == [(f"asked-00000{6 + number}", "left_out", reason) for number, reason in enumerate(expected)]
    assert rows_left_out("stage3", tmp_path / "stage3", result) == [f"  all of them, with the reason: {tmp_path / 'stage3' / 'ledger.parquet'}"]
    (line,) = result["left_out"]
    assert line.startswith("4 of 10 records are not trained on (no_features 1, no_signal_tokens 1, nothing_to_learn 1, several_media 1), the first is asked-")


@pytest.mark.parametrize("dialogues", [(), ("asked",)])
@pytest.mark.parametrize("policy", ["cut", "leave_out"])
def test_long_records_are_cut_at_a_turn_or_left_out_before_the_first_step(policy, dialogues, tmp_path):
    long = "a square " * 320
    records = [{"conversations": turns(f"what is it? {i}", "a square")} for i in range(8)]
    records += [{"conversations": turns("what?", long)}, {"conversations": turns("q", "a", "r", long, "s", "b")}]
    shards_of(tmp_path, records)
    result = train(tmp_path, too_long=policy, dialogues=dialogues, steps=5)
    status = "cut" if policy == "cut" else "left_out"
    assert ledger(tmp_path) == [("asked-000008", "left_out", "too_long"), ("asked-000009", status, "too_long")]
    assert len(result["left_out"]) == (2 if policy == "cut" else 1) and "the language model takes at most 2048" in result["left_out"][0]


def test_a_stage_that_would_lose_more_than_the_allowed_share_fails_before_its_first_step(tmp_path):
    long = "a square " * 320
    shards_of(tmp_path, [{"conversations": turns(f"what {i}?", long if i < 3 else "a")} for i in range(5)])
    with pytest.raises(AnyloomError, match=r"^stage3: 3 of 5 records are not trained on \(too_long 3\), the first is asked-000000: .* more than max_lost 0\.5"):
        train(tmp_path)
    assert not (tmp_path / "work" / "stage3" / "checkpoints").exists() and not list((tmp_path / "stage3").iterdir())
    (tmp_path / "stage3").rmdir()
    train(tmp_path, max_lost=0.6)
    assert len(ledger(tmp_path)) == 3


def test_a_dataset_of_which_nothing_fits_is_named(tmp_path):
    shards_of(tmp_path, [{"output_video": "x.mp4", "conversations": turns("film it", "<video>")}])
    with pytest.raises(AnyloomError, match=r"^stage3: the mixture names asked: 1 of 1 records are not trained on \(no_signal_tokens 1\), the first is asked"):
        train(tmp_path, max_lost=1.0)


@pytest.mark.parametrize("again", ["<image>", "<image> and <image>", "<image>\n"])
def test_manifests_that_no_list_made_may_hold_records_that_do_not_fit(again, tmp_path):
    """A second name of the medium is words, but for one that stands on a line of its own: then nobody knows which is meant."""
    said = [json.dumps(turns("<image>\nwhat is it?", "noise", f"{again if i else ''}and this?", "noise too")) for i in range(2)]
    rows = [{**row, "conversations": text} for row, text in zip(pictures(tmp_path, 2, "asked"), said, strict=True)]
    write_manifest(tmp_path, rows)
    run_step(tmp_path, "shards_instruct", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    lost: list = []
    samples, _ = dataset_samples({"instruct": ShardSet(tmp_path / "shards_instruct", tmp_path / "stores")}, ["asked"], lost)
    if again.endswith("\n"):
        assert [(one.key, one.reason) for one in lost] == [("asked-000001", "placeholder_count")] and len(samples["asked"]) == 1
    else:
        assert not lost and samples["asked"][1].conversations[1][0] == f"{again}and this?"
