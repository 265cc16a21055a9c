"""Nightly review: what is compared with what, alerts outside the noise band only, both versions of the history, the same review every time."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.config import EvalConfig, HistoryConfig
from evals.history import database as history
from evals.history.reader import history_of
from evals.history.records import annotate as note
from evals.history.records import append_change_points, append_comparisons
from evals.history.series import series_of
from evals.history.tables import VERSION_KEY, rows_table, write_file
from evals.nightly.alerts import Policy
from evals.nightly.comparison import COMPARISONS
from evals.nightly.review import Review, _spread, review
from evals.questions.vqa import metric_rows
from evals.statistics.change_points import CHANGE_POINTS
from evals.tables import METRICS, VQA_SAMPLES, write_table
from flows.deployments import nightly as flow
from infra.settings import Settings
from infra.step import AnyloomError, Artifact, StepContext


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """An empty stores directory; its database stands beside it."""
    return tmp_path / "stores"


START = datetime(2026, 3, 1, 2)
PICTURES, QUESTIONS = 60, 5
CHANCES = np.clip(np.random.default_rng(0).beta(6, 0.4, PICTURES * QUESTIONS), 0.02, 0.999)


def answers(night: int, drop: float = 0.0, shift: float = 0.0) -> np.ndarray:
    """Seeded right answers of one night; drop: share of questions that turn wrong; shift: of every chance."""
    rng = np.random.default_rng((7, night))
    right = rng.random(len(CHANCES)) < np.clip(CHANCES - shift, 0, 1)
    return (right & (np.random.default_rng(8).random(len(CHANCES)) >= drop)).astype(float)


def rows_of(scores: np.ndarray, condition: str = "helped") -> list[dict[str, Any]]:
    """Rows of VQA_SAMPLES."""
    return [
        {
            "run_condition": condition,
            "doc_key": f"q{i:04d}",
            "question_id": i,
            "picture": f"{i // QUESTIONS}.png",
            "question": f"is it number {i}?",
            "answer_type": "yes/no" if i % 2 else "shape",
            "target": "yes",
            "prediction": "yes" if score else "no",
            "caption": "",
            "score": float(score),
            "num_tokens": 1,
        }
        for i, score in enumerate(scores)
    ]


def write_night(
    stores: Path, night: int, scores: np.ndarray, *, version: int, comparable: str = "f1", recipe: str = "tiny", skip: int = 0, exported: float | None = None
) -> str:
    """One run of the history, in the files of its first or a later version; skip: samples that the run lacks; exported: night of its model. Returns its id."""
    run_id = f"{recipe}{night:03d}"
    samples = [row for condition, found in (("helped", scores), ("blank", scores * 0)) for row in rows_of(found, condition)[skip:]]
    answered = {condition: [row for row in samples if row["run_condition"] == condition] for condition in ("helped", "blank")}
    metrics = metric_rows(answered, {}, EvalConfig(bootstrap_draws=50))
    run: dict[str, Any] = {"run_id": run_id, "recipe": recipe, "evaluated": START + timedelta(days=night)}
    run |= {} if exported is None else {"exported": START + timedelta(days=exported)}
    common = {"run_id": run_id, "task": "vqa"}
    if version == 1:
        run |= {"history_fingerprint": comparable, "lmms_task": "vqa"}
    else:
        common["history_fingerprint"] = comparable
        metrics = [row | {"higher_is_better": True, "filter": None} for row in metrics]
        samples = [{"condition": row["run_condition"], "cluster": row["picture"], **row} for row in samples]  # as in schemas 2 to 4
        for row in samples:
            del row["run_condition"]
    for table, rows in (("sample", [common | row for row in samples]), ("metric", [common | row for row in metrics]), ("run", [run])):
        path = stores / "history" / table / f"{run_id}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        written = pa.Table.from_pylist(rows)
        pq.write_table(written if version == 1 else written.replace_schema_metadata({VERSION_KEY: str(version)}), path)
    return run_id


def write_rotations(stores: Path, night: int, wrong: int, rng_seed: int = 0) -> str:
    """One night of MMBench's shape: 100 questions in four rotations, of which in `wrong` questions the last rotation is answered wrongly."""
    run_id = f"turned{night:03d}"
    common = {"run_id": run_id, "task": "stamps_as_mmbench", "condition": "plain_prompt", "history_fingerprint": "f1"}
    order = np.random.default_rng((rng_seed, night)).permutation(100)
    samples = [
        {"doc_key": f"stamps_as_mmbench-{turn * 10**6 + number}", "question_id": turn * 10**6 + number, "image": f"{number}.png", "cluster": f"{number}"}
        | {"question": f"{number}?", "answer_type": "caption choice", "target": "A", "score": float(turn < 3 or number not in order[:wrong])}
        for number in range(100)
        for turn in range(4)
    ]
    values = {"gpt_eval_score": 100.0 - wrong, "harness_vanilla": 100 * float(np.mean([row["score"] for row in samples])), "ours_circular": 1 - wrong / 100}
    metrics = [{"metric": name, "subgroup": "all", "value": value, "kind": "score", "higher_is_better": True} for name, value in values.items()]
    run = {"run_id": run_id, "recipe": "turned", "evaluated": START + timedelta(days=night)}
    for table, rows in (("sample", [common | row for row in samples]), ("metric", [common | row for row in metrics]), ("run", [run])):
        write_file(stores, table, run_id, rows_table(table, rows))
    return run_id


