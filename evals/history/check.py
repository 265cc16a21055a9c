"""Check: the history's files against themselves and against history.duckdb.

Owns what counts as a problem. Input: the store and the database. Output: one line per problem. Nothing is repaired: the line says what to do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evals.history.database import query, schema_is_current
from evals.history.load import all_files, committed_files, files_of_run
from evals.history.migrations import OLD_FOLDERS, read_run
from evals.history.tables import OF_RUN, ROW_KEYS, SCHEMAS, STANDING, VERSION, doubled, file_of, version_of
from evals.history.verified import unlike, verify
from infra.step import AnyloomError

_STALE_S = 3600.0
"""A temporary file older than this has lost its writer."""
_SHOWN = 3


@dataclass(kw_only=True, slots=True)
class Checked:
    """What was looked at and what was found."""

    files: int = 0
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in OF_RUN})
    """Table -> run -> rows in the files of committed runs."""
    keys: dict[str, set[tuple[object, ...]]] = field(default_factory=lambda: {name: set() for name in STANDING})
    """Standing table -> the rows that its files hold."""
    unread: set[str] = field(default_factory=set)
    """Runs with a file that could not be read."""
    unchecked: int = 0
    """Files of schema versions without digests: they were read, but nobody can see whether their bytes changed."""
    gone: dict[tuple[str, str], str] = field(default_factory=dict)
    """(table, run) of a file that the run names and that is not there -> the problem in words."""
    lost: set[tuple[str, str]] = field(default_factory=set)
    """(table, file) that the database has and the store has not."""


def check(stores: Path, db_path: Path) -> Checked:
    """Read every file, with its checksums and digests, then compare with the database. Nothing is changed."""
    found = Checked()
    everything, committed = all_files(stores), committed_files(stores)
    found.files = len(everything)
    for folder, name in sorted(everything - committed):
        found.problems.append(f"orphan: {file_of(stores, folder, name)} belongs to no run: its writer died; finish the evaluation again, or remove the file")
    for path in sorted((stores / "history").glob("*/.*.tmp")):
        if path.exists() and time.time() - path.stat().st_mtime > _STALE_S:
            found.problems.append(f"leftover: {path} was never finished: remove it")
    for name in sorted(name for folder, name in committed if folder == "run"):
        found.problems += _check_run(stores, name, found)
    for folder, name in sorted(committed):
        if folder in STANDING:
            found.problems += _check_standing(file_of(stores, folder, name), folder, found)
    found.problems += _check_database(stores, db_path, committed, found)
    found.problems += [f"gone: {text}" for file, text in found.gone.items() if file not in found.lost]
    return found


def _check_run(stores: Path, name: str, found: Checked) -> Iterator[str]:
    """Every file of one run: readable, about that run, no row twice."""
    try:
        read = {table: _read_whole(path, table) for table in (*OF_RUN, *OLD_FOLDERS) if (path := file_of(stores, table, name)).exists()}
        tables = read if version_of(file_of(stores, "run", name)) == VERSION else read_run(stores, name)
    except AnyloomError as error:
        found.unread.add(name)
        yield f"torn: {error}"
        return
    yield from _check_digests(stores, name, found)
    for table in STANDING.keys() & tables.keys():
        found.keys[table] |= _keys(tables[table], table)
    for table in OF_RUN:
        rows = tables.get(table)
        if rows is None:
            continue
        found.rows += len(rows)
        found.counts[table][name] += len(rows)
        path = file_of(stores, table, name)
        others = set(rows["run_id"].to_pylist()) - {name}
        if others:
            yield f"misplaced: {path} has rows of {', '.join(sorted(map(str, others))[:_SHOWN])}"
        if again := doubled(rows, table):
            yield f"doubled: {path} has {again} rows more than once ({', '.join(ROW_KEYS[table])})"


def _check_digests(stores: Path, name: str, found: Checked) -> Iterator[str]:
    """The run's files by the digests of its row."""
    problems, unchecked = unlike(file_of(stores, "run", name), files_of_run(stores, name))
    found.unchecked += unchecked
    for table, text in problems:
        if file_of(stores, table, name).exists():
            yield f"changed: {text}"
        else:
            found.gone[table, name] = text


def _read_whole(path: Path, table: str) -> pa.Table:
    """The file's rows, every page read with its checksum. Raises AnyloomError when one is not what was written, or for other columns than its version's."""
    remedy = "restore it from a copy, or remove it to accept the loss"
    try:
        read = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        read.validate(full=True)
        same = version_of(path) < VERSION or read.schema.equals(SCHEMAS[table])
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise AnyloomError(f"{path} is damaged ({str(error).splitlines()[0]}): {remedy}") from error
    if not same:
        raise AnyloomError(f"{path} has other columns than table {table}: {remedy}")
    return read


