"""The reader of the history: what the nightly review, the pages and the command line ask of it.

Owns the order of the runs, the choice of the two that are compared, and rows as dicts. Input: a read-only connection to history.duckdb, in which runs of
older versions already have today's columns. Output: plain rows. Two numbers stand beside each other only when they are of one history_fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from evals.history.database import database_path, opened, rebuild
from evals.history.load import committed_files
from infra.step import AnyloomError

Row = dict[str, Any]

Group = tuple[str, str]
"""(task, condition)"""

Score = tuple[str, str, str]
"""(task, condition, metric)"""

UNKNOWN = "unknown:%"
"""LIKE pattern of the fingerprint that an old run's score has when nobody knows how it was scored: it compares with nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One evaluation."""

    run_id: str
    recipe: str
    seeds: str
    evaluated: datetime | None
    exported: datetime | None
    """When its model was finished."""
    model_id: str
    harness: str
    inputs: Mapping[str, str]
    """Input name -> step/fingerprint12."""

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.recipe}, {short_seeds(self.seeds)}" if self.seeds else self.recipe

    @property
    def day(self) -> str:
        """When it was evaluated; "" when nobody knows."""
        return f"{self.evaluated:%Y-%m-%d %H:%M}" if self.evaluated else ""

    @property
    def place(self) -> datetime:
        """Its place in time: when its model was finished, or else when it was evaluated, or else before everything."""
        return self.exported or self.evaluated or datetime.min