def annotate(stores: Path, night: float, task: str = "") -> None:
    """An annotation that concerns the tiny recipe."""
    note(stores, at=START + timedelta(days=night), recipe="tiny", task=task, text="new data")


def loud(found: Review) -> list[str]:
    """Kinds of the alerts that are no notes."""
    return [alert.kind for alert in found.alerts if alert.severity == "alert"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_drop_is_told_once_as_regression_and_again_as_change_point(stores: Path, version: int) -> None:
    names = [write_night(stores, night, answers(night, drop=0.12 * (night >= 9)), version=version) for night in range(14)]
    quiet = review(stores, names[8], baselines=names[:1])
    assert loud(quiet) == [] and quiet.change_points == ()
    assert quiet.markdown.startswith("# tiny: no alert")
    first = review(stores, names[9], baselines=names[:1])
    assert loud(first)[:2] == ["regression", "below_baseline"]
    assert first.alerts[0].text.startswith("exact_match of vqa (helped) fell by")
    row = next(row for row in first.comparisons if (row["run_a"], row["condition"], row["subgroup"]) == (names[8], "helped", "all"))
    assert (row["n_paired"], row["clusters"]) == (PICTURES * QUESTIONS, PICTURES)
    assert row["delta"] == pytest.approx(answers(9, 0.12).mean() - answers(8).mean())
    later = [review(stores, name, baselines=names[:1]) for name in names[9:]]
    assert sum("change_point" in loud(found) for found in later) == 1
    assert all("regression" not in loud(found) and "below_baseline" not in loud(found) for found in later[1:])
    assert any(alert.kind == "below_baseline" and alert.severity == "note" and "still lower" in alert.text for alert in later[1].alerts)
    change = next(row for row in later[-1].change_points if (row["condition"], row["subgroup"]) == ("helped", "all"))
    assert (change["run_before"], change["run_at"], change["at"]) == (names[8], names[9], START + timedelta(days=9))
    assert change["delta"] < -0.06
    assert not any(row["condition"] == "blank" for row in later[-1].change_points)


@pytest.mark.parametrize("shift", [0.0, 0.12])
def test_a_baseline_that_is_evaluated_late_is_not_the_night_before(stores: Path, shift: float) -> None:
    """Three nights, then a model older than all of them is pinned and evaluated between the third night and the fourth."""
    names = [write_night(stores, night, answers(night), version=3, exported=night - 0.3) for night in (1, 2, 3)]
    pinned = write_night(stores, 4, answers(50, drop=shift), version=3, exported=-20.0)
    newest = write_night(stores, 5, answers(5), version=3, exported=4.7)
    found = review(stores, newest, baselines=[pinned])
    assert {row["run_a"] for row in found.comparisons} == {names[-1], pinned}
    assert loud(found) == [] and [alert.kind for alert in found.alerts] == ["improvement"] * (shift > 0)
    assert review(stores, pinned).comparisons == ()
    with history_of(stores) as past:
        (series,) = [one for one in series_of(past, newest, "tiny", 60) if (one.condition, one.subgroup) == ("helped", "all")]
    assert [night.run_id for night in series.nights] == [pinned, *names, newest] and series.nights[-1].at == START + timedelta(days=4.7)


def test_the_metrics_of_other_tasks_are_compared_and_have_a_noise_band(stores: Path) -> None:
    names = [write_rotations(stores, night, wrong=30 * (night == 8) + night % 2) for night in range(9)]
    with history_of(stores) as past:
        series = {one.metric: one for one in series_of(past, names[7], "turned", 60)}
        spread = _spread(past, list(series.values()), Policy())
    assert series["gpt_eval_score"].scores.shape == (8, 100) and series["harness_vanilla"].scores.shape == (8, 400) and series["ours_circular"].scores is None
    assert [night.value for night in series["gpt_eval_score"].nights] == [100.0 - night % 2 for night in range(8)]
    assert set(spread) == {("stamps_as_mmbench", "plain_prompt", m) for m in list(series)[:2]}
    found = review(stores, names[8])
    assert {row["metric"]: round(row["delta"], 6) for row in found.comparisons} == {"gpt_eval_score": -29.0, "harness_vanilla": -7.25}
    assert loud(found)[:2] == ["regression", "regression"] and "gpt_eval_score of stamps_as_mmbench (plain_prompt) fell by 29 (95" in found.alerts[0].text
    assert loud(review(stores, names[7])) == []  # one of a hundred questions


def test_the_smallest_relevant_drop_is_in_the_unit_of_the_metric() -> None:
    policy = Policy(smallest={"coco_CIDEr": 0.05})
    drops = {"exact_match": 0.01, "pope_accuracy": 0.01, "gpt_eval_score": 1.0, "gpt_eval_llava_all": 1.0, "harness_vanilla": 1.0, "coco_CIDEr": 0.05}
    assert {metric: policy.relevant(metric) for metric in drops} == drops


def test_what_the_history_was_told_is_not_told_again(stores: Path) -> None:
    names = [write_night(stores, night, answers(night, drop=0.12 * (night >= 9)), version=2) for night in range(14)]
    for run_id, kinds in ((names[9], ["regression", "below_baseline"]), (names[-1], None)):
        found = review(stores, run_id, baselines=names[:1])
        assert kinds is None or loud(found)[:2] == kinds
        assert loud(review(stores, run_id, baselines=names[:1])) == loud(found)  # nothing is kept yet
        append_comparisons(stores, found.comparisons)
        append_change_points(stores, found.change_points)
        again = review(stores, run_id, baselines=names[:1])
        assert loud(again) == [] and [alert.kind for alert in again.alerts if alert.kind != "not_compared"] and again.comparisons == found.comparisons
    other = review(stores, names[9], baselines=names[1:2])
    assert loud(other) == ["below_baseline"]  # another baseline is news


def test_a_night_tells_first_and_keeps_what_it_told_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores, told = tmp_path / "stores", []
    names = [night_by_step(tmp_path, night, drop=0.2 * (night == 2)) for night in range(3)]

    def dies(*_: Any) -> None:
        raise ConnectionError("the server is gone")

    client = nullcontext(SimpleNamespace(read_flow_run=lambda run_id: None))
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda text, **_: None)
    monkeypatch.setattr(flow, "get_client", lambda **_: client)
    monkeypatch.setattr(flow, "alert", dies)
    with pytest.raises(ConnectionError):
        flow._review(Settings(root=tmp_path), names[2], [names[0]], "tiny", 0)
    monkeypatch.setattr(flow, "alert", lambda run, title, text, settings: told.append(text))
    for _ in range(3):  # the same export, night after night
        flow._review(Settings(root=tmp_path), names[2], [names[0]], "tiny", 0)
    assert len(told) == 1 and told[0].count("exact_match of easyvqa_as_vqav2") == 2
    assert history.query(history.database_path(stores), "SELECT count(*) > 0 FROM comparison")[1] == [(True,)]


