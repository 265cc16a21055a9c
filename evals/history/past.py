"""Past: what the history says about a run and the nights before it.

Owns the reading of `{stores}/history/<table>/*.parquet` for statistics: runs in the order of time, samples, scores and series of comparable nights. Input:
Parquet files, also those of the history's first version. Output: rows, and matrices of scores on the same samples. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evals.statistics.change_points import Night
from evals.suites.catalogue import SampleScore, sample_scores
from evals.suites.stand_ins import ROTATION
from infra.step import AnyloomError

Group = tuple[str, str]
"""(task, condition)"""

Score = tuple[str, str, str]
"""(task, condition, metric)"""

_ALWAYS = datetime.min

_ROUNDED = 6e-6  # a score of the harness may be rounded to five digits


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One score over comparable nights, oldest first."""

    recipe: str
    task: str
    condition: str
    metric: str
    subgroup: str
    history_fingerprint: str
    higher_is_better: bool | None
    nights: tuple[Night, ...]
    scores: np.ndarray | None
    """[nights, samples] in the unit of the metric, of the samples that every night has; None when a night has none, or too few are shared."""
    clusters: tuple[str, ...]
    """Cluster of each of those samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """Scores of one task and condition in one run, ordered by key."""

    keys: np.ndarray
    groups: np.ndarray
    """The question whose rotation a sample is."""
    clusters: np.ndarray
    types: np.ndarray
    scores: np.ndarray


class Past:
    """The history below a stores directory, read once."""

    def __init__(self, stores: Path):
        self._stores = stores
        self._cache: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._scores: dict[str, dict[Group, _Column]] = {}
        paths = sorted((stores / "history" / "run").glob("*.parquet"))
        rows = [row for path in paths for row in _read(path)]
        self._runs = {row["run_id"]: row for row in sorted(rows, key=lambda row: (when(row), row.get("evaluated") or _ALWAYS, row["run_id"]))}

    def has(self, run_id: str) -> bool:
        """Whether the history has this run."""
        return run_id in self._runs

    def run(self, run_id: str) -> Mapping[str, Any]:
        """Its row of `run`. Raises AnyloomError when the history has no such run."""
        if run_id not in self._runs:
            raise AnyloomError(f"run {run_id} is not in {self._stores / 'history'}: it has {len(self._runs)} runs; name one of them")
        return self._runs[run_id]

    def before(self, run_id: str, recipe: str) -> list[str]:
        """Runs of the recipe whose models are older than this one's, oldest first; when they were evaluated says nothing."""
        runs = list(self._runs)
        return [name for name in runs[: runs.index(run_id)] if self._runs[name]["recipe"] == recipe]

    def rows(self, table: str, run_id: str) -> list[dict[str, Any]]:
        """Rows of `metric` or `sample` of a run under today's names, each with its history_fingerprint ("" when it compares with nothing)."""
        if (table, run_id) not in self._cache:
            path = self._stores / "history" / table / f"{run_id}.parquet"
            run, rows = self.run(run_id), _read(path) if path.exists() else []
            for row in rows:
                if "run_condition" in row:
                    row["condition"] = row.pop("run_condition")
                if "history_fingerprint" not in row:  # version 1: one fingerprint per run, that of its main task
                    row["history_fingerprint"] = run.get("history_fingerprint") if row.get("task") == run.get("lmms_task") else ""
            self._cache[table, run_id] = rows
        return self._cache[table, run_id]

    def fingerprints(self, run_id: str) -> dict[str, str]:
        """task -> history_fingerprint of a run's scores; tasks that compare with nothing are left out."""
        return {row["task"]: row["history_fingerprint"] for row in self.rows("metric", run_id) if row["history_fingerprint"]}

    def scored(self, run_id: str) -> set[Score]:
        """(task, condition, metric) of a run's scores and floors."""
        return {(row["task"], row["condition"], row["metric"]) for row in self.rows("metric", run_id)}

    def recorded(self, table: str, columns: Sequence[str]) -> frozenset[tuple[str, ...]]:
        """What is in `comparison` or `change_point`: these columns of every row."""
        paths = sorted((self._stores / "history" / table).glob("*.parquet"))
        return frozenset(tuple(str(row[name]) for name in columns) for path in paths for row in _table(path, columns).to_pylist())

    def annotations(self, recipe: str, task: str) -> list[datetime]:
        """When something was announced that concerns a series; an annotation without recipe or task concerns all of them."""
        rows = [row for path in sorted((self._stores / "history" / "annotation").glob("*.parquet")) for row in _read(path)]
        return sorted({row["at"] for row in rows if (row.get("recipe") or recipe) == recipe and (row.get("task") or task) == task})

    def series(self, run_id: str, recipe: str, window: int) -> list[Series]:
        """Every score of a run with the at most `window` latest nights of the same recipe and fingerprint that have it, the run itself last."""
        runs = [*self.before(run_id, recipe), run_id]
        found = []
        for key, row in sorted(self._values(run_id).items()):
            values = {name: self._values(name)[key]["value"] for name in runs if key in self._values(name)}
            names = list(values)[-window:]
            nights = tuple(Night(run_id=name, at=when(self.run(name)), value=values[name]) for name in names)
            task, condition, metric, subgroup, _, comparable = key
            score = next((score for score in sample_scores(task) if score.metric == metric), None)
            scores, clusters = self._matrix(names, (task, condition), subgroup, score, row["value"]) if score else (None, ())
            if scores is not None:
                nights = tuple(Night(run_id=n.run_id, at=n.at, value=float(mean)) for n, mean in zip(nights, scores.mean(axis=1), strict=True))
            place: dict[str, Any] = {"recipe": recipe, "task": task, "condition": condition, "metric": metric, "subgroup": subgroup}
            better = row.get("higher_is_better", True if score else None)
            found.append(Series(**place, history_fingerprint=comparable, higher_is_better=better, nights=nights, scores=scores, clusters=clusters))
        return found

    def _values(self, run_id: str) -> dict[tuple[str, ...], dict[str, Any]]:
        """(task, condition, metric, subgroup, filter, fingerprint) -> row of `metric`, scores that compare with something only."""
        names = ("task", "condition", "metric", "subgroup", "filter", "history_fingerprint")
        rows = [row for row in self.rows("metric", run_id) if row["kind"] == "score" and row["history_fingerprint"] and row["value"] is not None]
        return {tuple(str(row.get(name) or "") for name in names): row for row in rows}

    def _matrix(self, names: Sequence[str], group: Group, subgroup: str, score: SampleScore, value: float) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Scores [nights, samples] of what all of the runs have, and clusters.

        (None, ()) when that is less than half of the newest run's samples, or when the score `value` is not the mean of its samples.
        """
        columns = [self._columns(name).get(group) for name in names]
        present = [_by_group(column) if score.grouped else column for column in columns if column is not None]
        if len(present) < len(names):
            return None, ()
        newest = present[-1]
        chosen = np.flatnonzero((newest.types == subgroup) | (subgroup == "all"))
        shared = reduce(np.intersect1d, [column.keys for column in present], newest.keys[chosen])
        mean = score.scale * newest.scores[chosen].mean() if len(chosen) else np.nan
        if len(shared) == 0 or 2 * len(shared) < len(chosen) or not np.isclose(mean, value, atol=_ROUNDED):
            return None, ()
        scores = score.scale * np.stack([column.scores[np.searchsorted(column.keys, shared)] for column in present])
        clusters = newest.clusters[np.searchsorted(newest.keys, shared)]
        return (None, ()) if np.isnan(scores).any() else (scores, tuple(clusters.tolist()))

    def _columns(self, run_id: str) -> dict[Group, _Column]:
        """Scores of a run by task and condition. Only the columns that a matrix needs are read."""
        if run_id not in self._scores:
            path = self._stores / "history" / "sample" / f"{run_id}.parquet"
            names = ("task", "condition", "run_condition", "doc_key", "question_id", "cluster", "picture", "answer_type", "score")
            table = _table(path, names) if path.exists() else None
            self._scores[run_id] = _split(table) if table is not None and len(table) else {}
        return self._scores[run_id]


def nightly_runs(stores: Path) -> dict[str, str]:
    """run_id -> `export/fingerprint` ("" when unknown) of every run that a night has evaluated, met or compared: the newest exports and the baselines."""
    past = Past(stores)
    named = {run for row in past.recorded("night", ("run_id",)) | past.recorded("comparison", ("run_a", "run_b")) for run in row}
    return {name: str(json.loads(past.run(name).get("inputs") or "{}").get("export", "")) for name in sorted(named) if past.has(name)}


def _split(table: pa.Table) -> dict[Group, _Column]:
    def texts(*names: str) -> np.ndarray:
        name = next((name for name in names if name in table.column_names), None)
        return np.array([value or "" for value in table[name].to_pylist()] if name else [""] * len(table), dtype=str)

    tasks, conditions, keys, types = texts("task"), texts("condition", "run_condition"), texts("doc_key"), texts("answer_type")
    clusters, scores = texts("cluster", "picture"), table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    clusters = np.where(clusters == "", keys, clusters)
    groups = np.arange(len(table))
    if "question_id" in table.column_names and not table["question_id"].null_count:
        groups = table["question_id"].to_numpy() % ROTATION
    found = {}
    for task, condition in sorted(set(zip(tasks.tolist(), conditions.tolist(), strict=True))):
        chosen = np.flatnonzero((tasks == task) & (conditions == condition))
        chosen = chosen[np.argsort(keys[chosen], kind="stable")]
        found[task, condition] = _Column(keys=keys[chosen], groups=groups[chosen], clusters=clusters[chosen], types=types[chosen], scores=scores[chosen])
    return found


def _by_group(column: _Column) -> _Column:
    """The rotations of each question as one sample: its first row, with the lowest score of them all."""
    _, first, of = np.unique(column.groups, return_index=True, return_inverse=True)
    lowest = np.full(len(first), np.inf)
    np.minimum.at(lowest, of, column.scores)
    order = np.argsort(first)
    place = first[order]
    return _Column(keys=column.keys[place], groups=column.groups[place], clusters=column.clusters[place], types=column.types[place], scores=lowest[order])


def when(run: Mapping[str, Any]) -> datetime:
    """The place of a run in time: when its model was finished, or, where nobody knows, when it was evaluated."""
    return run.get("exported") or run.get("evaluated") or _ALWAYS


def _read(path: Path) -> list[dict[str, Any]]:
    return _table(path).to_pylist()


def _table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        return file.read([name for name in file.schema_arrow.names if columns is None or name in columns])
    except (OSError, pa.ArrowException) as error:
        raise AnyloomError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it from a copy, or remove the run's files") from error
