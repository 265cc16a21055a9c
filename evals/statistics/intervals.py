"""Statistics: intervals for means of scores that share images.

Owns Wilson intervals, cluster-robust standard errors, and seeded bootstraps that resample whole clusters (images,
media), because questions about one image are not independent. Input: plain numpy arrays. Output: Interval.

Sources: Wilson 1927 (JASA 22:209); percentile bootstrap, Efron & Tibshirani 1993 chapter 13; resampling clusters, Field & Welsh
2007 (JRSS B 69:369); clustered standard error and paired differences, Miller 2024 (arXiv 2411.00640, equation 4 and section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


def ratio_interval(values: Sequence[float], weights: Sequence[float], clusters: Sequence[str], draws: int, seed: int) -> Interval | None:
    """sum(values) / sum(weights) of a rate within 0..1 with a 95 % bootstrap over clusters; n counts the weights. None when the weights are all 0.

    Resamples whose weights are all 0 are left out. At 0 or 1, where a bootstrap has no width, Wilson's interval over the clusters that have weight.
    """
    sums, counts = cluster_sums(np.asarray(values, np.float64), np.asarray(weights, np.float64), clusters)
    if not counts.sum():
        return None
    value = float(sums.sum() / counts.sum())
    with np.errstate(invalid="ignore"):
        ratios = bootstrap_ratios(sums, counts, draws, seed)
    low, high = (float(q) for q in np.quantile(ratios[np.isfinite(ratios)], (0.025, 0.975)))
    used = int((counts > 0).sum())
    if value in (0.0, 1.0):
        low, high = wilson(value * used, used)
    number = round(float(counts.sum()))
    return Interval(value=value, ci_lo=min(low, value), ci_hi=max(high, value), stderr=clustered_stderr(sums, counts), n=number, clusters=used)


Z95 = 1.959963984540054

_BLOCK = 1 << 22  # elements of one block of the resampling matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    value: float
    ci_lo: float
    ci_hi: float
    stderr: float
    n: int
    """Scores."""
    clusters: int
    """Independent groups the scores fall into."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion; never leaves [0, 1] and has width at 0 and n. Raises ValueError for n < 1 or successes that are no count."""
    if n < 1 or not 0 <= successes <= n or successes != round(successes):
        raise ValueError(f"a proportion needs a whole number of successes from 0 to n and n >= 1, not {successes} of {n}")
    found = binomtest(round(successes), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def cluster_sums(values: np.ndarray, weights: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of values and of weights in each cluster, ordered by cluster name: two float64 arrays [num_clusters]."""
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index, weights=weights)


def clustered_stderr(sums: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of the ratio sum(sums) / sum(counts) with residuals added up inside clusters (Miller 2024, eq. 4).

    sums, counts: [num_clusters]. Clusters of size one give the ordinary standard error of a mean (population variance).
    """
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(np.sqrt(np.sum(residuals**2)) / counts.sum())


def bootstrap_ratios(sums: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Ratios sum(sums) / sum(counts) of `draws` resamples of whole clusters with replacement, float64 [draws], seeded."""
    clusters = len(sums)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // clusters)
    ratios = []
    for start in range(0, draws, block):
        picks = generator.integers(0, clusters, size=(min(block, draws - start), clusters))
        ratios.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    return np.concatenate(ratios)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    proportion: bool = False,
) -> Interval:
    """Mean of `values` (or sum(values) / sum(weights)) with a 95 % percentile bootstrap interval over clusters.

    values, clusters, weights: one entry per score. proportion: the scores lie in [0, 1]; when every cluster has the same mean of 0
    or 1 a bootstrap has no width, so the Wilson interval over the *clusters* (the independent units) stands in.
    Raises ValueError for no scores.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or len(array) != len(clusters):
        raise ValueError(f"an interval needs one cluster per score and at least one score, not {len(array)} and {len(clusters)}")
    divisor = np.ones_like(array) if weights is None else np.asarray(weights, dtype=np.float64)
    sums, counts = cluster_sums(array, divisor, clusters)
    value = float(sums.sum() / counts.sum())
    ratios = bootstrap_ratios(sums, counts, draws, seed)
    low, high = (float(q) for q in np.quantile(ratios, (0.025, 0.975)))
    if proportion and value in (0.0, 1.0):
        low, high = wilson(value * len(sums), len(sums))
    return Interval(value=value, ci_lo=min(low, value), ci_hi=max(high, value), stderr=clustered_stderr(sums, counts), n=len(array), clusters=len(sums))


def paired_interval(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of first - second over the same items with a 95 % cluster bootstrap interval (paired, Miller 2024 section 4)."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired scores need the same items on both sides, not {len(a)} and {len(b)}")
    return mean_interval(a - b, clusters, weights=weights, draws=draws, seed=seed)


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