def test_a_night_notes_which_flow_run_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = night_by_step(tmp_path, 0, drop=0.0)
    due = datetime.fromisoformat("2026-03-02T02:00:00+01:00")
    monkeypatch.setattr(flow, "runtime", SimpleNamespace(flow_run=SimpleNamespace(id="flow-1", scheduled_start_time=due)))
    for status in (flow.EVALUATED, flow.KNOWN):  # a flow run that is tried again
        flow._note(tmp_path / "stores", run_id, status)
    history.rebuild(tmp_path / "stores", history.database_path(tmp_path / "stores"))
    found = history.query(history.database_path(tmp_path / "stores"), "SELECT run_id, flow_run_id, scheduled_for, status FROM night")[1]
    assert found == [(run_id, "flow-1", datetime(2026, 3, 2, 1), "evaluated")]


def test_rows_fit_the_tables_and_the_review_is_repeatable(stores: Path) -> None:
    names = [write_night(stores, night, answers(night, drop=0.15 * (night >= 4)), version=2) for night in range(12)]
    found = review(stores, names[-1], baselines=names[:1], seed=3)
    assert found == review(stores, names[-1], baselines=names[:1], seed=3)
    assert pa.Table.from_pylist(list(found.comparisons), schema=COMPARISONS).num_rows == len(found.comparisons) == 12
    assert pa.Table.from_pylist(list(found.change_points), schema=CHANGE_POINTS).num_rows == len(found.change_points) > 0
    assert {row["comparison_id"] for row in found.comparisons} and len({row["comparison_id"] for row in found.comparisons}) == 12
    assert all(row["made"] == START + timedelta(days=11) for row in found.comparisons)
    assert "| vqa | helped | exact_match | all (300) | `tiny010` |" in found.markdown
    assert "## Change points" in found.markdown


