"""History facts: what a page about the history asks of history.duckdb.

Owns the reading: runs, the choice of the two that are compared, and rows as dicts. Input: an open read-only connection. Output: plain rows. Two numbers
stand beside each other only when they are of one history_fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

from infra.step import AnyloomError

Row = dict[str, Any]
FIRST_CONDITIONS = ("helped", "plain_prompt", "as_given", "right")
"""Conditions in which a model is asked as it should be, the one that counts first."""
CONTROLS = ("blank", "shuffled")
NAMES = {"always_yes": "always “yes”"}
MAIN_METRICS = (
    "exact_match",
    "gpt_eval_score",
    "mmmu_acc",
    "seed_all",
    "pope_accuracy",
    "accuracy",
    "ours_circular",
    "ours_accuracy",
    "circular",
    "vanilla",
    "anls",
    "judged_right",
    "heard_right",
)
"""Which score of a task a small chart shows: the first of these that it has, else the first by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One evaluation."""

    run_id: str
    recipe: str
    seeds: str
    evaluated: datetime | None
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


class Facts:
    """Rows of the history by SQL."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self._connection = connection
        newest_first = "ORDER BY coalesce(exported, evaluated) DESC NULLS LAST, evaluated DESC NULLS LAST, run_id"
        self.runs: list[Run] = [_run(row) for row in self.rows(f"SELECT * FROM run {newest_first}")]
        """That of the newest model first."""
        self.by_id = {run.run_id: run for run in self.runs}

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of one statement with `?` in place of values."""
        result = self._connection.execute(sql, list(values))
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def run(self, text: str, option: str) -> Run:
        """The run whose id begins with `text`. Raises AnyloomError unless there is exactly one."""
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
        later = self.run(b, "--b") if b else self.runs[0]
        if a:
            earlier = self.run(a, "--a")
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


def short_seeds(seeds: str) -> str:
    """`stage1=0, stage2=0` -> `seed 0`; different seeds stay as they are."""
    values = {part.partition("=")[2].strip() for part in seeds.split(",")}
    return f"seed {values.pop()}" if len(values) == 1 else seeds


def main_metric(names: Sequence[str]) -> str:
    """The one of a task's scores that stands for it."""
    return next((name for name in MAIN_METRICS if name in names), min(names))


def condition_order(name: str) -> tuple[int, str]:
    """Sorts conditions: as it should be asked, anything else, controls."""
    if name in FIRST_CONDITIONS:
        return FIRST_CONDITIONS.index(name), name
    return (len(FIRST_CONDITIONS) + (name in CONTROLS), name)


def asked_as(condition: str | None) -> str:
    """A condition in words."""
    return NAMES.get(condition or "", (condition or "").replace("_", " "))


def tone_of(condition: str, kind: str = "score") -> str:
    """The colour of a condition: model, control or floor."""
    return "floor" if kind == "floor" else "control" if condition in CONTROLS else "model"


def _run(row: Row) -> Run:
    return Run(
        run_id=row["run_id"],
        recipe=row["recipe"] or "",
        seeds=row["seeds"] or "",
        evaluated=row["evaluated"],
        model_id=row["model_id"] or "",
        harness=row["harness"] or "",
        inputs=json.loads(row["inputs"] or "{}"),
    )
