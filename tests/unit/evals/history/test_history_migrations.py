"""Histories of older schemas: their files load, their databases are built anew, and what is newer than this code is refused."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_history import append, rows

from evals.history import database as history
from evals.history.check import check
from evals.history.database import query
from evals.history.exported import export
from evals.history.reader import history_of
from evals.history.tables import OF_RUN, SCHEMAS, VERSION, VERSION_KEY, better, file_of, version_of
from infra.step import AnyloomError
from infra.storage import write_atomic

EXPORT = '{"eval_vqa": "eval_vqa/abc", "export": "export/def"}'


def write_version_1(stores: Path, run_id: str, fingerprint: str = "f1") -> None:
    """The four files of one run as the first schema had them: no version in them, empty tables with one column."""
    tables = {
        "run": {
            "run_id": [run_id],
            "recipe": ["smol"],
            "seeds": ["stage1=0"],
            "evaluated": pa.array([None], pa.timestamp("us")),
            "git_commit": ["abc"],
            "lmms_task": ["easyvqa_as_vqav2"],
            "harness": ["lmms-eval 0.7.3"],
            "history_fingerprint": [fingerprint],
            "dataset_sha256": ["d"],
            "task_sha256": ["t"],
            "artifact": ["eval_vqa/abc"],
            "inputs": [EXPORT],
        },
        "metric": {
            "run_id": [run_id] * 2,
            "task": ["easyvqa_as_vqav2", "captions"],
            "condition": ["helped", "right"],
            "metric": ["exact_match", "nll_per_caption"],
            "subgroup": ["all", "image"],
            "value": [0.5, 2.0],
            "ci_lo": [0.4, 1.0],
            "ci_hi": [0.6, 3.0],
            "n": [2, 9],
            "clusters": [2, 9],
            "stderr": [0.1, 0.1],
            "kind": ["score", "score"],
        },
        "sample": {
            "run_id": [run_id] * 2,
            "task": ["easyvqa_as_vqav2"] * 2,
            "run_condition": ["helped"] * 2,
            "doc_key": ["0", "1"],
            "question_id": [0, 1],
            "picture": ["0.png", "1.png"],
            "prediction": ["yes", "no"],
            "score": [1.0, 0.0],
        },
        "loss": {"run_id": [run_id], "stage": ["stage1"], "step": [1], "loss": [2.5], "lr": [0.1], "tokens": [7]},
    }
    for name, columns in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        write_atomic(file_of(stores, name, run_id), sink.getvalue().to_pybytes())


def test_files_of_the_first_schema_load_beside_todays(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    write_version_1(stores, "old")
    db = append(stores, rows("new", [1.0, 1.0], fingerprint="f1"))
    assert query(db, "SELECT run_id, model_id FROM run ORDER BY run_id")[1] == [("new", "m-new"), ("old", "export/def")]
    assert query(db, "SELECT stage, step, loss FROM train_metrics WHERE run_id = 'old'")[1] == [("stage1", 1, 2.5)]
    assert query(db, "SELECT condition, cluster FROM sample WHERE run_id = 'old' ORDER BY doc_key")[1] == [("helped", "0.png"), ("helped", "1.png")]
    found = query(db, "SELECT task, history_fingerprint, higher_is_better FROM metric WHERE run_id = 'old' ORDER BY task")[1]
    assert found == [("captions", "unknown:old", False), ("easyvqa_as_vqav2", "f1", True)]
    assert query(db, "SELECT doc_key, flip FROM sample_diff WHERE run_a = 'old' AND run_b = 'new' ORDER BY doc_key")[1] == [("0", "same"), ("1", "up")]
    assert query(db, "SELECT task_sha256, dataset_sha256 FROM task WHERE history_fingerprint = 'f1'")[1] in ([("t", "d")], [(None, None)])
    assert check(stores, db).problems == []


def test_files_of_the_second_schema_load_without_the_parts_of_the_loss(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    db = append(stores, rows("new", [1.0, 1.0]))
    history.append(stores, "old", rows("old", [1.0, 0.0]))
    for name, table in rows("old", [1.0, 0.0]).items():
        if name in OF_RUN:
            kept = table.drop_columns(["parts"]) if name == "train_metrics" else table
            pq.write_table(kept.replace_schema_metadata({VERSION_KEY: b"2"}), file_of(stores, name, "old"))
    assert history.rebuild(stores, db) == 2
    found = query(db, "SELECT run_id, stage, step, loss, parts FROM train_metrics WHERE step = 1 ORDER BY run_id")[1]
    assert found == [("new", "stage3", 1, 1.0, '{"tokens_image": 1.0}'), ("old", "stage3", 1, 1.0, None)]
    assert check(stores, db).problems == []


def test_what_the_first_schema_did_not_state_compares_with_nothing(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    for name in ("one", "two"):
        write_version_1(stores, name)
    db = append(stores)
    assert query(db, "SELECT count(*), count(previous) FROM trend WHERE task = 'captions'")[1] == [(2, 0)]
    assert query(db, "SELECT count(previous) FROM trend WHERE task = 'easyvqa_as_vqav2'")[1] == [(1,)]


def test_files_of_the_third_schema_lose_the_milliseconds(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    for name, data in rows("old", [1.0, 0.0]).items():
        if name == "sample":
            data = data.append_column("ms", pa.array([1.5, 2.5]))
        sink = pa.BufferOutputStream()
        pq.write_table(data.replace_schema_metadata({VERSION_KEY: b"3"}), sink)
        write_atomic(file_of(stores, name, {"model": "m-old", "task": "aaaa"}.get(name, "old")), sink.getvalue().to_pybytes())
    db = append(stores, rows("new", [1.0, 1.0], night=1))
    assert query(db, "SELECT run_id, count(*), avg(score) FROM sample GROUP BY run_id ORDER BY run_id")[1] == [("new", 2, 1.0), ("old", 2, 0.5)]
    assert check(stores, db).problems == [] and version_of(file_of(stores, "sample", "old")) == 3


def test_files_of_the_second_schema_lose_the_columns_that_nobody_wrote(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    mark = {VERSION_KEY: b"2"}
    for name, data in rows("old", [1.0, 0.0]).items():
        if name == "run":
            data = data.drop_columns(["exported"])
            for column, kind in (("scheduled_for", pa.timestamp("us")), ("flow_run_id", pa.string())):
                data = data.append_column(column, pa.nulls(1, kind))
        sink = pa.BufferOutputStream()
        pq.write_table(data.replace_schema_metadata(mark), sink)
        stem = {"model": "m-old", "task": "aaaa"}.get(name, "old")
        write_atomic(file_of(stores, name, stem), sink.getvalue().to_pybytes())
    db = append(stores, rows("new", [1.0, 1.0], night=1))
    assert query(db, "SELECT run_id, recipe, exported FROM run ORDER BY run_id")[1] == [("new", "smol", None), ("old", "smol", None)]
    assert query(db, "SELECT run_id, previous FROM trend ORDER BY time")[1] == [("old", None), ("new", 0.5)]
    assert check(stores, db).problems == [] and version_of(file_of(stores, "run", "old")) == 2


def test_an_old_run_is_not_appended_again(tmp_path: Path) -> None:
    write_version_1(tmp_path / "stores", "old")
    assert history.append(tmp_path / "stores", "old", rows("old", [1.0])) is False


def _old_database(db: Path, runs: list[str]) -> None:
    with duckdb.connect(str(db)) as connection:
        connection.execute("CREATE TABLE history_schema (sha256 VARCHAR); INSERT INTO history_schema VALUES ('of another time')")
        connection.execute("CREATE TABLE history_file (table_name VARCHAR, run_id VARCHAR)")
        for run_id in runs:
            connection.executemany("INSERT INTO history_file VALUES (?, ?)", [[table, run_id] for table in ("loss", "sample", "metric", "run")])


def test_a_database_of_an_older_schema_is_built_anew(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "history.duckdb"
    write_version_1(stores, "old")
    _old_database(db, ["old"])
    assert any(problem.startswith("older:") for problem in check(stores, db).problems)
    with pytest.raises(AnyloomError, match="history build"):
        query(db, "SELECT * FROM trend")
    assert history.rebuild(stores, db) == 1
    assert query(db, "SELECT version FROM history_schema")[1] == [(VERSION,)]
    assert query(db, "SELECT count(*) FROM sample")[1] == [(2,)]


def test_an_older_database_is_not_replaced_by_a_smaller_one(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "history.duckdb"
    write_version_1(stores, "old")
    _old_database(db, ["old", "older"])
    with pytest.raises(AnyloomError, match="older"):
        history.rebuild(stores, db)


def test_newer_files_and_databases_are_refused(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    db = append(stores, rows("a", [1.0]))
    newer = SCHEMAS["run"].with_metadata({VERSION_KEY: b"99"})
    pq.write_table(rows("b", [1.0])["run"].replace_schema_metadata(newer.metadata), file_of(stores, "run", "b"))
    with pytest.raises(AnyloomError, match="schema 99"):
        history.rebuild(stores, db)
    assert any("schema 99" in problem for problem in check(stores, db).problems)
    file_of(stores, "run", "b").unlink()
    with duckdb.connect(str(db)) as connection:
        connection.execute("UPDATE history_schema SET version = 99, sha256 = 'x'")
    with pytest.raises(AnyloomError, match="newer anyloom"):
        history.rebuild(stores, db)


def test_every_file_says_its_version(tmp_path: Path) -> None:
    append(tmp_path / "stores", rows("a", [1.0]))
    files = list((tmp_path / "stores").rglob("*.parquet"))
    assert len(files) == 6 and {version_of(path) for path in files} == {VERSION}
    write_version_1(tmp_path / "stores", "b")
    assert version_of(file_of(tmp_path / "stores", "run", "b")) == 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("exact_match", True), ("recall_at_5", True), ("mmmu_acc", True), ("nll_per_caption", False), ("alignment_error", False), ("fid", False),
        ("unparsed_rate", False), ("chair_i", False), ("emits_block", None), ("coco_CIDEr", True), ("coco_Bleu_4", True), ("gpt_eval_score", True),
    ],
)  # fmt: skip
def test_direction_of_metrics(metric, expected):
    assert better(metric) is expected


def test_schema_and_database_have_the_same_columns(tmp_path: Path) -> None:
    db = append(tmp_path / "stores", rows("a", [1.0]))
    for name, schema in SCHEMAS.items():
        assert query(db, f"SELECT * FROM {name} LIMIT 0")[0] == schema.names


def test_files_of_the_fourth_schema_call_the_image_picture(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    db = append(stores, rows("new", [1.0, 1.0]))
    history.append(stores, "old", rows("old", [1.0, 0.0]))
    sample = rows("old", [1.0, 0.0])["sample"]
    old = sample.rename_columns(["picture" if name == "image" else name for name in sample.column_names])
    pq.write_table(old.replace_schema_metadata({VERSION_KEY: b"4"}), file_of(stores, "sample", "old"))
    run = rows("old", [1.0, 0.0])["run"]
    pq.write_table(run.replace_schema_metadata({VERSION_KEY: b"4"}), file_of(stores, "run", "old"))
    assert history.rebuild(stores, db) == 2
    images = {run_id: query(db, f"SELECT image FROM sample WHERE run_id = '{run_id}' ORDER BY doc_key")[1] for run_id in ("old", "new")}
    assert images["old"] == images["new"] and None not in images["old"][0]
    assert check(stores, db).problems == []


NAN = float("nan")


def with_nan(name: str) -> dict[str, pa.Table]:
    """A run whose metrics have no interval, as NaN, and a sample and a loss that are no numbers."""
    made = rows(name, [1.0, 0.0])
    for table, columns in {"metric": ("ci_lo", "ci_hi", "stderr"), "sample": ("score",), "train_metrics": ("loss",)}.items():
        for column in columns:
            place = made[table].schema.get_field_index(column)
            made[table] = made[table].set_column(place, column, pa.array([NAN] * len(made[table]), pa.float64()))
    return made


def numbers_of(db: Path, run_id: str) -> list[tuple[object, ...]]:
    sql = f"SELECT max(ci_lo), avg(ci_hi), max(stderr), count(*) FILTER (ci_lo > 0.9) FROM metric WHERE run_id = '{run_id}'"
    scored = f"SELECT count(score), max(loss) FROM sample FULL JOIN train_metrics USING (run_id) WHERE run_id = '{run_id}'"
    return [*query(db, sql)[1], *query(db, scored)[1]]


def test_what_is_no_number_is_null_in_every_table(tmp_path: Path) -> None:
    db = append(tmp_path / "stores", with_nan("new"))
    assert numbers_of(db, "new") == [(None, None, None, 0), (0, None)]


def test_files_of_the_fifth_schema_hold_nan_and_are_read_as_null(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    for name, table in with_nan("old").items():
        if name in ("model", *OF_RUN):
            path = file_of(stores, name, "m-old" if name == "model" else "old")
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"5"}), path)
    db = append(stores, rows("new", [1.0]))
    assert numbers_of(db, "old") == [(None, None, None, 0), (0, None)]
    assert query(db, "SELECT count(*) FROM metric WHERE run_id = 'old' AND value IS NOT NULL")[1] == [(3,)]
    assert check(stores, db).problems == []


VIEW_BEFORE = "CREATE VIEW leaderboard AS SELECT run.recipe, metric.task, metric.value AS accuracy, run.artifact FROM metric JOIN run USING (run_id)"


def with_the_views_of_the_version_before(db: Path) -> None:
    """The database as the schema.sql before the narrow leaderboard made it: the same tables, one leaderboard with every column."""
    with duckdb.connect(str(db)) as connection:
        connection.execute(f"DROP VIEW leaderboard; DROP VIEW leaderboard_all; {VIEW_BEFORE}")
        connection.execute("UPDATE history_schema SET sha256 = 'of the version before'")


def test_a_database_of_the_views_before_opens_with_todays_and_is_not_written(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    db = append(stores, rows("a", [1.0, 0.0]), rows("b", [1.0, 1.0], night=1))
    asked = ["SELECT * FROM leaderboard", "SELECT * FROM leaderboard_all", "SELECT * FROM trend", "SELECT * FROM by_type", "SELECT * FROM regressions"]
    today = [query(db, sql) for sql in asked]
    with_the_views_of_the_version_before(db)
    before = db.read_bytes()
    assert [query(db, sql) for sql in asked] == today and db.read_bytes() == before
    assert export(db, tmp_path / "out", "csv", ["leaderboard", "leaderboard_all"]) == {"leaderboard": 2, "leaderboard_all": 2}
    with history_of(stores) as opened:  # brings the database up to date first
        assert len(opened.runs) == 2
    assert db.read_bytes() != before and [query(db, sql) for sql in asked] == today


def test_a_copy_of_a_database_without_its_files_opens_too(tmp_path: Path) -> None:
    db = append(tmp_path / "stores", rows("a", [1.0, 0.0]))
    with_the_views_of_the_version_before(db)
    alone = tmp_path / "elsewhere" / "history.duckdb"
    alone.parent.mkdir()
    alone.write_bytes(db.read_bytes())
    assert len(query(alone, "SELECT ci_lo, floor_always_yes FROM leaderboard_all")[1]) == len(query(alone, "SELECT interval FROM leaderboard")[1]) == 1
