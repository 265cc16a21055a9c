"""Import of lmms-eval's result folders: real output of lmms-eval 0.7.3, damaged and incomplete copies of it."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from toy_history import append

from evals.history.check import check
from evals.history.database import query
from evals.history.imported import import_folder
from infra.step import AnyloomError

GOLDEN = Path(__file__).parents[3] / "golden" / "lmms_eval"
VQA, STAMPS = "easyvqa_as_vqav2", "stamps_as_mmbench"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "out" / "models__m1"))


def _import(tmp_path: Path, out: Path, version: str = "0.7.3", **options):
    done = import_folder(tmp_path / "stores", out, harness_version=version, **options)
    return done, append(tmp_path / "stores")


def test_scores_samples_and_times_are_the_harness_s_own(tmp_path, out):
    (done,), db = _import(tmp_path, out.parent)
    assert done.new and done.tasks == (VQA, STAMPS) and done.samples == 12
    results = json.loads(next(out.glob("*_results.json")).read_text())["results"]
    found = {row[0]: row[1:] for row in query(db, "SELECT task, value, stderr, n, metric, filter, higher_is_better FROM metric")[1]}
    assert found[VQA] == (results[VQA]["exact_match,none"], results[VQA]["exact_match_stderr,none"], 6, "exact_match", "none", True)
    assert found[STAMPS] == (results[STAMPS]["gpt_eval_score,none"], None, 6, "gpt_eval_score", "none", True)
    assert query(db, "SELECT evaluated, recipe, source, harness FROM run")[1] == [(datetime(2026, 11, 25, 2, 22, 33), "m1", "lmms-eval", "lmms-eval 0.7.3")]
    assert query(db, f"SELECT avg(score) FROM sample WHERE task = '{VQA}'")[1] == [(pytest.approx(results[VQA]["exact_match,none"]),)]
    assert query(db, f"SELECT count(DISTINCT cluster), count(*) FROM sample WHERE task = '{STAMPS}'")[1] == [(3, 6)]
    assert check(tmp_path / "stores", db).problems == []


def test_a_second_import_adds_nothing(tmp_path, out):
    (first,), db = _import(tmp_path, out)
    moved = shutil.copytree(out, tmp_path / "elsewhere")
    for folder in (out, moved):
        (again,), _ = _import(tmp_path, folder, version="0.9", name="another")
        assert again.run_id == first.run_id and not again.new
    assert query(db, "SELECT count(*) FROM run")[1] == [(1,)] and query(db, "SELECT count(*) FROM sample")[1] == [(12,)]


def test_a_literal_column_name_is_no_target_and_the_constant_hash_is_not_used(tmp_path, out):
    _, db = _import(tmp_path, out)
    assert query(db, f"SELECT DISTINCT target FROM sample WHERE task = '{VQA}'")[1] == [(None,)]
    assert query(db, f"SELECT DISTINCT target FROM sample WHERE task = '{STAMPS}' ORDER BY 1")[1] == [("A",), ("B",)]
    assert query(db, "SELECT count(DISTINCT doc_sha256), count(DISTINCT history_fingerprint) FROM sample")[1] == [(12, 2)]


def _second(out: Path, change) -> Path:
    """Another run of the same evaluation, an hour later, with something changed in every sample of the first task."""
    other = shutil.copytree(out, out.parent / "second")
    for path in list(other.iterdir()):
        path.rename(path.with_name(path.name.replace("20261125_102233", "20261125_112233")))
    (samples,) = other.glob(f"*{VQA}.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    samples.write_text("\n".join(json.dumps(change(line)) for line in lines))
    return other


@pytest.mark.parametrize(
    ("change", "pairs"),
    [
        (lambda s: s | {"filtered_resps": "no", "exact_match": 0.0}, 6),
        (lambda s: s | {"input": s["input"].replace("single word", "short"), "exact_match": 0.0}, 0),
    ],
)
def test_only_the_same_questions_in_the_same_words_are_compared(tmp_path, out, change, pairs):
    _second(out, change)
    _, db = _import(tmp_path, out.parent)
    assert query(db, f"SELECT count(*) FROM sample_diff WHERE task = '{VQA}' AND run_a < run_b")[1] == [(pairs,)]
    assert query(db, f"SELECT count(*) FROM sample_diff WHERE task = '{STAMPS}' AND run_a < run_b")[1] == [(6,)]


@pytest.mark.parametrize("unknown", ["version", "samples"])
def test_what_is_not_known_compares_with_nothing(tmp_path, out, unknown):
    second = _second(out, lambda s: s | {"filtered_resps": "no"})
    if unknown == "samples":
        for path in [*out.glob("*.jsonl"), *second.glob("*.jsonl")]:
            path.unlink()
        results = next(second.glob("*_results.json"))
        results.write_text(results.read_text() + "\n")
    _, db = _import(tmp_path, out.parent, version="unknown" if unknown == "version" else "0.7.3")
    assert query(db, "SELECT count(*) FROM run")[1] == [(2,)]
    assert query(db, "SELECT count(*) FROM sample_diff")[1] == [(0,)] and query(db, "SELECT count(previous) FROM trend")[1] == [(0,)]


def test_two_versions_of_the_harness_are_not_compared(tmp_path, out):
    second = _second(out, lambda s: s | {"filtered_resps": "no"})
    _import(tmp_path, out)
    _, db = _import(tmp_path, second, version="0.8.0")
    assert query(db, "SELECT count(*) FROM run")[1] == [(2,)] and query(db, "SELECT count(*) FROM sample_diff")[1] == [(0,)]


def test_addresses_and_paths_of_the_machine_do_not_count(tmp_path, out):
    second = _second(out, lambda s: s | {"filtered_resps": "no"})
    results = next(second.glob("*_results.json"))
    results.write_text(results.read_text().replace(" at 0x7", " at 0x6").replace("data/vqa.parquet", "other/vqa.parquet"))
    _, db = _import(tmp_path, out.parent)
    assert query(db, "SELECT count(DISTINCT history_fingerprint) FROM metric")[1] == [(2,)]


def _damage(out: Path, what: str) -> None:
    (results,), (samples,) = out.glob("*_results.json"), out.glob(f"*{VQA}.jsonl")
    if what == "torn line":
        samples.write_text(samples.read_text()[:-20])
    elif what == "line missing":
        samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:-1]))
    elif what == "no object":
        samples.write_text("[1, 2]\n")
    elif what == "torn results":
        results.write_text(results.read_text()[:500])
    elif what == "other json":
        results.write_text("{}")
    elif what == "nothing":
        results.unlink()


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("torn line", {}, "line 6 is damaged"),
        ("line missing", {}, "6 samples of easyvqa_as_vqav2, its samples file has 5"),
        ("no object", {}, "line 1 is no object"),
        ("torn results", {}, "is damaged"),
        ("other json", {}, "has no results"),
        ("nothing", {}, "has no <date>_results.json"),
        ("", {"version": ""}, "--harness-version"),
        ("", {"timezone": "Mars/Olympus"}, "--timezone Mars/Olympus"),
    ],
)
def test_damaged_folders_are_named_and_nothing_is_added(tmp_path, out, what, options, message):
    _damage(out, what)
    with pytest.raises(AnyloomError, match=message):
        _import(tmp_path, out, **options)
    assert not list((tmp_path / "stores").rglob("*.parquet"))