def test_improvements_and_small_drops_are_no_alerts(stores: Path) -> None:
    write_night(stores, 0, answers(0, drop=0.2), version=2)
    after = write_night(stores, 1, answers(0), version=2)
    found = review(stores, after)
    assert [(alert.kind, alert.severity) for alert in found.alerts] == [("improvement", "note")]
    worse = write_night(stores, 2, answers(0, drop=0.2), version=2)
    assert loud(review(stores, worse)) == ["regression"]
    assert loud(review(stores, worse, policy=Policy(smallest_drop=0.5))) == []


def test_the_spread_of_whole_models_is_part_of_the_noise_band(stores: Path) -> None:
    shifts = np.array([0.0, 0.1, -0.02, 0.09, 0.0, 0.11, -0.01, 0.1])
    names = [write_night(stores, night, answers(night, shift=shift), version=2) for night, shift in enumerate(shifts)]
    steady = [write_night(stores, night, answers(night, shift=0.1 * (night == 7)), version=2, recipe="steady") for night in range(8)]
    assert "regression" in loud(review(stores, steady[-1]))
    assert loud(review(stores, names[-1])) == []
    assert loud(review(stores, names[-1], policy=Policy(nights=99))) == ["regression"]


def test_another_fingerprint_starts_anew_and_is_said(stores: Path) -> None:
    for night in range(3):
        write_night(stores, night, answers(night), version=2)
    other = write_night(stores, 3, answers(3, drop=0.3), version=2, comparable="f2")
    found = review(stores, other, baselines=["tiny000"])
    assert loud(found) == [] and found.comparisons == ()
    assert [alert.kind for alert in found.alerts] == ["not_compared", "not_compared"]
    assert "another history fingerprint (f1, now f2)" in found.alerts[0].text
    back = write_night(stores, 4, answers(4, drop=0.3), version=2)
    assert {row["run_a"] for row in review(stores, back).comparisons} == {"tiny002"}


