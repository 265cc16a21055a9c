"""The generation evaluations of the tiny recipe: everything made is kept with its prompt, every number says what is behind it, and the history has them."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from evals.questions.pope_questions import SETTINGS
from evals.tables import CAPTIONED, DETAILS, GENERATED
from infra.artifact import find
from infra.storage import sha256_file

pytestmark = pytest.mark.timeout(900)
STEPS = ("eval_generation", "eval_captioning", "eval_objects_as_pope")


def rows(path, name):
    return pq.read_table(path / f"{name}.parquet").to_pylist()


def test_every_medium_is_kept_with_its_prompt(tiny):
    path, record = find(tiny.root, "eval_generation")
    samples = rows(path, "samples")
    assert pq.read_schema(path / "samples.parquet").equals(GENERATED)
    assert {(row["suite"], row["how"]) for row in samples} == {(suite, how) for suite in ("held_out", "concepts") for how in ("asked", "forced")}
    forced = [row for row in samples if row["how"] == "forced"]
    assert len(forced) == 6 + 24 and all(row["file"] for row in forced)
    kept = {row["file"]: row["media_sha256"] for row in samples if row["file"]}
    assert {name: sha256_file(path / name) for name in kept} == kept and len(list((path / "media").iterdir())) == len(kept) == record.result["media"]
    index = (path / "index.tsv").read_text().splitlines()
    assert len(index) == len(samples) + 1 and all(row["prompt"] in line for row, line in zip(samples, index[1:], strict=True))


@pytest.mark.parametrize("step", STEPS)
def test_every_number_says_what_is_behind_it(tiny, step):
    path, record = find(tiny.root, step)
    metrics, details = rows(path, "metrics"), rows(path, "details")
    assert pq.read_schema(path / "details.parquet").equals(DETAILS) and record.result["history_fingerprint"]
    keys = ("condition", "metric", "subgroup", "n")
    assert metrics and [[row[key] for key in keys] for row in metrics] == [[row[key] for key in keys] for row in details]
    assert all(row["ci_lo"] is None or row["ci_lo"] <= row["value"] <= row["ci_hi"] for row in metrics) and all(row["n"] > 0 for row in metrics)
    assert any(row["ci_lo"] is not None for row in metrics)
    assert all(row["definition"] and row["interval"] for row in details)


def test_distances_name_their_extractor_their_reference_and_their_number(tiny):
    path, record = find(tiny.root, "eval_generation")
    at = {(row["condition"], row["metric"]): row for row in rows(path, "details")}
    for condition in ("held_out, forced", "held_out, forced, scrambled", "held_out, forced, real", "concepts, forced"):
        for metric in ("frechet_distance", "kernel_distance"):
            found = at[condition, metric]
            assert found["extractor"].startswith("timm_image test_efficientnet") and len(found["extractor_sha256"]) == len(found["reference_sha256"]) == 64
            assert found["n_reference"] >= 8 and found["n"] >= 4 and "torchmetrics" in found["definition"]
    assert at["concepts, forced", "kernel_distance"]["reference"] == "easyvqa_test, crops of 32 pixels"
    assert at["concepts, forced", "judged_right"]["extractor"] == "picture_judge"
    assert any("shares no space" in why for why in record.result["not_scored"].values())
    assert not [row for row in rows(path, "metrics") if row["metric"] == "clipscore"]


def test_captions_of_every_modality_are_scored(tiny):
    path, record = find(tiny.root, "eval_captioning")
    samples = rows(path, "samples")
    assert pq.read_schema(path / "samples.parquet").equals(CAPTIONED)
    assert {row["modality"] for row in samples} == {"image", "video", "audio"} and "easyvqa_test" in record.result["captions"]
    assert all(row["references"] and row["key"] != row["other_key"] and not set(row["hallucinated"]) - set(row["named"]) for row in samples)
    metrics = rows(path, "metrics")
    assert {"cider", "rouge_l", "bleu_1", "bleu_4"} <= {row["metric"] for row in metrics if row["subgroup"] == "stamps_heldout"}
    assert "spice" in json.dumps(record.result["not_scored"]) and record.result["tokenizer"] == "words-1"


def test_absent_objects_are_asked_about_as_often_as_present_ones(tiny):
    path, record = find(tiny.root, "eval_objects_as_pope")
    samples = [row for row in rows(path, "samples") if row["run_condition"] == "right"]
    assert len(samples) == sum(record.result["questions"].values()) and set(record.result["questions"]) == {"easyvqa_as_pope", "stamps_as_pope"}
    present = sum(row["answer_type"] == "present" for row in samples)
    for setting in SETTINGS[:2]:
        assert sum(setting in row["answer_type"].split("+") for row in samples) == present
    at = {(row["condition"], row["subgroup"]): row["value"] for row in rows(path, "metrics") if row["metric"] == "accuracy"}
    assert at["random, always_yes", "easyvqa_as_pope"] == 0.5 and ("adversarial", "stamps_as_pope") not in at


def test_the_history_and_the_report_have_them(tiny, cli):
    sql = "select distinct task from metric where task in ('generation', 'captioning', 'objects_as_pope') order by task"
    found = [row["task"] for row in json.loads(cli("sql", sql, "--json", "--root", tiny.root).stdout)]
    assert found == ["captioning", "generation", "objects_as_pope"]
    html = (find(tiny.root, "report")[0] / "report.html").read_text()
    assert "what becomes of a request for a medium" in html and "seeded draws" in html and "easyvqa_as_pope" in html and "stamps_chair" in html
