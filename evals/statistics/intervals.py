"""Statistics: intervals for means of scores that share images.

Owns 95 % intervals of means, of ratios and of paired differences over clusters (images, media), because questions about one image are not
independent. Input: plain numpy arrays. Output: Interval. Raises ValueError for no scores and for sides of different length.

Standard errors are cluster-robust (CR2), with the degrees of freedom that belong to few clusters of unequal size. Shares take a score interval
(evals/statistics/shares.py); scores without bounds take a studentized bootstrap of whole clusters, which follows their skewness. One cluster has no
interval: nothing says how much another one would differ. `tests/unit/evals/statistics/test_coverage.py` measures what the intervals hold.

Sources: CR2 and degrees of freedom, Bell & McCaffrey 2002 (Survey Methodology 28:169), as Imbens & Kolesar 2016 (Review of Economics and Statistics
98:701, section III) write them for a mean; bootstrap-t, Efron & Tibshirani 1993 chapter 12, of clusters, Cameron, Gelbach & Miller 2008 (Review of
Economics and Statistics 90:414); clustered errors and paired differences of evaluations, Miller 2024 (arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from evals.statistics.shares import difference_limits, share_limits

Z95 = 1.959963984540054
Limits = tuple[float, float] | None

_BLOCK = 1 << 21  # elements of one block of the resampling matrix
_NO_SPREAD = 1e-9  # a standard error below this part of the scores' own is rounding, and so is a share that is so near to 0 or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    value: float
    ci_lo: float | None
    """None where there is no interval: one cluster, or scores without any spread whose bounds are not known."""
    ci_hi: float | None
    stderr: float | None
    """None with one cluster."""
    n: int
    """Scores."""
    clusters: int
    """Independent groups the scores fall into."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion; never leaves [0, 1] and has width at 0 and n. Raises ValueError for n < 1 or successes that are no count.

    Wilson 1927 (JASA 22:209).
    """
    if n < 1 or not 0 <= successes <= n or successes != round(successes):
        raise ValueError(f"a proportion needs a whole number of successes from 0 to n and n >= 1, not {successes} of {n}")
    found = binomtest(round(successes), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def cluster_sums(values: np.ndarray, weights: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of values and of weights in each cluster, ordered by cluster name: two float64 arrays [num_clusters]."""
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index, weights=weights)


def clustered_stderr(sums: np.ndarray, counts: np.ndarray) -> float:
    """Standard error (CR2) of the ratio sum(sums) / sum(counts), with residuals added up inside clusters. Raises ValueError for fewer than two clusters.

    sums, counts: [num_clusters]. The squared residual of a cluster counts 1 / (1 - its part of the counts) times: with C clusters of one size C / (C - 1)
    times, so that clusters of size one give the ordinary standard error of a mean.
    """
    if np.count_nonzero(counts) < 2:
        raise ValueError("a standard error needs at least two clusters: with one nothing says how much another one would differ")
    total = counts.sum()
    residuals = sums - counts * (sums.sum() / total)
    return float(np.sqrt(np.sum(residuals**2 / (1 - counts / total))) / total)


def degrees_of_freedom(counts: np.ndarray) -> float:
    """Satterthwaite degrees of freedom of `clustered_stderr` for independent scores (Bell & McCaffrey): C - 1 for C clusters of one size, fewer otherwise.

    counts: [num_clusters] of at least two clusters, none of them 0.
    """
    total = counts.sum()
    scale = 1 / (1 - counts / total)
    own, shared = scale * counts, scale * counts**2 / total  # the residuals' covariance is diag(own) - sqrt(shared) sqrt(shared)'
    squares = np.sum(own**2) - 2 * np.sum(own * shared) + np.sum(shared) ** 2
    return float((np.sum(own) - np.sum(shared)) ** 2 / squares)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    proportion: bool = False,
) -> Interval:
    """Mean of `values` (or sum(values) / sum(weights)) with a 95 % interval over clusters.

    values, clusters, weights: one entry per score. proportion: the scores are shares in [0, 1] (of their weight), whose interval stays there and has
    width when they are all alike. draws, seed: of the bootstrap that other scores take. Raises ValueError for no scores, and for shares outside [0, 1].
    """
    array, divisor = _checked(values, clusters, weights)
    sums, counts = _counted(*cluster_sums(array, divisor, clusters))
    value = float(sums.sum() / counts.sum())
    if proportion and not (np.all(array >= -1e-9 * divisor) and np.all(array <= (1 + 1e-9) * divisor)):
        raise ValueError(f"shares lie from 0 to 1, not from {array.min()} to {array.max()}")
    limits: Limits = None
    if len(sums) > 1:
        limits = _share(sums, counts) if proportion else _mean(array, divisor, sums, counts, draws, seed)
    return _interval(value, limits, sums, counts, len(array))


