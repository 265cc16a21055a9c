"""Frames: the history in Python, as Arrow tables and as a connection to ask.

Owns what `from evals.history import connect, runs, samples` gives. Input: a root (default: ANYLOOM_ROOT, or runs). Output: a read-only DuckDB connection, or
pyarrow Tables, which `.to_pandas()` makes a pandas DataFrame where pandas is installed. Raises AnyloomError without a history, or for an unknown run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from evals.history.database import database_path, open_database, rebuild
from evals.history.load import committed_files
from evals.history.reader import History
from infra.machine import may_write
from infra.settings import load_settings


def connect(root: str | Path | None = None) -> duckdb.DuckDBPyConnection:
    """A read-only connection to the history of a root, brought up to its files first where the root can be written.

    Tables and views: docs/history.md. Close it, or use it in a `with`: while it is open, no other process of yours is kept from writing the history.
    """
    stores = load_settings(root=root).root.absolute() / "stores"
    if committed_files(stores) and may_write(stores.parent):
        rebuild(stores, database_path(stores))
    return open_database(database_path(stores))


def runs(root: str | Path | None = None) -> pa.Table:
    """A row per run, that of the newest model first: every column of `run`."""
    return _asked(root, "SELECT * FROM run ORDER BY coalesce(exported, evaluated) DESC NULLS LAST, evaluated DESC NULLS LAST, run_id DESC")


def samples(run: str = "", task: str = "", condition: str = "", root: str | Path | None = None) -> pa.Table:
    """A row per question that was asked: every column of `sample`, ordered by run, task, condition and key.

    run: the beginning of an id; task, condition: as they are called; "": all of them.
    """
    with connect(root) as connection:
        run_id = History(connection).named(run, "run").run_id if run else ""
        wanted = {name: value for name, value in (("run_id", run_id), ("task", task), ("condition", condition)) if value}
        where = f"WHERE {' AND '.join(f'{name} = ?' for name in wanted)}" if wanted else ""
        return _table(connection, f"SELECT * FROM sample {where} ORDER BY run_id, task, condition, doc_key", list(wanted.values()))


def _asked(root: str | Path | None, sql: str) -> pa.Table:
    with connect(root) as connection:
        return _table(connection, sql, [])


def _table(connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any]) -> pa.Table:
    return connection.execute(sql, list(values)).fetch_record_batch().read_all()
