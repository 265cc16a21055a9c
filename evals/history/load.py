"""Loading: the history's Parquet files into an open DuckDB database.

Owns which files count, and how they get into the tables: many at once where they have today's schema, through evals/history/migrations.py where
they are older. Input: the store and (folder, file) pairs. Output: rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evals.history.migrations import OLD_FOLDERS, read_run
from evals.history.tables import OF_RUN, STANDING, TABLES, VERSION, conform, file_of, version_of
from evals.history.verified import unlike, verify
from infra.step import AnyloomError

_FILES_AT_ONCE = 1000
"""Bounds the open files of one statement."""


def all_files(stores: Path) -> set[tuple[str, str]]:
    """(folder, file) of every published file, those of unfinished runs included."""
    found = set()
    for folder in dict.fromkeys(("run", *TABLES, *OLD_FOLDERS)):
        directory = stores / "history" / folder
        if directory.is_dir():
            with os.scandir(directory) as entries:
                found |= {(folder, e.name.removesuffix(".parquet")) for e in entries if e.name.endswith(".parquet") and not e.name.startswith(".")}
    return found


def committed_files(stores: Path) -> set[tuple[str, str]]:
    """(folder, file) of everything that exists for a reader: a run does once its file of `run` does; the other tables' files stand for themselves.

    `run` is listed first: a run that is committed meanwhile is left for the next time, never taken without its other files.
    """
    found = all_files(stores)
    runs = {name for folder, name in found if folder == "run"}
    return {(folder, name) for folder, name in found if folder in STANDING or name in runs}


def load(connection: duckdb.DuckDBPyConnection, stores: Path, files: set[tuple[str, str]]) -> None:
    """Insert the rows of `files` and note them as loaded. Every file is checked by its digest before anything is inserted.

    Raises AnyloomError naming a file whose bytes are not those that were written, or duckdb.Error for one that cannot be read.
    """
    runs = sorted({name for folder, name in files if folder not in STANDING})
    checked = {(folder, name): verify(file_of(stores, folder, name)) for folder, name in sorted(files) if folder in STANDING}
    for name in runs:
        problems, unchecked = unlike(file_of(stores, "run", name), files_of_run(stores, name))
        if problems:
            raise AnyloomError(problems[0][1])
        checked |= {(folder, name): not unchecked for folder, of in files if of == name and folder not in STANDING}
    of_today: list[str] = []
    older: list[str] = []
    for name in runs:
        (of_today if version_of(file_of(stores, "run", name)) == VERSION else older).append(name)
    for table in OF_RUN:
        names = [name for name in of_today if (table, name) in files]
        for some in _batches(names):
            paths = [str(file_of(stores, table, name)) for name in some]
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet(?)", [paths])
    for some in _batches(older):
        _insert_older(connection, stores, some)
    for table in STANDING:
        tables = [read_standing(file_of(stores, table, name), table) for _, name in sorted(f for f in files if f[0] == table)]
        _insert_standing(connection, table, tables)
    listed = sorted(files)
    seen = pa.array([checked[file] for file in listed], pa.bool_())
    noted = pa.table({"table_name": [folder for folder, _ in listed], "file": [name for _, name in listed], "checked": seen})
    connection.register("noted", noted)
    connection.execute("INSERT INTO history_file SELECT table_name, file, checked FROM noted")
    connection.unregister("noted")


def files_of_run(stores: Path, run_id: str) -> dict[str, Path]:
    """Table -> where a run's file of it would be, but for that of `run`."""
    return {table: file_of(stores, table, run_id) for table in (*OF_RUN[:-1], *OLD_FOLDERS)}


def read_standing(path: Path, table: str) -> pa.Table:
    """A file of a table in STANDING. Raises AnyloomError when it is damaged, newer than this code, or of another table."""
    version_of(path)
    try:
        return conform(table, pq.ParquetFile(path).read(use_threads=False))
    except (OSError, pa.ArrowException) as error:
        raise AnyloomError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it from a copy, or remove it to accept the loss") from error


def _batches(names: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while some := list(islice(rest, _FILES_AT_ONCE)):
        yield some


def _insert_older(connection: duckdb.DuckDBPyConnection, stores: Path, runs: Sequence[str]) -> None:
    made: dict[str, list[pa.Table]] = {}
    for run_id in runs:
        for table, rows in read_run(stores, run_id).items():
            made.setdefault(table, []).append(rows)
    for table, parts in made.items():
        if table in STANDING:
            _insert_standing(connection, table, parts)
        else:
            connection.register("arrived", pa.concat_tables(parts))
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM arrived")
            connection.unregister("arrived")


def _insert_standing(connection: duckdb.DuckDBPyConnection, table: str, parts: Sequence[pa.Table]) -> None:
    """Rows whose key is not there yet; of equal keys the first one stays."""
    if not parts:
        return
    keys = ", ".join(STANDING[table])
    together = pa.concat_tables(parts)
    connection.register("arrived", together.append_column("place", pa.array(range(len(together)), pa.int64())))
    connection.execute(
        f"INSERT INTO {table} BY NAME SELECT * EXCLUDE (place) FROM (SELECT DISTINCT ON ({keys}) * FROM arrived ORDER BY {keys}, place) AS fresh "
        f"ANTI JOIN {table} USING ({keys}) ORDER BY {keys}"
    )
    connection.unregister("arrived")