def paired_interval(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    proportion: bool = False,
) -> Interval:
    """Mean of first - second over the same items with a 95 % interval over clusters (paired, Miller 2024 section 4).

    proportion: both sides are shares in [0, 1], so the difference stays in [-1, 1], and two sides that agree everywhere still have an interval.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired scores need the same items on both sides, not {len(a)} and {len(b)}")
    if not proportion:
        return mean_interval(a - b, clusters, weights=weights, draws=draws, seed=seed)
    difference, divisor = _checked(a - b, clusters, weights)
    if np.any(np.abs(difference) > (1 + 1e-9) * divisor):
        raise ValueError(f"differences of shares lie from -1 to 1, not from {difference.min()} to {difference.max()}")
    sums, counts = _counted(*cluster_sums(difference, divisor, clusters))
    up, _ = _counted(*cluster_sums(np.maximum(difference, 0), divisor, clusters))
    limits: Limits = None
    if len(sums) > 1:
        limits = difference_limits(up, up - sums, counts, clustered_stderr(sums, counts), _quantile(counts))
    return _interval(float(sums.sum() / counts.sum()), limits, sums, counts, len(difference))


def ratio_interval(values: Sequence[float], weights: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """sum(values) / sum(weights) of a rate within 0..1 with a 95 % interval; n counts the weights. None when the weights are all 0.

    values: from 0 to the weight of their score. Clusters without weight are no clusters of this rate.
    """
    if not np.sum(weights):
        return None
    found = mean_interval(values, clusters, weights=weights, proportion=True)
    return Interval(value=found.value, ci_lo=found.ci_lo, ci_hi=found.ci_hi, stderr=found.stderr, n=round(float(np.sum(weights))), clusters=found.clusters)


def known_interval(values: Sequence[float] | np.ndarray, clusters: Sequence[str], *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of scores that follow from the questions alone, such as chance. Where they are all the same, it is known exactly: its interval has no width."""
    found = mean_interval(values, clusters, draws=draws, seed=seed)
    if np.ptp(np.asarray(values, dtype=np.float64)) > 0:
        return found
    return Interval(value=found.value, ci_lo=found.value, ci_hi=found.value, stderr=0.0, n=found.n, clusters=found.clusters)


def _checked(values: Sequence[float] | np.ndarray, clusters: Sequence[str], weights: Sequence[float] | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or len(array) != len(clusters):
        raise ValueError(f"an interval needs one cluster per score and at least one score, not {len(array)} and {len(clusters)}")
    return array, np.ones_like(array) if weights is None else np.asarray(weights, dtype=np.float64)


def _counted(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Only clusters that have weight."""
    return sums[counts > 0], counts[counts > 0]


def _interval(value: float, limits: Limits, sums: np.ndarray, counts: np.ndarray, n: int) -> Interval:
    stderr = clustered_stderr(sums, counts) if len(sums) > 1 else None
    low, high = (min(limits[0], value), max(limits[1], value)) if limits else (None, None)
    return Interval(value=value, ci_lo=low, ci_hi=high, stderr=stderr, n=n, clusters=len(sums))


def _quantile(counts: np.ndarray) -> float:
    return float(student.ppf(0.975, degrees_of_freedom(counts)))


def _share(sums: np.ndarray, counts: np.ndarray) -> Limits:
    """All right or all wrong: Wilson's interval over the clusters, the independent units."""
    value = float(sums.sum() / counts.sum())
    if min(value, 1 - value) < _NO_SPREAD:
        return wilson(round(value) * len(sums), len(sums))
    return share_limits(sums, counts, clustered_stderr(sums, counts), _quantile(counts))


def _mean(values: np.ndarray, weights: np.ndarray, sums: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> Limits:
    """Bootstrap-t; where the draws do not determine it, Student's. None for scores without any spread.

    Clusters that all have one mean say nothing about the spread between clusters: then the scores count as independent.
    """
    value, stderr = float(sums.sum() / counts.sum()), clustered_stderr(sums, counts)
    residuals = values - weights * value
    alone = math.sqrt(float(np.sum(residuals**2)) * len(values) / max(1, len(values) - 1)) / float(counts.sum())
    if alone <= _NO_SPREAD * abs(value):
        return None
    half = _quantile(counts) * (stderr if stderr > _NO_SPREAD * alone else alone)
    low, high = (value - half, value + half)
    if stderr > _NO_SPREAD * alone:
        least, most = np.quantile(_studentized(sums, counts, draws, seed), (0.025, 0.975), method="nearest")
        if np.isfinite(least) and np.isfinite(most):
            low, high = value - float(most) * stderr, value - float(least) * stderr
    return low, high


def _studentized(sums: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(mean of a resample - mean) / its standard error of `draws` resamples of whole clusters, float64 [draws], seeded; infinite where it has no spread."""
    clusters, value = len(sums), sums.sum() / counts.sum()
    least = _NO_SPREAD * clustered_stderr(sums, counts)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // clusters)
    found = []
    for start in range(0, draws, block):
        picks = generator.integers(0, clusters, size=(min(block, draws - start), clusters))
        drawn, weight = sums[picks], counts[picks]
        total = weight.sum(axis=1, keepdims=True)
        mean = drawn.sum(axis=1, keepdims=True) / total
        stderr = np.sqrt(((drawn - weight * mean) ** 2 / (1 - weight / total)).sum(axis=1)) / total[:, 0]
        moved = mean[:, 0] - value
        found.append(np.where(stderr > least, moved / np.maximum(stderr, least), np.copysign(np.inf, moved)))
    return np.concatenate(found)


def derangement(groups: Sequence[tuple[str, ...]], seed: int) -> list[int]:
    """A seeded permutation p where item p[i] differs from item i in *every* component of its group, e.g. (media, caption).

    groups: one tuple of labels per item. Conflicts of a random permutation are repaired by swaps. Raises ValueError when some label
    is carried by more than half of the items, so that no such permutation can exist, or none was found.
    """
    generator = np.random.default_rng(seed)
    order = [int(i) for i in generator.permutation(len(groups))]

    def clash(i: int, j: int) -> bool:
        return any(a == b for a, b in zip(groups[i], groups[j], strict=True))

    for _ in range(20):
        wrong = [i for i in range(len(order)) if clash(i, order[i])]
        if not wrong:
            return order
        for i in wrong:
            for j in (int(x) for x in generator.permutation(len(order))):
                if not clash(i, order[j]) and (not clash(j, order[i])):
                    order[i], order[j] = order[j], order[i]
                    break
    raise ValueError(f"{len(groups)} items cannot be shuffled so that each meets a different media and text: add samples with other captions")