def _check_standing(path: Path, table: str, found: Checked) -> Iterator[str]:
    try:
        rows = _read_whole(path, table)
        found.unchecked += not verify(path)
    except AnyloomError as error:
        yield f"torn: {error}"
    else:
        found.rows += len(rows)
        found.keys[table] |= _keys(rows, table)
        if again := doubled(rows, table):
            yield f"doubled: {path} has {again} rows more than once ({', '.join(STANDING[table])})"


def _check_database(stores: Path, db_path: Path, committed: set[tuple[str, str]], found: Checked) -> Iterator[str]:
    """The database holds every committed file, every row once, and nothing else; what refers to something refers to something that is there."""
    if not db_path.exists():
        if committed:
            yield f"missing: {db_path} does not exist: run `anyloom history build`"
        return
    try:
        if not schema_is_current(db_path):
            yield f"older: {db_path} has another schema than this anyloom: run `anyloom history build`"
            return
        loaded = set(query(db_path, "SELECT table_name, file FROM history_file")[1])
    except AnyloomError as error:
        yield f"database: {error}"
        return
    behind, lost = sorted(committed - loaded), sorted(loaded - committed)
    found.lost = set(lost)
    if behind:
        yield f"behind: {db_path} lacks {len(behind)} files (first: {'/'.join(behind[0])}): run `anyloom history build`"
    for folder, name in lost:
        yield f"lost: {file_of(stores, folder, name)} is gone, and {db_path} still has its rows: restore it, or remove the database to accept the loss"
    known = {name for folder, name in loaded if folder == "run"} - {name for _, name in lost}
    for table in OF_RUN:
        counted = dict(query(db_path, f"SELECT run_id, count(*) FROM {table} GROUP BY run_id")[1])
        for name in sorted(known & found.counts["run"].keys() - found.unread):
            if counted.get(name, 0) != found.counts[table][name]:
                yield f"count: run {name} has {found.counts[table][name]} rows of {table} in its file and {counted.get(name, 0)} in {db_path}: {_BUILD}"
        for name in sorted(set(counted) - {name for _, name in loaded}, key=str):
            yield f"foreign: {db_path} has {counted[name]} rows of {table} of {name}, which is no run: {_BUILD}"
    if not behind and not lost:
        for table, keys in STANDING.items():
            rows, different = query(db_path, f"SELECT count(*), count(DISTINCT ({', '.join(keys)})) FROM {table}")[1][0]
            if (rows, different) != (len(found.keys[table]),) * 2:
                yield f"count: {table} has {len(found.keys[table])} rows in its files and {rows} ({different} different) in {db_path}: {_BUILD}"
    for what, sql in _REFERENCES:
        for row in query(db_path, sql)[1]:
            yield f"reference: {what.format(*row)}"


_BUILD = "run `anyloom history build --fresh`"
_COMPARED = """SELECT comparison_id, task, condition FROM comparison AS c WHERE (
    SELECT count(DISTINCT run_id) FROM metric AS m WHERE m.run_id IN (c.run_a, c.run_b) AND m.task = c.task AND m.condition = c.condition
    AND m.metric = c.metric AND m.history_fingerprint = c.history_fingerprint) < 2 ORDER BY comparison_id"""
_REFERENCES = (
    (
        "comparison {0} is about a run that is not there ({1}, {2})",
        "SELECT comparison_id, run_a, run_b FROM comparison WHERE run_a NOT IN (SELECT run_id FROM run) OR run_b NOT IN (SELECT run_id FROM run) ORDER BY ALL",
    ),
    ("comparison {0} ({1}, {2}) is of runs that were not both scored inside its history_fingerprint", _COMPARED),
    (
        "change point {0} is at run {1}, which is not there",
        "SELECT series_id, run_at FROM change_point WHERE run_at NOT IN (SELECT run_id FROM run) ORDER BY ALL",
    ),
    (
        "night of flow run {0} is about run {1}, which is not there",
        "SELECT flow_run_id, run_id FROM night WHERE run_id NOT IN (SELECT run_id FROM run) ORDER BY ALL",
    ),
    (
        "run {0} has scores of {1} whose history_fingerprint {2} no row of task describes",
        "SELECT DISTINCT run_id, task, history_fingerprint FROM metric WHERE history_fingerprint NOT LIKE 'unknown:%' "
        "AND history_fingerprint NOT IN (SELECT history_fingerprint FROM task) ORDER BY ALL",
    ),
    (
        "run {0} is of model {1}, which no row of model describes",
        "SELECT run_id, model_id FROM run WHERE model_id <> '' AND model_id NOT IN (SELECT model_id FROM model) ORDER BY ALL",
    ),
)


def _keys(rows: pa.Table, table: str) -> set[tuple[object, ...]]:
    return set(zip(*(rows[key].to_pylist() for key in STANDING[table]), strict=True))
