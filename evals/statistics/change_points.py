"""Change points: from which night on is a score another one?

Owns the test for a lasting step in a series of nights, its location, and the rows of the change_point table. Input: one value per night, and where the
nights share their samples the scores themselves. Output: changes and rows of CHANGE_POINTS.

What makes nights differ is not the standard error of a score (that is about other questions, and every night asks the same ones) but that training again
flips single answers, and perhaps moves the whole model. The first part is known from the samples, cluster by cluster, after two nights
(`night_noise`, the paired variant); the rest shows only in the series, as excess of its night-to-night differences over that. So the known part
counts only as far as the series cannot be noisier than it (`_at_most`).

The statistic is the largest standardised difference between the means before and after any night (Sen & Srivastava 1975, Annals of Statistics 3:98), the
variance of a night the larger of the known one and half the mean square of the successive differences (von Neumann 1941, Annals of Mathematical
Statistics 12:367) but the one at the step. Its p comes from simulated series of the same length without a change. Further changes: the parts on
both sides are searched again (binary segmentation, Vostrikova 1981, Soviet Mathematics Doklady 24:55). `bench nights` measures
it beside E-divisive, thresholds and z-tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pyarrow as pa

CHANGE_POINTS = pa.schema(
    [
        ("series_id", pa.string()),
        ("recipe", pa.string()),
        ("task", pa.string()),
        ("condition", pa.string()),
        ("metric", pa.string()),
        ("subgroup", pa.string()),
        ("run_before", pa.string()),
        ("run_at", pa.string()),
        ("at", pa.timestamp("us")),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("delta", pa.float64()),
        ("p", pa.float64()),
        ("history_fingerprint", pa.string()),
    ]
)
"""run_before: the last run of the old level; run_at, at: the first of the new one; before, after: means of the stretches on both sides."""
LEVEL = 0.001
"""A change is reported when its p is below this: a series is searched again every night, so the level must be far below 5 %."""
DRAWS = 9999
NIGHTS, PAIRED_NIGHTS = 6, 3
"""The shortest stretch that is searched, without and with known noise: shares of right answers tie by chance, and two ties look like a series without noise."""
_TINY = 1e-18  # variance of a series without any noise, so that a step of it is not divided by nothing
_MEDIAN = NormalDist().inv_cdf(0.75) ** 2  # of chi-squared with one degree of freedom
_TRUST = 0.95  # of the upper bound of a night's variance
_RATIOS = 20  # the simulated null distributions are for known shares of the variance in steps of 1 / _RATIOS


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A lasting step in a series."""

    index: int
    """First night of the new level."""
    before: float
    """Mean since the change before it, or the start."""
    after: float
    """Mean until the next change, or the end."""
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """One point of a series."""

    run_id: str
    at: datetime
    value: float


def night_noise(scores: np.ndarray, clusters: Sequence[str]) -> float:
    """Variance of one night's mean from answers that flip between nights, cluster by cluster (the paired variant).

    scores: [nights, samples], the same samples every night; clusters: [samples]. Half the mean square of successive differences of each cluster's sum, added
    up over clusters: clusters flip independently unless the whole model moved, which shows in the series instead. 0.0 for a single night.
    """
    if len(scores) < 2:
        return 0.0
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row) for row in np.asarray(scores, dtype=np.float64)])
    return float(np.sum(np.diff(sums, axis=0) ** 2) / (2 * (len(sums) - 1)) / scores.shape[1] ** 2)


def retraining_sd(values: Sequence[float] | np.ndarray, noise: float) -> float:
    """Standard deviation of a night beyond its single answers: what the series moves more than `noise` (variance, of `night_noise`) explains.

    From the median of the squared successive differences, so that a step in the series does not count as noise. 0.0 for a single night.
    """
    steps = np.diff(np.asarray(values, dtype=np.float64))
    variance = float(np.median(steps**2)) / (2 * _MEDIAN) if len(steps) else 0.0
    return math.sqrt(max(0.0, variance - noise))


