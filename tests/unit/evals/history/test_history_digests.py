"""Digests: a flipped bit never becomes a row, older files still read, and what is missing is named."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_history import FIRST_NIGHT, TASK, append, rows

from evals.history import database as history
from evals.history.check import check
from evals.history.database import query, unchecked_files
from evals.history.records import annotate, append_change_points, append_comparisons, append_night
from evals.history.seals import seal_holds, sealed
from evals.history.tables import OF_RUN, STANDING, VERSION_KEY, file_of, write_file
from infra.step import AnyloomError

FLIPS = 120


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Two runs and a row of every other table."""
    stores = tmp_path / "stores"
    append(stores, rows("a", [1.0, 1.0, 0.0]), rows("b", [1.0, 0.0, 0.0], night=1))
    said = {"task": TASK, "condition": "helped", "metric": "exact_match", "subgroup": "all", "history_fingerprint": "aaaa"}
    append_comparisons(stores, [said | {"run_a": "a", "run_b": "b", "delta": -0.3}])
    append_change_points(stores, [said | {"series_id": "s", "run_at": "b", "at": FIRST_NIGHT, "before": 0.6, "after": 0.3}])
    annotate(stores, at=FIRST_NIGHT + timedelta(hours=3), text="new images")
    append_night(stores, "b", "flow", FIRST_NIGHT, "finished")
    history.rebuild(stores, history.database_path(stores))
    return stores


def files_of(stores: Path) -> list[Path]:
    return sorted((stores / "history").rglob("*.parquet"))


def test_no_flipped_bit_becomes_a_row(stores: Path) -> None:
    """FLIPS bits, spread evenly over all bytes of all files: each is refused, naming the file, and the database stays as it was."""
    db = history.database_path(stores)
    whole, before = {path: path.read_bytes() for path in files_of(stores)}, db.read_bytes()
    assert {path.parent.name for path in whole} == {*OF_RUN, *STANDING}
    total, places = sum(map(len, whole.values())), []
    for flip in range(FLIPS):
        place = flip * total // FLIPS + flip % 7
        for path, data in whole.items():
            if place < len(data):
                places.append((path, place, flip % 8))
                break
            place -= len(data)
    assert len(places) == FLIPS and len({path for path, _, _ in places}) == len(whole)
    for path, place, bit in places:
        data = bytearray(whole[path])
        data[place] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(AnyloomError) as caught:
            history.rebuild(stores, db, fresh=True)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), (place, bit)
        path.write_bytes(whole[path])
    assert db.read_bytes() == before
    assert history.rebuild(stores, db, fresh=True) == 2 and check(stores, db).problems == [] and unchecked_files(db) == 0


def test_check_names_a_flipped_bit_where_parquet_sees_none(stores: Path) -> None:
    """In the footer, which no checksum of Parquet covers."""
    path = file_of(stores, "metric", "a")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"anyloom_sha256") + 20] ^= 1
    path.write_bytes(data)
    (problem,) = check(stores, history.database_path(stores)).problems
    assert problem.startswith("changed: ") and str(path) in problem


def test_the_footer_is_sealed(tmp_path: Path) -> None:
    path, data = tmp_path / "x.parquet", sealed(rows("a", [1.0])["run"])
    path.write_bytes(data)
    assert seal_holds(path) is True
    for place in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data), 5):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        assert not seal_holds(path)


def test_a_text_in_the_data_is_not_taken_for_the_seal(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(sealed(pa.table({"text": ["anyloom_sha256\x18\x40" + "0" * 64]})))
    assert seal_holds(path) is True


@pytest.mark.parametrize("table", OF_RUN[:-1])
def test_a_file_of_a_run_that_is_gone_or_replaced_is_named(stores: Path, table: str) -> None:
    db, path = history.database_path(stores), file_of(stores, table, "a")
    own = path.read_bytes()
    other = rows("a", [0.0, 0.0, 0.0])[table].slice(0, 1)
    write_file(stores, table, "a", other)  # whole, sealed, of the same run, and not what was written first
    with pytest.raises(AnyloomError, match=rf"{table}/a\.parquet is damaged"):
        history.rebuild(stores, db, fresh=True)
    path.unlink()
    db.unlink()
    with pytest.raises(AnyloomError, match=rf"{table}/a\.parquet is gone, though .*run/a\.parquet names it"):
        history.rebuild(stores, db)
    assert any(line.startswith("gone: ") for line in check(stores, db).problems)
    path.write_bytes(own)
    assert history.rebuild(stores, db) == 2


def test_a_file_that_its_run_does_not_name_is_refused(stores: Path) -> None:
    run = rows("c", [1.0])
    del run["train_metrics"]
    history.append(stores, "c", run)
    write_file(stores, "train_metrics", "c", rows("c", [1.0])["train_metrics"])
    with pytest.raises(AnyloomError, match=r"train_metrics/c\.parquet is not named by"):
        history.rebuild(stores, history.database_path(stores))


def test_older_files_are_read_and_counted_as_unchecked(stores: Path) -> None:
    for table in ("model", *OF_RUN):
        path = file_of(stores, table, "m-old" if table == "model" else "old")
        old = rows("old", [1.0, 0.0])[table]
        old = old.drop_columns(["files"]) if table == "run" else old
        pq.write_table(old.replace_schema_metadata({VERSION_KEY: b"5"}), path)
    db = history.database_path(stores)
    assert history.rebuild(stores, db) == 3
    assert query(db, "SELECT count(*) FROM sample WHERE run_id = 'old'")[1] == [(2,)]
    found = check(stores, db)
    assert found.problems == [] and found.unchecked == unchecked_files(db) == 5


def test_a_file_of_today_without_its_digest_is_refused(stores: Path) -> None:
    path = file_of(stores, "annotation", next(p.stem for p in files_of(stores) if p.parent.name == "annotation"))
    table = pq.read_table(path)
    pq.write_table(table, path)
    with pytest.raises(AnyloomError, match="has lost its digest"):
        history.rebuild(stores, history.database_path(stores), fresh=True)


def test_the_row_of_a_run_names_its_files(stores: Path) -> None:
    ((files,),) = query(history.database_path(stores), "SELECT files::JSON->>'sample' FROM run WHERE run_id = 'a'")[1]
    assert len(files) == 64
