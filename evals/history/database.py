"""History: every evaluation there ever was, as append-only Parquet, and a DuckDB file derived from it.

Owns `{stores}/history/<table>/<name>.parquet` (the source of truth, safe for any number of writers; tables: evals/history/tables.py) and
history.duckdb (derived, replaced as a whole). Input: tables of a run. Output: rows one can query with SQL.

Plain DuckDB lets one process write, and an open reader blocks it; so nobody ever writes the file that readers open: a new one is
built beside it under a lock and moved over it. Readers keep the old file, new readers see the new one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from evals.config import HistoryConfig
from evals.history.load import committed_files, load
from evals.history.rows import collect, run_identity
from evals.history.tables import OF_RUN, STANDING, TABLES, VERSION, conform, file_of, rows_table, write_file
from infra.lock import exclusive
from infra.step import AnyloomError, StepContext
from infra.storage import disk_errors, fsync_directory, write_atomic

VIEWS = ("leaderboard", "leaderboard_all", "trend", "regressions", "sample_diff", "by_type")
_READ_ONLY: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "lock_configuration": True,
}


def database_path(stores: Path) -> Path:
    """Where history.duckdb of a run directory lives: beside its stores, always local."""
    return stores.parent / "history.duckdb"


def run(ctx: StepContext[HistoryConfig]) -> Mapping[str, Any]:
    """Step entry: append what the inputs say as one run and bring the database up to date. The same inputs again add nothing."""
    config = ctx.config
    run_id = run_identity(config, ctx.inputs)
    ctx.progress(0, 2, "appending the run")
    rows = collect(config, run_id, ctx.inputs)
    append(ctx.stores, run_id, rows)
    ctx.progress(1, 2, "rebuilding history.duckdb")
    rebuild(ctx.stores, database_path(ctx.stores))
    counts = {table: len(rows[table]) for table in OF_RUN if table in rows}
    write_atomic(ctx.output / "run.json", json.dumps({"run_id": run_id, "recipe": config.recipe, "rows": counts}, sort_keys=True, indent=1))
    ctx.progress(2, 2, "done")
    return {"run_id": run_id, "rows": counts}


def append(stores: Path, run_id: str, rows: Mapping[str, pa.Table]) -> bool:
    """Write the files of one run, each temp + rename, `run` last, which names the sha256 of the others.

    Returns False when the run is already there (nothing is touched).

    rows: tables of OF_RUN, and `model` and `task` of what was evaluated. A table without rows needs no file. Raises AnyloomError when a
    table has columns that the history has not, or rows of another run; then nothing is written.
    """
    if file_of(stores, "run", run_id).exists():
        return False
    unknown = sorted(set(rows) - {*OF_RUN, "model", "task"})
    if unknown or len(rows["run"]) != 1:
        raise AnyloomError(f"run {run_id}: give exactly one row of run, and the tables {', '.join(OF_RUN)}, model, task" + f", not {unknown}" * bool(unknown))
    for name in OF_RUN:
        if name not in rows:
            continue
        others = set(rows[name]["run_id"].unique().to_pylist()) - {run_id} if len(rows[name]) else set()
        if others:
            raise AnyloomError(f"run {run_id}: its {name} rows belong to {sorted(map(str, others))[0]}")
        conform(name, rows[name])
    for name in ("model", "task"):
        for row in rows[name].to_pylist() if name in rows else []:
            stem = row[STANDING[name][0]].replace("/", "-")
            if not file_of(stores, name, stem).exists():
                write_file(stores, name, stem, pa.Table.from_pylist([row], rows[name].schema))
    files = {name: write_file(stores, name, run_id, rows[name]) for name in OF_RUN[:-1] if name in rows and len(rows[name])}
    row = rows["run"].to_pylist()[0] | {"files": json.dumps(files, sort_keys=True)}
    write_file(stores, "run", run_id, rows_table("run", [row]))
    return True


def rebuild(stores: Path, db_path: Path, *, fresh: bool = False, threads: int = 1) -> int:
    """Bring history.duckdb up to the store's files and return the number of runs in it.

    Under a lock on this machine: list the committed files, copy the old database aside, add what is new (everything, when there is no
    database, its schema is an older one, or `fresh`), move it into place. Raises AnyloomError, and leaves the database alone, when the
    store has lost files that the database has.
    """
    db_path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(db_path.with_name(f"{db_path.name}.lock"), poll_s=0.05):
        for left in db_path.parent.glob(f".{db_path.name}.*.tmp*"):  # of a killed builder: whoever holds the lock is the only live one
            left.unlink(missing_ok=True)
        present = committed_files(stores)
        runs = sum(folder == "run" for folder, _ in present)
        temporary = db_path.with_name(f".{db_path.name}.{os.getpid()}.tmp")
        try:
            with disk_errors(db_path):
                old = _copied(db_path, temporary)
                _refuse_loss(db_path, stores, sorted(old.files - present))
                same = old.schema == _schema_sha() and not fresh
                if same and old.files == present:
                    return runs
                if not same:
                    temporary.unlink(missing_ok=True)
                _build(stores, temporary, present - old.files if same else present, fresh=not same, threads=threads)
                os.replace(temporary, db_path)
        finally:
            temporary.unlink(missing_ok=True)
            temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)
        fsync_directory(db_path.parent)
        return runs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Old:
    """What a database holds."""

    files: frozenset[tuple[str, str]] = frozenset()
    """(folder, file)."""
    schema: str = ""
    """sha256 of its schema.sql."""


def _refuse_loss(db_path: Path, stores: Path, lost: list[tuple[str, str]]) -> None:
    if lost:
        runs = [name for folder, name in lost if folder == "run"]
        what = f"{len(runs)} runs (first: {runs[0]})" if runs else f"{len(lost)} files (first: {'/'.join(lost[0])})"
        raise AnyloomError(
            f"{db_path} has {what} that {stores / 'history'} no longer has; it is not replaced by "
            "a smaller one: restore the files, or remove the database to accept the loss"
        )


@cache
def _schema() -> str:
    return Path(__file__).with_name("schema.sql").read_text()


def _schema_sha() -> str:
    return sha256(_schema().encode()).hexdigest()


def schema_is_current(db_path: Path) -> bool:
    """Whether the database was built by this code's schema; if not, `rebuild` makes it anew."""
    names, rows = query(db_path, "SELECT * FROM history_schema")
    return bool(rows) and dict(zip(names, rows[0], strict=True)).get("sha256") == _schema_sha()


