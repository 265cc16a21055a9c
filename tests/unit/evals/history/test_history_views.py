"""Views of the history: what is compared with what, and that nothing is compared across fingerprints, conditions or segments."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from toy_history import FIRST_NIGHT, TASK, append, rows

from evals.history import database as history
from evals.history.check import check
from evals.history.database import query
from evals.history.reader import History
from evals.history.records import annotate, append_change_points, append_comparisons, append_night, parse_time
from evals.history.tables import rows_table
from evals.suites.catalogue import full_marks
from infra.step import AnyloomError

UP = [1.0, 1.0, 1.0, 0.0]
DOWN = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    return tmp_path / "stores"


def _comparison(**changes):
    row = {"run_a": "a", "run_b": "b", "task": TASK, "condition": "helped", "metric": "exact_match", "subgroup": "all", "n_paired": 4, "clusters": 2}
    row |= {"value_a": 0.75, "value_b": 0.25, "delta": -0.5, "ci_lo": -0.9, "ci_hi": -0.1, "p": 0.01, "p_adjusted": 0.02, "test": "mcnemar"}
    return row | {"flips_up": 0, "flips_down": 2, "detectable": 0.3, "history_fingerprint": "aaaa"} | changes


def test_sample_diff_pairs_the_same_questions_and_says_which_way(stores):
    db = append(stores, rows("a", UP), rows("b", [1.0, 0.0, 1.0, 1.0], night=1))
    asked = "SELECT doc_key, score_a, score_b, flip, prediction_a, prediction_b FROM sample_diff"
    found = query(db, f"{asked} WHERE run_a = 'a' AND run_b = 'b' ORDER BY doc_key")[1]
    assert found == [("0", 1, 1, "same", "yes", "yes"), ("1", 1, 0, "down", "yes", "no"), ("2", 1, 1, "same", "yes", "yes"), ("3", 0, 1, "up", "no", "yes")]


@pytest.mark.parametrize("other", [{"fingerprint": "bbbb"}, {"condition": "blank"}, {"task": "another"}])
def test_sample_diff_never_crosses_a_fingerprint_a_condition_or_a_task(stores, other):
    db = append(stores, rows("a", UP), rows("b", DOWN, night=1, **other))
    assert query(db, "SELECT count(*) FROM sample_diff")[1] == [(0,)]


def test_trend_compares_with_the_night_before_in_the_same_series(stores):
    db = append(stores, rows("a", UP), rows("b", DOWN, night=1), rows("c", UP, night=2, fingerprint="bbbb"), rows("d", UP, night=3))
    found = query(db, "SELECT run_id, previous, delta, run_before, segment, is_change_point FROM trend ORDER BY time")[1]
    assert found == [("a", None, None, None, 0, False), ("b", 0.75, -0.5, "a", 0, False), ("c", None, None, None, 0, False), ("d", 0.25, 0.5, "b", 0, False)]


def test_an_annotation_begins_a_new_segment_of_the_series_it_names(stores):
    append(stores, rows("a", UP), rows("b", DOWN, night=2), rows("x", UP, recipe="other"), rows("y", DOWN, night=2, recipe="other"))
    name = annotate(stores, at=FIRST_NIGHT + timedelta(days=1), text="new data", recipe="smol", author="me")
    assert annotate(stores, at=FIRST_NIGHT + timedelta(days=1), text=" new data ", recipe="smol", author="me") == name
    history.rebuild(stores, history.database_path(stores))
    found = query(history.database_path(stores), "SELECT run_id, segment, previous FROM trend ORDER BY run_id")[1]
    assert found == [("a", 0, None), ("b", 1, None), ("x", 0, None), ("y", 0, 0.75)]
    assert query(history.database_path(stores), "SELECT text, author FROM annotation")[1] == [("new data", "me")]


@pytest.mark.parametrize(("task", "segments"), [(TASK, [(0,), (1,)]), ("", [(0,), (1,)]), ("another", [(0,), (0,)])])
def test_an_annotation_of_a_task_counts_for_that_task(stores, task, segments):
    append(stores, rows("a", UP), rows("b", UP, night=1))
    annotate(stores, at=FIRST_NIGHT + timedelta(hours=3), text="scorer fixed", task=task)
    history.rebuild(stores, history.database_path(stores))
    assert query(history.database_path(stores), "SELECT segment FROM trend ORDER BY time")[1] == segments


def test_a_model_that_is_evaluated_late_stands_where_it_was_made(stores):
    made = {"a": 0, "late": 1, "c": 2, "d": 4}
    for place, (name, score) in enumerate({"a": UP, "c": UP, "d": DOWN, "late": DOWN}.items()):
        run = rows(name, score, night=10 + place)
        exported = FIRST_NIGHT + timedelta(days=made[name])
        append(stores, run | {"run": rows_table("run", [run["run"].to_pylist()[0] | {"exported": exported}])})
    annotate(stores, at=FIRST_NIGHT + timedelta(days=3), text="new data")
    db = history.database_path(stores)
    history.rebuild(stores, db)
    found = query(db, "SELECT run_id, run_before, segment FROM trend ORDER BY time")[1]
    assert found == [("a", None, 0), ("late", "a", 0), ("c", "late", 0), ("d", None, 1)]
    with history.opened(db) as connection:
        assert [run.run_id for run in History(connection).runs] == ["d", "c", "late", "a"]


def test_a_night_says_which_flow_run_evaluated_a_run(stores):
    db = append(stores, rows("a", UP))
    at = FIRST_NIGHT + timedelta(hours=1)
    assert append_night(stores, "a", "flow-1", at, "evaluated") and not append_night(stores, "a", "flow-1", at, "in the history already")
    assert append_night(stores, "a", "flow-2", at + timedelta(days=1), "in the history already")
    history.rebuild(stores, db)
    found = query(db, "SELECT run_id, flow_run_id, scheduled_for FROM run JOIN night USING (run_id) WHERE night.status = 'evaluated'")[1]
    assert found == [("a", "flow-1", at)]
    history.rebuild(stores, db, fresh=True)
    assert query(db, "SELECT count(*) FROM night")[1] == [(2,)] and check(stores, db).problems == []
    append_night(stores, "nothing", "flow-3", at, "evaluated")
    history.rebuild(stores, db)
    assert ["night of flow run flow-3 is about run nothing" in line for line in check(stores, db).problems] == [True]


def test_comparisons_are_added_once_whenever_they_are_made(stores):
    append(stores, rows("a", UP), rows("b", DOWN, night=1))
    first = append_comparisons(stores, [_comparison(made=datetime(2026, 11, 2)), _comparison(subgroup="yes/no", made=datetime(2026, 11, 2))])
    again = append_comparisons(stores, [_comparison(made=datetime(2026, 11, 3))])
    assert again[0] in first and len(set(first)) == 2 and append_comparisons(stores, []) == []
    db = history.database_path(stores)
    history.rebuild(stores, db)
    history.rebuild(stores, db, fresh=True)
    assert query(db, "SELECT count(*), count(DISTINCT comparison_id) FROM comparison")[1] == [(2, 2)]
    assert append_comparisons(stores, [_comparison(p_adjusted=0.04)]) != again


def test_a_change_point_is_recorded_once_in_its_place(stores):
    append(stores, rows("a", UP), rows("b", DOWN, night=1))
    row = {"series_id": "s", "recipe": "smol", "task": TASK, "condition": "helped", "metric": "exact_match", "subgroup": "all", "run_before": "a"}
    row |= {"run_at": "b", "at": FIRST_NIGHT + timedelta(days=1), "before": 0.75, "after": 0.25, "delta": -0.5, "p": 0.001, "history_fingerprint": "aaaa"}
    assert append_change_points(stores, [row]) == ["s-b"]
    assert append_change_points(stores, [row | {"p": 0.0001}]) == []
    db = history.database_path(stores)
    history.rebuild(stores, db)
    assert query(db, "SELECT p FROM change_point")[1] == [(0.001,)]
    assert query(db, "SELECT run_id FROM trend WHERE is_change_point")[1] == [("b",)]
    assert query(db, "SELECT found_by, run_before, run_after, delta FROM regressions")[1] == [("change_point", "a", "b", -0.5)]


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({}, True),
        ({"p_adjusted": 0.06}, False),
        ({"p_adjusted": None}, True),
        ({"delta": 0.5}, False),
        ({"metric": "nll", "delta": 0.5}, True),
        ({"metric": "nll", "delta": -0.5}, False),
        ({"metric": "nobody_knows", "delta": 0.5}, True),
    ],
)
def test_regressions_are_what_became_worse_by_more_than_chance(stores, changes, listed):
    db = append(stores, rows("a", UP), rows("b", DOWN, night=1), _with_nll(rows("c", UP, night=2)))
    append_comparisons(stores, [_comparison(**changes)])
    history.rebuild(stores, db)
    assert query(db, "SELECT count(*) FROM regressions")[1] == [(int(listed),)]


def _with_nll(run):
    nll = {"run_id": "c", "task": TASK, "condition": "helped", "metric": "nll", "subgroup": "all", "value": 1.0, "kind": "score", "higher_is_better": False}
    return run | {"metric": rows_table("metric", [*run["metric"].to_pylist(), nll | {"history_fingerprint": "aaaa"}])}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda stores: append_comparisons(stores, [_comparison(run_a=None)]), "lacks run_a"),
        (lambda stores: append_comparisons(stores, [_comparison(speed=1)]), "no column speed"),
        (lambda stores: append_comparisons(stores, [_comparison(p=float("nan"))]), "finite"),
        (lambda stores: append_change_points(stores, [{"series_id": "s"}]), "lacks task"),
        (lambda stores: annotate(stores, at=FIRST_NIGHT, text="  "), "needs a text"),
        (lambda stores: parse_time("yesterday"), "--at yesterday"),
        (lambda stores: history.append(stores, "a", rows("b", UP)), "belong to b"),
        (lambda stores: history.append(stores, "a", rows("a", UP) | {"loss": rows("a", UP)["run"]}), "loss"),
    ],
)
def test_wrong_records_are_refused_with_the_reason(stores, call, message):
    with pytest.raises(AnyloomError, match=message):
        call(stores)
    assert not list(stores.glob("history/*/*.parquet")) or message == "belong to b"


def test_times_of_annotations_are_utc():
    assert parse_time("2026-11-26T02:00+01:00").astimezone().timestamp() == datetime.fromisoformat("2026-11-26T01:00+00:00").timestamp()
    assert parse_time("2026-11-26") == datetime(2026, 11, 26) and parse_time("now").tzinfo is not None


def test_leaderboard_shows_accuracies_with_their_floors_and_fingerprint(stores):
    db = append(stores, _with_nll(rows("c", UP)))
    names, found = query(db, "SELECT * FROM leaderboard_all")
    (row,) = [dict(zip(names, values, strict=True)) for values in found]
    assert (row["accuracy"], row["n"], row["floor_always_yes"], row["floor_blind_majority"]) == (0.75, 4, 0.25, 0.5)
    assert (row["metric"], row["history_fingerprint"], row["model_id"], row["recipe"]) == ("exact_match", "aaaa", "m-c", "smol")


def test_the_leaderboard_has_one_unit_and_the_harness_s_number_beside_it(stores):
    of_100 = rows("a", UP, task="mmbench_en_dev_static")
    renamed = [row | {"metric": "gpt_eval_score"} | {name: 100 * row[name] for name in ("value", "ci_lo", "ci_hi")} for row in of_100["metric"].to_pylist()]
    db = append(stores, of_100 | {"metric": rows_table("metric", renamed)}, rows("b", UP))
    sql = "SELECT accuracy, ci_lo, ci_hi, floor_always_yes, floor_blind_majority, value FROM leaderboard_all ORDER BY run_id"
    first, second = query(db, sql)[1]
    assert first == pytest.approx((0.75, 0.55, 0.95, 0.25, 0.5, 75.0)) and second == pytest.approx((0.75, 0.55, 0.95, 0.25, 0.5, 0.75))


def test_the_unit_of_a_metric_is_the_same_in_sql(stores):
    db = append(stores, rows("a", UP))
    for metric in ("exact_match", "gpt_eval_score", "gpt_eval_score_mode", "harness_vanilla", "pope_accuracy", "my_gpt_eval_score", "ours_vanilla"):
        assert query(db, f"SELECT full_marks('{metric}')")[1] == [(full_marks(metric),)]


def test_the_narrow_leaderboard_is_whole_tasks_of_the_other_newest_first(stores):
    first, second = rows("a" * 16, UP), rows("b" * 16, UP, night=1)
    parts = [row | {"subgroup": "shape"} for row in first["metric"].to_pylist() if row["kind"] == "score"]
    named = [row | {"metric": "pope_accuracy", "ci_lo": None} for row in second["metric"].to_pylist()]
    db = append(stores, first | {"metric": rows_table("metric", [*first["metric"].to_pylist(), *parts])}, second | {"metric": rows_table("metric", named)})
    names, found = query(db, "SELECT * FROM leaderboard")
    assert names == ["finished", "run", "recipe", "task", "condition", "accuracy", "interval", "n"]
    assert found == [
        (date(2026, 11, 2), "bbbbbbb", "smol", TASK, "helped pope_accuracy", 0.75, None, 4),
        (date(2026, 11, 1), "aaaaaaa", "smol", TASK, "helped", 0.75, "0.550-0.950", 4),
    ]
    assert len(query(db, "SELECT * FROM leaderboard_all")[1]) == 3
