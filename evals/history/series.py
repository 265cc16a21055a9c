"""Series: each score of a run beside the nights before it, as numbers over time and as a matrix of the samples that all nights share.

Owns which nights compare, and which samples. Input: the reader of the history. Output: Series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from evals.history.reader import UNKNOWN, Group, History
from evals.statistics.change_points import Night
from evals.suites.catalogue import SampleScore, sample_scores
from evals.suites.stand_ins import ROTATION

_ROUNDED = 6e-6  # a score of the harness may be rounded to five digits

_Key = tuple[str, str, str, str, str, str]
"""(task, condition, metric, subgroup, filter, history_fingerprint)"""


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


def series_of(history: History, run_id: str, recipe: str, window: int) -> list[Series]:
    """Every score of a run with the at most `window` latest nights of the same recipe and fingerprint that have it, the run itself last.

    Raises AnyloomError for a run that the history has not.
    """
    values = _values(history, [*history.before(run_id, recipe), run_id])
    samples = _Samples(history)
    found = []
    for key, value_of in sorted(values.items()):
        if run_id not in value_of:
            continue
        names = list(value_of)[-window:]
        nights = tuple(Night(run_id=name, at=history.run(name).place, value=value_of[name][0]) for name in names)
        task, condition, metric, subgroup, _, comparable = key
        score = next((score for score in sample_scores(task) if score.metric == metric), None)
        value, better = value_of[run_id]
        scores, clusters = samples.matrix(names, (task, condition), subgroup, score, value) if score else (None, ())
        if scores is not None:
            nights = tuple(Night(run_id=n.run_id, at=n.at, value=float(mean)) for n, mean in zip(nights, scores.mean(axis=1), strict=True))
        place: dict[str, Any] = {"recipe": recipe, "task": task, "condition": condition, "metric": metric, "subgroup": subgroup}
        found.append(Series(**place, history_fingerprint=comparable, higher_is_better=better, nights=nights, scores=scores, clusters=clusters))
    return found


def _values(history: History, runs: Sequence[str]) -> dict[_Key, dict[str, tuple[float, bool | None]]]:
    """Score -> run -> (value, higher_is_better), runs in the order given; scores that compare with something only."""
    rows = history.result(
        "SELECT run_id, coalesce(task, ''), coalesce(condition, ''), coalesce(metric, ''), coalesce(subgroup, ''), coalesce(filter, ''), history_fingerprint, "
        "value, higher_is_better FROM metric WHERE kind = 'score' AND value IS NOT NULL AND history_fingerprint <> '' AND history_fingerprint NOT LIKE ? "
        "AND run_id IN (SELECT unnest(?))",
        (UNKNOWN, list(runs)),
    ).fetchall()
    place = {name: index for index, name in enumerate(runs)}
    found: dict[_Key, dict[str, tuple[float, bool | None]]] = {}
    for name, *key, value, better in sorted(rows, key=lambda row: place[row[0]]):
        found.setdefault(tuple(key), {})[name] = (value, better)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """Scores of one task and condition in one run, ordered by key."""

    keys: np.ndarray
    groups: np.ndarray
    """The question whose rotation a sample is."""
    clusters: np.ndarray
    types: np.ndarray
    scores: np.ndarray


class _Samples:
    """Scores of single samples, read once for each run."""

    def __init__(self, history: History):
        self._history = history
        self._columns: dict[str, dict[Group, _Column]] = {}

    def matrix(self, runs: Sequence[str], group: Group, subgroup: str, score: SampleScore, value: float) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Scores [nights, samples] of what all of the runs have, and clusters.

        (None, ()) when that is less than half of the newest run's samples, or when the score `value` is not the mean of its samples.
        """
        columns = [self._of(name).get(group) for name in runs]
        present = [_by_group(column) if score.grouped else column for column in columns if column is not None]
        if len(present) < len(runs):
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

    def _of(self, run_id: str) -> dict[Group, _Column]:
        """Scores of a run by task and condition. Only the columns that a matrix needs are read."""
        if run_id not in self._columns:
            self._columns[run_id] = _columns(self._history, run_id)
        return self._columns[run_id]


def _columns(history: History, run_id: str) -> dict[Group, _Column]:
    sql = (
        "SELECT task, condition, coalesce(doc_key, '') AS key, coalesce(nullif(cluster, ''), nullif(image, ''), doc_key, '') AS cluster, "
        "coalesce(answer_type, '') AS type, question_id, score FROM sample WHERE run_id = ? ORDER BY task, condition, key"
    )
    table = history.result(sql, (run_id,)).to_arrow_table()
    names = {name: np.array(table[name].to_pylist(), dtype=str) for name in ("task", "condition", "key", "cluster", "type")}
    scores = table["score"].to_numpy().astype(np.float64)
    groups = np.arange(len(table)) if table["question_id"].null_count else table["question_id"].to_numpy() % ROTATION
    found = {}
    for task, condition in sorted(set(zip(names["task"].tolist(), names["condition"].tolist(), strict=True))):
        chosen = np.flatnonzero((names["task"] == task) & (names["condition"] == condition))
        found[task, condition] = _Column(
            keys=names["key"][chosen],
            groups=groups[chosen],
            clusters=names["cluster"][chosen],
            types=names["type"][chosen],
            scores=scores[chosen],
        )
    return found


def _by_group(column: _Column) -> _Column:
    """The rotations of each question as one sample: its first row, with the lowest score of them all."""
    _, first, of = np.unique(column.groups, return_index=True, return_inverse=True)
    lowest = np.full(len(first), np.inf)
    np.minimum.at(lowest, of, column.scores)
    order = np.argsort(first)
    place = first[order]
    return _Column(keys=column.keys[place], groups=column.groups[place], clusters=column.clusters[place], types=column.types[place], scores=lowest[order])
