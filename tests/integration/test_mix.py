"""The mix on toy parts: pictures, clips and sounds in stage 3, stages in the order 1-2-3-2, the drift between, and an export that answers about all three."""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from evals.captions.alignment import run_alignment
from evals.captions.drift import run as run_drift
from infra.artifact import find
from infra.step import Artifact, StepContext
from pipelines.dag.build import build
from pipelines.recipes import get_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ORDER = ("--recipe", "tiny_mix", "--no-ray", "--no-prefect", "--set", 'stages=["stage1","stage2","stage3","stage2"]')


@pytest.fixture(scope="module")
def mix(tmp_path_factory, here):
    root = tmp_path_factory.mktemp("mix") / "runs"
    here("run", *ORDER, "--root", root, "export", "eval_media_questions", "eval_drift", "eval_alignment")
    return root


def tensors(root, step):
    return load_file(find(root, step)[0] / "tensors.safetensors")


def test_the_second_stage_2_goes_on_from_the_first_with_the_rows_of_stage_3(mix):
    first, third, second, export = (tensors(mix, name) for name in ("stage2", "stage3", "stage2_2", "export"))
    assert json.loads((find(mix, "stage2_2")[0] / "stage.json").read_text())["after"] == ["stage1", "stage2", "stage3"]
    rows = load_file(find(mix, "states_2")[0] / "rows.safetensors")
    assert all(torch.equal(rows[name.removeprefix("lm.")], third[name]) for name in ("lm.new_head_rows", "lm.new_input_rows"))
    moved = [name for name in first if not torch.equal(first[name], second[name])]
    assert {"lm.new_head_rows", "output_projectors.image.out.weight"} <= set(moved)
    steps, lr = 8, 1e-3  # Adam moves a weight by about lr at most in a step
    weight = "output_projectors.image.into.weight"
    assert float((first[weight] - second[weight]).abs().max()) < 2 * steps * lr
    assert torch.equal(first["output_projectors.image.mean_QC"], second["output_projectors.image.mean_QC"])
    assert all(torch.equal(export[name], value) for name, value in second.items()) and torch.equal(export["lm.new_input_rows"], third["lm.new_input_rows"])
    log = pq.read_table(find(mix, "stage2_2")[0] / "losses.parquet").to_pydict()
    begun = pq.read_table(find(mix, "stage2")[0] / "losses.parquet").to_pydict()
    assert begun["loss_alignment"][0] == pytest.approx(begun["loss_mean_predictor"][0], rel=0.02)  # untrained: the mean predictor
    assert abs(log["loss_alignment"][0] - log["loss_mean_predictor"][0]) > 1e-4  # not begun anew


def samples_of(run, config, inputs, box, root):
    """caption -> row of samples.parquet, of an evaluation step that runs here on finished artifacts."""
    for name in ("output", "work"):
        (box / name).mkdir(parents=True)
    found = {key: (path, record) for key, (path, record) in ((key, find(root, step)) for key, step in inputs.items())}
    made = {key: Artifact(name=r.name, path=path, fingerprint=r.fingerprint, digest=r.digest, result=r.result) for key, (path, r) in found.items()}
    run(StepContext(name="eval", config=config, inputs=made, sources={}, output=box / "output", work=box / "work", stores=root / "stores"))
    return {row["caption"]: row for row in pq.read_table(box / "output" / "samples.parquet").to_pylist()}


def test_drift_is_between_the_stage_2_before_stage_3_and_the_model_after_it(mix, tmp_path):
    steps = build(get_recipe("tiny_mix", {"stages": ["stage1", "stage2", "stage3", "stage2"]}))
    # the tiny captions of both sides are the same 24 shapes: those of the pictures that are asked about are spelt otherwise
    drift = steps["eval_drift"].config
    drift = dataclasses.replace(drift, alignment=dataclasses.replace(drift.alignment, train_datasets=("easyvqa_captions",)))
    inputs = {key: step.name for key, step in steps["eval_drift"].inputs.items()}
    moved = samples_of(run_drift, drift, inputs, tmp_path / "drift", mix)
    data = {name: name for name in ("targets", "shards_cc3m")}
    first = samples_of(run_alignment, drift.alignment, {"states": "states", "stage2": "stage2", **data}, tmp_path / "first", mix)
    # what the states of the second stage 2 say before it has trained: the first one's projectors, the rows that stage 3 left
    third = samples_of(run_alignment, drift.alignment, {"states": "states_2", "stage2": "stage2", **data}, tmp_path / "third", mix)
    last = samples_of(run_alignment, drift.alignment, {"states": "states_2", "stage2": "stage2_2", **data}, tmp_path / "last", mix)
    assert len(moved) == 12 and moved.keys() == first.keys() == third.keys() == last.keys()
    for caption, row in moved.items():
        assert row["error_before"] == pytest.approx(first[caption]["error"], rel=1e-5) and row["error_mean"] == pytest.approx(first[caption]["error_mean"])
        assert row["error_after"] == pytest.approx(third[caption]["error"], rel=1e-4) and row["error_after"] != row["error_before"]
        assert row["nll_after"] != row["nll_before"]
    assert any(last[caption]["error"] != third[caption]["error"] for caption in last)


def test_clips_and_sounds_are_asked_about_and_nothing_is_encoded_twice(mix):
    path, record = find(mix, "eval_media_questions")
    samples = pq.read_table(path / "samples.parquet").to_pylist()
    assert {row["answer_type"] for row in samples} == {"video yes/no", "video name", "video motion", "audio yes/no", "audio name"}
    assert {row["run_condition"] for row in samples} == {"helped", "plain_prompt", "blank", "shuffled"} and record.result["media"] == 8
    at = {(row["condition"], row["subgroup"]): row for row in pq.read_table(path / "metrics.parquet").to_pylist()}
    assert at["blind_majority", "video yes/no"]["value"] == 0.5 and ("helped - shuffled", "audio") in at
    for modality, num in (("video", 16), ("audio", 16)):
        result = find(mix, f"embed_{modality}")[1].result
        assert result["media"] == num and result["samples"] == 2 * num  # captioned and asked about, stored once
    losses = pq.read_table(find(mix, "stage3")[0] / "losses.parquet").to_pydict()
    assert any(value is not None for value in losses["loss_clips_questions_train_yes_no"] + losses["loss_clips_questions_train"])
