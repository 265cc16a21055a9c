"""history check finds what is wrong, one line each; history export writes what the database holds."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from toy_history import append, rows

from evals.history.check import check
from evals.history.database import query, rebuild
from evals.history.exported import export
from evals.history.records import append_comparisons
from evals.history.tables import SCHEMAS, TABLES, conform, file_of, rows_table, write_file
from infra.step import AnyloomError

UP = [1.0, 1.0, 0.0, 0.0]


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    append(tmp_path / "stores", rows("a", UP), rows("b", UP, night=1))
    return tmp_path / "stores"


def _torn(stores: Path, db: Path) -> None:
    path = file_of(stores, "sample", "a")
    path.write_bytes(path.read_bytes()[:-30])


def _rotten(stores: Path, db: Path) -> None:
    path = file_of(stores, "sample", "a")
    data, group = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(0)
    column = group.column(SCHEMAS["sample"].names.index("score"))
    data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
    path.write_bytes(bytes(data))


def _other_columns(stores: Path, db: Path) -> None:
    path = file_of(stores, "sample", "a")
    table = pq.read_table(path).rename_columns(["scorf" if name == "score" else name for name in SCHEMAS["sample"].names])
    pq.write_table(table.replace_schema_metadata(SCHEMAS["sample"].metadata), path)


def _orphan(stores: Path, db: Path) -> None:
    write_file(stores, "metric", "dead", rows("dead", UP)["metric"])


def _doubled_in_file(stores: Path, db: Path) -> None:
    both = rows("c", UP)
    both["sample"] = pa.concat_tables([both["sample"], both["sample"].slice(0, 1)])
    append(stores, both)


def _doubled_in_database(stores: Path, db: Path) -> None:
    with duckdb.connect(str(db)) as connection:
        connection.execute("INSERT INTO sample SELECT * FROM sample WHERE run_id = 'a' LIMIT 1")


def _lost_in_database(stores: Path, db: Path) -> None:
    with duckdb.connect(str(db)) as connection:
        connection.execute("DELETE FROM metric WHERE run_id = 'a'")


def _behind(stores: Path, db: Path) -> None:
    from evals.history.database import append as write

    write(stores, "c", rows("c", UP))


def _lost_file(stores: Path, db: Path) -> None:
    file_of(stores, "sample", "a").unlink()


def _leftover(stores: Path, db: Path) -> None:
    path = stores / "history" / "run" / ".x.parquet.1.abc.tmp"
    path.write_bytes(b"x")
    os.utime(path, (0, 0))


def _misplaced(stores: Path, db: Path) -> None:
    file_of(stores, "metric", "a").write_bytes(file_of(stores, "metric", "b").read_bytes())


def _no_database(stores: Path, db: Path) -> None:
    db.unlink()


def _foreign_comparison(stores: Path, db: Path) -> None:
    said = {"task": "easyvqa_as_vqav2", "condition": "helped", "metric": "exact_match", "subgroup": "all"}
    append_comparisons(stores, [said | {"run_a": "a", "run_b": "b", "history_fingerprint": "other"}])
    rebuild(stores, db)


def _comparison_of_nobody(stores: Path, db: Path) -> None:
    said = {"task": "easyvqa_as_vqav2", "condition": "helped", "metric": "exact_match", "subgroup": "all"}
    append_comparisons(stores, [said | {"run_a": "a", "run_b": "zz", "history_fingerprint": "aaaa"}])
    rebuild(stores, db)


def _undescribed_task(stores: Path, db: Path) -> None:
    run = rows("c", UP, fingerprint="cccc")
    del run["task"]
    append(stores, run)


def _undescribed_model(stores: Path, db: Path) -> None:
    run = rows("c", UP)
    del run["model"]
    append(stores, run)


def test_a_sound_history_has_no_problem(stores):
    found = check(stores, stores.parent / "history.duckdb")
    assert found.problems == [] and found.files == 11 and found.rows == 2 * (1 + 3 + 4 + 3) + 2 + 1


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_torn, ["torn", "sample/a.parquet"]),
        (_rotten, ["torn", "sample/a.parquet"]),
        (_other_columns, ["torn", "sample/a.parquet", "columns"]),
        (_orphan, ["orphan", "metric/dead.parquet"]),
        (_doubled_in_file, ["doubled", "sample/c.parquet has 1 rows"]),
        (_doubled_in_database, ["count", "run a has 4 rows of sample in its file and 5"]),
        (_lost_in_database, ["count", "run a has 3 rows of metric in its file and 0"]),
        (_behind, ["behind", "lacks", "history build"]),
        (_lost_file, ["lost", "sample/a.parquet"]),
        (_leftover, ["leftover", ".x.parquet"]),
        (_misplaced, ["misplaced", "metric/a.parquet has rows of b"]),
        (_no_database, ["missing", "history.duckdb"]),
        (_foreign_comparison, ["reference", "history_fingerprint"]),
        (_comparison_of_nobody, ["reference", "zz"]),
        (_undescribed_task, ["reference", "cccc"]),
        (_undescribed_model, ["reference", "m-c"]),
    ],
)
def test_every_kind_of_harm_is_named(stores, harm, words):
    db = stores.parent / "history.duckdb"
    harm(stores, db)
    problems = check(stores, db).problems
    assert problems and all("\n" not in line for line in problems)
    assert any(all(word in line for word in words) for line in problems), problems


def test_a_damaged_file_stops_the_build_with_one_line_and_leaves_the_database(stores):
    db = stores.parent / "history.duckdb"
    _behind(stores, db)
    path = file_of(stores, "sample", "c")
    path.write_bytes(path.read_bytes()[:-30])
    before = db.read_bytes()
    with pytest.raises(AnyloomError, match="history check"):
        rebuild(stores, db)
    assert db.read_bytes() == before and [p.name for p in db.parent.glob(".history*")] == []


def test_leftovers_of_a_killed_builder_are_swept_by_the_next(stores):
    db = stores.parent / "history.duckdb"
    for name in (".history.duckdb.99999.tmp", ".history.duckdb.99999.tmp.wal"):
        (db.parent / name).write_bytes(b"half")
    assert rebuild(stores, db) == 2 and not list(db.parent.glob(".history.duckdb.9*"))


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_export_has_every_table_and_the_views_asked_for(stores, tmp_path, form):
    db = stores.parent / "history.duckdb"
    written = export(db, tmp_path / "out", form, [*TABLES, "leaderboard"])
    assert written["sample"] == 8 and written["leaderboard"] == 2 and written["comparison"] == 0
    for name, count in written.items():
        path = tmp_path / "out" / f"{name}.{form}"
        table = pq.read_table(path) if form == "parquet" else pacsv.read_csv(path)
        assert len(table) == count and table.column_names == query(db, f"SELECT * FROM {name} LIMIT 0")[0]
    if form == "parquet":
        assert pq.read_schema(tmp_path / "out" / "sample.parquet").equals(SCHEMAS["sample"], check_metadata=True)
    with pytest.raises(AnyloomError, match="no table or view called nothing"):
        export(db, tmp_path / "out", form, ["nothing"])


def test_columns_and_types_are_checked():
    with pytest.raises(AnyloomError, match="no column speed"):
        conform("run", pa.table({"speed": [1]}))
    with pytest.raises(AnyloomError, match="column value"):
        conform("metric", pa.table({"value": ["much"]}))
    with pytest.raises(AnyloomError, match="history table metric"):
        rows_table("metric", [{"value": "much"}])
    assert conform("run", pa.table({"run_id": ["a"]})).schema.equals(SCHEMAS["run"])