def test_annotations_start_a_new_segment(stores: Path) -> None:
    names = [write_night(stores, night, answers(night, drop=0.15 * (night >= 7)), version=2) for night in range(14)]
    assert review(stores, names[-1]).change_points
    annotate(stores, 6.5, task="other")
    assert review(stores, names[-1]).change_points
    annotate(stores, 6.5, task="vqa")
    assert review(stores, names[-1]).change_points == ()


def test_samples_without_partner_are_said(stores: Path) -> None:
    write_night(stores, 0, answers(0), version=2, skip=10)
    run_id = write_night(stores, 1, answers(1), version=2)
    found = review(stores, run_id)
    assert found.comparisons[0]["n_paired"] == 290
    assert [alert.text.split(" samples")[0] for alert in found.alerts if alert.kind == "unpaired"] == ["vqa (blank): 0", "vqa (helped): 0"]


def test_what_is_missing_or_damaged_is_named(stores: Path) -> None:
    run_id = write_night(stores, 0, answers(0), version=2)
    with pytest.raises(AnyloomError, match="run nothing is not in"):
        review(stores, "nothing")
    with pytest.raises(AnyloomError, match="run pinned is not in"):
        review(stores, run_id, baselines=["pinned"])
    assert [alert.kind for alert in review(stores, run_id).alerts] == ["not_compared"]
    damaged = write_night(stores, 1, answers(1), version=2)
    path = stores / "history" / "sample" / f"{damaged}.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AnyloomError, match=f"{damaged}.parquet is damaged"):
        review(stores, damaged)


def night_by_step(root: Path, night: int, drop: float) -> str:
    """One run of a history below root/stores, written by the step `history`. Returns its id."""
    folder = root / f"eval{night}"
    rows = rows_of(answers(night, drop=drop))
    write_table(folder / "samples.parquet", rows, VQA_SAMPLES)
    write_table(folder / "metrics.parquet", metric_rows({"helped": rows}, {}, EvalConfig(bootstrap_draws=50)), METRICS)
    (folder / "artifact.json").write_text(json.dumps({"provenance": {"finished": f"{START + timedelta(days=night):%Y-%m-%dT%H:%M:%S}+00:00"}}))
    result = {"lmms_task": "easyvqa_as_vqav2", "history_fingerprint": "abc"}
    inputs = {"eval_vqa": Artifact(name="eval_vqa", path=folder, fingerprint="f" * 64, digest=f"{night}" * 64, result=result)}
    for place in ("out", "work"):
        (root / f"{place}{night}").mkdir()
    ctx = StepContext(
        name="history",
        config=HistoryConfig(recipe="tiny"),
        inputs=inputs,
        sources={},
        output=root / f"out{night}",
        work=root / f"work{night}",
        stores=root / "stores",
    )
    return str(history.run(ctx)["run_id"])


def test_on_a_history_that_the_step_wrote(tmp_path: Path) -> None:
    names = [night_by_step(tmp_path, night, drop=0.2 * (night == 2)) for night in range(3)]
    found = review(tmp_path / "stores", names[2], baselines=[names[0]])
    assert loud(found) == ["regression", "below_baseline"]
    assert {(row["run_a"], row["run_b"]) for row in found.comparisons} == {(names[1], names[2]), (names[0], names[2])}
    assert {row["history_fingerprint"] for row in found.comparisons} == {"abc"}