def find_changes(values: Sequence[float] | np.ndarray, *, noise: float = 0.0, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> list[Change]:
    """Lasting steps in `values` [nights], oldest first.

    noise: known variance of one night (`night_noise`); 0.0: nothing is known but the series. level: p below which a step is one. draws, seed: of the simulated
    null distribution; p is never below 1 / (draws + 1), so `level` must be above that (ValueError).
    """
    if level <= 1 / (draws + 1):
        raise ValueError(f"a level of {level} cannot be reached with {draws} draws: give at least {int(1 / level)}")
    array = np.asarray(values, dtype=np.float64)
    found: dict[int, float] = {}
    parts = [(0, len(array))]
    while parts:
        start, end = parts.pop()
        index, p = strongest_step(array[start:end], noise=noise, draws=draws, seed=seed)
        if p < level:
            found[start + index] = p
            parts += [(start, start + index), (start + index, end)]
    edges = [0, *sorted(found), len(array)]
    means = [float(array[lo:hi].mean()) for lo, hi in pairwise(edges)] if len(array) else []
    return [Change(index=index, before=means[i], after=means[i + 1], p=found[index]) for i, index in enumerate(sorted(found))]


def strongest_step(values: np.ndarray, *, noise: float = 0.0, draws: int = DRAWS, seed: int = 0) -> tuple[int, float]:
    """(first night after the strongest step, its p) of one stretch. (0, 1.0) for too few nights: then no step can be told from noise."""
    nights = len(values)
    if nights < (PAIRED_NIGHTS if noise > 0 else NIGHTS) or np.ptp(values) == 0:
        return 0, 1.0
    steps = _standardised(values[None, :], np.array([noise]))[0]
    index = int(np.argmax(steps))
    rest = np.delete(np.diff(values), index)
    known = int(_RATIOS * min(1.0, noise / _at_most(rest))) if noise > 0 else 0  # rounded down: less is taken for known than is
    null = _null(nights, known, draws, seed)
    reached = draws - int(np.searchsorted(null, steps[index] * (1 - 1e-12)))
    return index + 1, (reached + 1) / (draws + 1)


def _at_most(steps: np.ndarray) -> float:
    """What the variance of one night is at most, given differences of nights without a step: the upper end of a one-sided interval (`_TRUST`).

    Half the mean square of m successive differences has about 2 m / 3 degrees of freedom (von Neumann 1941); the quantile of chi-squared is that of
    Wilson & Hilferty 1931 (PNAS 17:684).
    """
    freedom = 2 * len(steps) / 3
    quantile = freedom * max(0.0, 1 - 2 / (9 * freedom) + NormalDist().inv_cdf(1 - _TRUST) * math.sqrt(2 / (9 * freedom))) ** 3
    return max(_TINY, float(np.mean(steps**2)) / 2 * freedom / max(quantile, _TINY))


def _standardised(series: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """|mean after - mean before| in standard errors for a step after each night: [S, nights] -> [S, nights - 1]; noise: known variance [S] or [1]."""
    nights = series.shape[1]
    before = np.arange(1, nights)
    sums = np.cumsum(series, axis=1)
    lower, total = sums[:, :-1] / before, sums[:, -1:]
    upper = (total - sums[:, :-1]) / (nights - before)
    squares = np.diff(series, axis=1) ** 2
    others = np.maximum(0.0, squares.sum(axis=1, keepdims=True) - squares) / (2 * (nights - 2))
    variance = np.maximum(np.maximum(noise[:, None], others), _TINY)
    return np.abs(upper - lower) / np.sqrt(variance * (1 / before + 1 / (nights - before)))


@lru_cache(maxsize=512)
def _null(nights: int, known: int, draws: int, seed: int) -> np.ndarray:
    """The strongest step of `draws` simulated series without one, sorted; known / _RATIOS of a night's variance is known."""
    series = np.random.default_rng((seed, nights)).standard_normal((draws, nights))
    return np.sort(_standardised(series, np.array([known / _RATIOS])).max(axis=1))


def segments(nights: Sequence[Night], annotations: Sequence[datetime]) -> list[Sequence[Night]]:
    """Cut a series where something was announced: each annotation starts a new segment with the first night at or after it."""
    cuts = sorted({sum(night.at < when for night in nights) for when in annotations} | {0, len(nights)})
    return [nights[lo:hi] for lo, hi in pairwise(cuts)]
