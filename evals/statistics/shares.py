"""Shares: score intervals of rates, and of differences of two rates, when scores fall into few clusters.

Owns the design effect that is believed and the limits it leads to. Input: sums per cluster, the clustered standard error and the quantile of Student's t.
Output: 95 % limits, within 0..1 or -1..1, with width wherever anything is unknown.

A score interval asks which rates the data do not contradict, with the variance of *that* rate: near 0 and 1, and for few changed answers, it covers
where estimate +- t * stderr does not. Clusters come in as an effective sample size, n divided by the design effect (clustered variance over that of
independent answers). A design effect is known badly when the rarer answer sits in few clusters, so it is shrunk a little towards the greatest one
possible, that of answers which all agree inside a cluster.

Sources: Wilson 1927 (JASA 22:209) with the effective sample size and t quantile of surveys, Dean & Pagano 2015 (Journal of Survey Statistics and Methodology
3:484); Tango 1998 (Statistics in Medicine 17:891) for paired differences. The shrinkage is ours, chosen by simulation
(`tests/unit/evals/statistics/test_coverage.py`).
"""

from __future__ import annotations

import math

import numpy as np

SHRINKAGE = 0.1
"""Clusters that the greatest design effect is worth."""
_Z95 = 1.959963984540054
_STEPS = 60  # of a bisection: more digits than a float64 has


def share_limits(sums: np.ndarray, counts: np.ndarray, stderr: float, quantile: float) -> tuple[float, float]:
    """95 % limits of the rate sum(sums) / sum(counts), which lies between 0 and 1.

    sums, counts: float64 [num_clusters], 0 <= sums <= counts, at least two clusters. stderr: clustered; quantile: of Student's t.
    """
    total = float(counts.sum())
    value = float(sums.sum()) / total
    rarer = sums if value < 0.5 else counts - sums
    size = total / _design_effect(stderr**2, value * (1 - value) / total, rarer, counts)
    square = quantile**2
    centre = (value + square / (2 * size)) / (1 + square / size)
    half = quantile * math.sqrt(value * (1 - value) / size + square / (4 * size**2)) / (1 + square / size)
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_limits(up: np.ndarray, down: np.ndarray, counts: np.ndarray, stderr: float, quantile: float) -> tuple[float, float]:
    """95 % limits of (sum(up) - sum(down)) / sum(counts), the mean of paired differences.

    up, down: float64 [num_clusters], what the first side scored more and less than the second; at least two clusters. Where nothing changed, or everything
    in one way, the clusters count as the independent answers.
    """
    total, risen, fallen = float(counts.sum()), float(up.sum()), float(down.sum())
    value = (risen - fallen) / total
    alone = ((risen + fallen) / total - value**2) / total
    if alone <= 1e-12 / total:
        scale, quantile = len(counts) / total, _Z95
    else:
        scale = 1 / _design_effect(stderr**2, alone, up + down, counts)
    rates = risen * scale, fallen * scale, total * scale
    return _furthest(value, -1.0, rates, quantile), _furthest(value, 1.0, rates, quantile)


def _design_effect(variance: float, alone: float, rarer: np.ndarray, counts: np.ndarray) -> float:
    """Clustered variance over the variance `alone` of independent answers, shrunk; 1 where clusters do not differ at all.

    rarer: [num_clusters] answers of the rarer kind. The effective number of clusters that hold them says how well the design effect is known.
    """
    total = float(counts.sum())
    found = variance / alone if variance > 1e-12 * alone else 1.0
    greatest = float(np.sum(counts**2)) / total
    known = float(rarer.sum()) ** 2 / float(np.sum(rarer**2))
    return (known * found + SHRINKAGE * greatest) / (known + SHRINKAGE)


def _furthest(value: float, end: float, rates: tuple[float, float, float], quantile: float) -> float:
    """The difference nearest to `end` that the data do not contradict, by bisection from the observed one."""

    def allowed(difference: float) -> bool:
        return (value - difference) ** 2 <= quantile**2 * _variance(difference, *rates)

    if allowed(end):
        return end
    inside, outside = value, end
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if allowed(middle) else (inside, middle)
    return inside


def _variance(difference: float, risen: float, fallen: float, total: float) -> float:
    """Variance of the mean difference if `difference` were true: Tango 1998, with the share of falls that is then most likely."""
    linear = -risen - fallen + (2 * total - risen + fallen) * difference
    constant = -fallen * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear**2 - 8 * total * constant)) - linear) / (4 * total)
    return max(0.0, 2 * share + difference * (1 - difference)) / total
