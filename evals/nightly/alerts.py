"""Alerts: which differences a person should hear of.

Owns the rule. Input: rows of comparisons and change points, and how much scores move when nothing changes. Output: alerts and notes, in order.

A drop is an alert when it is outside the noise band *and* bigger than the smallest relevant drop. The noise band of a comparison is the paired
test after Holm's correction; where enough nights went before, it also covers what training again does to the whole model (`retraining_sd`), which no
test on the samples of two runs can see. Improvements are notes, and so is what the history holds already: nobody hears of one drop twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from typing import Any

from evals.nightly.comparison import decides
from evals.statistics.change_points import LEVEL
from evals.statistics.intervals import Z95
from evals.suites.catalogue import full_marks


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What counts as worth telling."""

    level: float = 0.01
    """A comparison counts when its p, after Holm's correction, is below this: a nightly test at 5 % would cry wolf every month."""
    change_level: float = LEVEL
    """A change point counts when its p is below this."""
    smallest_drop: float = 0.01
    """Drops up to this are never an alert: a hundredth of what a share can reach, and one point of a metric that runs to 100."""
    smallest: Mapping[str, float] | None = None
    """Metric -> its own smallest relevant drop in its own unit, for metrics that are no share, e.g. {"coco_CIDEr": 0.05}."""
    nights: int = 6
    """From so many earlier nights on the spread between nights counts."""
    window: int = 60
    """Latest nights that are looked at."""

    def relevant(self, metric: str) -> float:
        """Smallest relevant drop of a metric, in its unit."""
        return (self.smallest or {}).get(metric, self.smallest_drop * full_marks(metric))


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """Something to tell."""

    kind: str
    """regression, below_baseline, change_point, improvement, not_compared, unpaired."""
    severity: str
    """alert: somebody should look; note: for the record."""
    text: str
    """One line."""
    run_id: str = ""
    task: str = ""
    condition: str = ""
    metric: str = ""
    delta: float = 0.0
    p: float = 1.0


COMPARED = ("run_a", "run_b", "task", "condition", "metric")
"""Columns that say what was compared with what."""
CHANGED = ("series_id", "run_at")
"""Columns that say where a change point is."""


def alerts_of_comparisons(
    rows: Sequence[Mapping[str, Any]],
    policy: Policy,
    *,
    spread: Mapping[tuple[str, str, str], float] | None = None,
    baselines: Mapping[str, str] | None = None,
    standing: frozenset[tuple[str, str, str, str]] = frozenset(),
    recorded: frozenset[tuple[str, ...]] = frozenset(),
) -> list[Alert]:
    """Alerts for rows of COMPARISONS, the newest run being run_b.

    spread: (task, condition, metric) -> retraining_sd, the standard deviation of a night beyond its single answers; absent: unknown. baselines: run_id -> name
    of pinned runs; a drop below one is `below_baseline`. standing: (baseline, task, condition, metric) that were below already the night before:
    those are notes, so that one drop alerts once. recorded: (run_a, run_b, task, condition, metric) that the history has already: notes too.
    """
    found = []
    for row in rows:
        if not decides(row) or row["p_adjusted"] >= policy.level or abs(row["delta"]) <= noise_band(row, policy, spread):
            continue
        place = {name: row[name] for name in ("task", "condition", "metric", "delta")}
        key = (row["run_a"], row["task"], row["condition"], row["metric"])
        pinned = (baselines or {}).get(row["run_a"])
        if row["delta"] > 0:
            kind, severity, verb = "improvement", "note", "rose"
        elif -row["delta"] <= policy.relevant(row["metric"]):
            continue
        else:
            kind = "below_baseline" if pinned else "regression"
            severity, verb = ("note", "is still lower") if key in standing else ("alert", "fell")
            severity = "note" if tuple(row[name] for name in COMPARED) in recorded else severity
        against = f"baseline {pinned}" if pinned else f"run {row['run_a']}"
        text = (
            f"{row['metric']} of {row['task']} ({row['condition']}) {verb} by {_points(abs(row['delta']))} "
            f"(95 %: {row['ci_lo']:+.4f} to {row['ci_hi']:+.4f}) against {against}: {row['flips_down']} of {row['n_paired']} samples worse, "
            f"{row['flips_up']} better; p {row['p_adjusted']:.2g} after Holm ({row['test']})"
        )
        found.append(Alert(kind=kind, severity=severity, text=text, run_id=row["run_b"], p=row["p_adjusted"], **place))
    return found


def noise_band(row: Mapping[str, Any], policy: Policy, spread: Mapping[tuple[str, str, str], float] | None) -> float:
    """Differences up to this are what two nights differ by without a reason; 0.0 when the spread between nights is unknown or nil (the test alone decides).

    The variances of the paired difference and of two nights' whole-model noise add up. Infinite for a difference without an interval.
    """
    night_sd = (spread or {}).get((row["task"], row["condition"], row["metric"]), 0.0)
    if night_sd <= 0:
        return 0.0
    if row["ci_lo"] is None or row["ci_hi"] is None:
        return math.inf
    stderr = (row["ci_hi"] - row["ci_lo"]) / (2 * Z95)
    return NormalDist().inv_cdf(1 - policy.level / 2) * math.sqrt(stderr**2 + 2 * night_sd**2)


def alerts_of_changes(
    rows: Sequence[Mapping[str, Any]],
    policy: Policy,
    *,
    better: Mapping[str, bool | None],
    run_id: str,
    recorded: frozenset[tuple[str, ...]] = frozenset(),
) -> list[Alert]:
    """Alerts for rows of CHANGE_POINTS that the newest run `run_id` brought to light.

    better: metric -> whether more of it is better, None: unknown. recorded: (series_id, run_at) that the history has already: those are notes.
    """
    found = []
    for row in rows:
        if row["p"] >= policy.change_level:
            continue
        direction = better.get(row["metric"])
        worse = direction is not None and (row["delta"] < 0) == direction
        relevant = abs(row["delta"]) > policy.relevant(row["metric"])
        fresh = tuple(row[name] for name in CHANGED) not in recorded
        text = (
            f"{row['metric']} of {row['task']} ({row['condition']}, {row['subgroup']}) moved from {_points(row['before'])} to {_points(row['after'])} "
            f"with run {row['run_at']} ({_when(row['at'])}) and stayed there; p {row['p']:.2g}"
        )
        found.append(
            Alert(
                kind="change_point",
                severity="alert" if worse and relevant and fresh else "note",
                text=text,
                run_id=run_id,
                **{name: row[name] for name in ("task", "condition", "metric", "delta", "p")},
            )
        )
    return found


def _points(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "time unknown"