def _copied(db_path: Path, temporary: Path) -> _Old:
    """Copy the database and read the copy. Raises AnyloomError for a database of a newer schema than this code's.

    The copy is read, not the original: a connection that somebody in this process keeps open would be handed out again.
    """
    temporary.unlink(missing_ok=True)
    if not db_path.exists():
        return _Old()
    shutil.copyfile(db_path, temporary)
    with opened(temporary, db_path) as connection:
        files = frozenset((folder, name) for folder, name, *_ in connection.execute("SELECT * FROM history_file").fetchall())
        result = connection.execute("SELECT * FROM history_schema")
        schema = dict(zip([column[0] for column in result.description or []], result.fetchone() or (), strict=False))
    if schema.get("version", 1) > VERSION:
        raise AnyloomError(f"{db_path} has history schema {schema['version']}, and this anyloom knows up to {VERSION}: use a newer anyloom")
    return _Old(files=files, schema=schema.get("sha256", ""))


def _build(stores: Path, database: Path, files: set[tuple[str, str]], *, fresh: bool, threads: int) -> None:
    """Add `files` to the database file and sync it."""
    try:
        with duckdb.connect(str(database), config={"threads": threads}) as connection:
            connection.begin()
            if fresh:
                connection.execute(_schema())
                connection.execute("INSERT INTO history_schema VALUES (?, ?)", [VERSION, _schema_sha()])
            load(connection, stores, files)
            connection.commit()
            connection.execute("CHECKPOINT")
    except duckdb.Error as error:
        raise AnyloomError(f"the history cannot be built ({_first_line(error)}): `anyloom history check` names every damaged file") from error
    with open(database, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def opened(path: Path, called: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection as of `open_database`, closed at the end."""
    connection = open_database(path, called)
    try:
        yield connection
    finally:
        connection.close()


def open_database(path: Path, called: Path | None = None) -> duckdb.DuckDBPyConnection:
    """A read-only connection without access to files, the network or settings. Raises AnyloomError for a missing or foreign file.

    called: the name for error messages, when `path` is a copy.
    """
    name = called or path
    if not path.exists():
        raise AnyloomError(f"{name} does not exist: no history yet: run an evaluation first (anyloom run)")
    try:
        connection = duckdb.connect(str(path), read_only=True, config=_READ_ONLY)
    except duckdb.ConnectionException as error:
        raise AnyloomError(f"{name} is open in this process with other settings: close that connection first") from error
    except duckdb.IOException as error:
        raise AnyloomError(f"{name} cannot be opened: {_why_closed(path, error)}") from error
    except duckdb.Error as error:
        raise AnyloomError(f"{name} cannot be opened ({_first_line(error)}): {_DERIVED}") from error
    try:
        connection.execute("PRAGMA disable_progress_bar")  # DuckDB draws it on stdout where it thinks that somebody types
        _views_of_today(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _views_of_today(connection: duckdb.DuckDBPyConnection) -> None:
    """Put today's views over those of a database with the same tables and older views, for this connection alone: nothing is written."""
    try:
        version, sha = connection.execute("SELECT version, sha256 FROM history_schema").fetchone() or (0, "")
    except duckdb.Error:  # no database of ours, or one from before versions: it has other tables
        return
    if version != VERSION or sha == _schema_sha():
        return
    for statement in connection.extract_statements(_schema()):
        made, changed = re.subn(r"\bCREATE (VIEW|MACRO)\b", r"CREATE OR REPLACE TEMP \1", statement.query, count=1)
        if changed:
            connection.execute(made)


def unchecked_files(db_path: Path) -> int:
    """How many of the files in the database are of schema versions without digests, so that nobody could see whether their bytes changed."""
    return int(query(db_path, "SELECT count(*) FROM history_file WHERE NOT checked")[1][0][0])


def query(db_path: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run one SQL statement read-only: (column names, rows). It cannot attach, copy, install, read files or change settings.

    Raises AnyloomError with DuckDB's first line for a statement that is wrong or not allowed.
    """
    with opened(db_path) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1:
                raise AnyloomError(f"give one SQL statement, not {len(statements)}")
            result = connection.execute(statements[0])
            return ([column[0] for column in result.description or []], result.fetchall())
        except duckdb.Error as error:
            known = f"the tables are {', '.join(TABLES)}; the views {', '.join(VIEWS)}"
            if not connection.execute("SELECT 1 FROM duckdb_columns() WHERE table_name = 'history_schema' AND column_name = 'version'").fetchone():
                known = "this database is of another schema: run `anyloom history build`"
            raise AnyloomError(f"the query failed: {_first_line(error)}; {known}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


_DERIVED = "it is derived, remove it and rebuild the history (anyloom history build)"


def _why_closed(path: Path, error: duckdb.IOException) -> str:
    """Why a database file is not opened, and what helps: another process writes in it, it may not be read, or it is no database."""
    said = str(error)
    if "Could not set lock" in said:
        holder = re.search(r"held in (?P<program>.+?) \(PID (?P<pid>\d+)\)", said)
        who = f"process {holder['pid']} ({holder['program']})" if holder else "another process"
        return f"{who} has it open for writing: wait until that closes it, or copy the file and read the copy"
    if not os.access(path, os.R_OK):
        return "this user may not read it: mend its rights"
    return f"{_first_line(error)}; {_DERIVED}"