class History:
    """Rows of the history by SQL."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self._connection = connection
        newest_first = "ORDER BY coalesce(exported, evaluated) DESC NULLS LAST, evaluated DESC NULLS LAST, run_id DESC"
        self.runs: list[Run] = [_run(row) for row in self.rows(f"SELECT * FROM run {newest_first}")]
        """That of the newest model first."""
        self.by_id = {run.run_id: run for run in self.runs}

    def result(self, sql: str, values: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
        """One statement, executed with `?` in place of values."""
        return self._connection.execute(sql, list(values))

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of one statement with `?` in place of values."""
        result = self.result(sql, values)
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def run(self, run_id: str) -> Run:
        """The run of this id. Raises AnyloomError when the history has no such run."""
        if run_id not in self.by_id:
            raise AnyloomError(f"run {run_id} is not in the history: it has {len(self.runs)} runs; name one of them")
        return self.by_id[run_id]

    def named(self, text: str, option: str) -> Run:
        """The run whose id begins with `text`. Raises AnyloomError, naming the option it came by, unless there is exactly one."""
        found = [run for run in self.runs if run.run_id.startswith(text)] if text else []
        if len(found) == 1 or text in self.by_id:
            return self.by_id.get(text, found[0])
        known = ", ".join(f"{run.run_id} ({run.name}, {run.day})" for run in (found or self.runs)[:5])
        raise AnyloomError(f"{option} {text}: {len(found) or 'no'} runs are called that; there are {known}{', …' if len(found or self.runs) > 5 else ''}")

    def pair(self, a: str = "", b: str = "") -> tuple[Run | None, Run]:
        """The runs that are compared, the earlier one first. Without names: the newest run, and the newest before it that was asked the same.

        Of those before it, runs of its own recipe come first. The first of the pair is None where no run was asked the same. Raises AnyloomError for a
        name that is not one run's, or twice the same run.
        """
        later = self.named(b, "--b") if b else self.runs[0]
        if a:
            earlier = self.named(a, "--a")
            if earlier == later:
                raise AnyloomError(f"--a {a} and {f'--b {b}' if b else 'the newest run'} are the same run {later.run_id}: name another")
            return earlier, later
        asked_same = self.rows(
            "SELECT DISTINCT o.run_id FROM metric AS o JOIN metric AS m USING (task, condition, history_fingerprint) WHERE m.run_id = ? AND o.run_id <> ?",
            (later.run_id, later.run_id),
        )
        found = {row["run_id"] for row in asked_same}
        before = [run for run in self.runs[self.runs.index(later) + 1 :] if run.run_id in found]
        return next((run for run in before if run.recipe == later.recipe), before[0] if before else None), later

    def before(self, run_id: str, recipe: str) -> list[str]:
        """Runs of the recipe whose models are older than this one's, oldest first; when they were evaluated says nothing."""
        older = self.runs[self.runs.index(self.run(run_id)) + 1 :]
        return [run.run_id for run in reversed(older) if run.recipe == recipe]

    def fingerprints(self, run_id: str) -> Mapping[str, str]:
        """task -> history_fingerprint of a run's scores; tasks that compare with nothing are left out. Raises AnyloomError without such a run."""
        return self._fingerprints.get(self.run(run_id).run_id, {})

    @cached_property
    def _fingerprints(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        sql = "SELECT DISTINCT run_id, task, history_fingerprint FROM metric WHERE history_fingerprint <> '' AND history_fingerprint NOT LIKE ? ORDER BY ALL"
        for row in self.rows(sql, (UNKNOWN,)):
            found.setdefault(row["run_id"], {})[row["task"]] = row["history_fingerprint"]
        return found

    def scores(self, run_id: str) -> set[Score]:
        """(task, condition, metric) of a run's scores and floors."""
        rows = self.rows("SELECT DISTINCT task, condition, metric FROM metric WHERE run_id = ?", (run_id,))
        return {(row["task"], row["condition"], row["metric"]) for row in rows}

    def samples(self, run_id: str, tasks: Collection[str]) -> list[Row]:
        """Rows of `sample` of a run that have a score, ordered by task, condition and key."""
        sql = "SELECT * FROM sample WHERE run_id = ? AND task IN (SELECT unnest(?)) AND score IS NOT NULL ORDER BY task, condition, doc_key"
        return self.rows(sql, (run_id, sorted(tasks)))

    def recorded(self, table: str, columns: Sequence[str]) -> frozenset[tuple[str, ...]]:
        """What `comparison`, `change_point` or `night` holds: these columns of every row, as text."""
        chosen = ", ".join(f'"{name}"' for name in columns)
        return frozenset(tuple(map(str, row)) for row in self.result(f"SELECT {chosen} FROM {table}").fetchall())

    def annotations(self, recipe: str, task: str) -> list[datetime]:
        """When something was announced that concerns a series; an annotation without recipe or task concerns all of them."""
        sql = "SELECT DISTINCT \"at\" FROM annotation WHERE coalesce(recipe, '') IN ('', ?) AND coalesce(task, '') IN ('', ?) ORDER BY \"at\""
        return [row["at"] for row in self.rows(sql, (recipe, task))]


@contextmanager
def history_of(stores: Path) -> Iterator[History]:
    """The history below a stores directory, its database brought up to date first. Raises AnyloomError as `rebuild` does."""
    rebuild(stores, database_path(stores))
    with opened(database_path(stores)) as connection:
        yield History(connection)


def nightly_runs(stores: Path) -> dict[str, str]:
    """run_id -> `export/fingerprint` ("" when unknown) of every run that a night has evaluated, met or compared: the newest exports and the baselines."""
    if not committed_files(stores):
        return {}
    with history_of(stores) as history:
        named = {run for row in history.recorded("night", ("run_id",)) | history.recorded("comparison", ("run_a", "run_b")) for run in row}
        return {name: history.run(name).inputs.get("export", "") for name in sorted(named) if name in history.by_id}


def short_seeds(seeds: str) -> str:
    """`stage1=0, stage2=0` -> `seed 0`; different seeds stay as they are."""
    values = {part.partition("=")[2].strip() for part in seeds.split(",")}
    return f"seed {values.pop()}" if len(values) == 1 else seeds


def _run(row: Row) -> Run:
    return Run(
        run_id=row["run_id"],
        recipe=row["recipe"] or "",
        seeds=row["seeds"] or "",
        evaluated=row["evaluated"],
        exported=row["exported"],
        model_id=row["model_id"] or "",
        harness=row["harness"] or "",
        inputs=json.loads(row["inputs"] or "{}"),
    )
