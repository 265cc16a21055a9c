"""Significance: is a difference between two sets of scores on the same items more than chance?

Owns McNemar's exact test, the paired permutation test over clusters, Holm's correction and the smallest difference a comparison could have
shown. Input: plain numbers. Output: p-values and differences.

The permutation test swaps the two sides of a whole cluster (an image with all its questions), so questions about one image count as one. McNemar's
test is its special case for answers that are right or wrong when no two changed answers share a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest

GRID = 30
"""Scores are multiples of 1 / GRID: right or wrong, and VQA's soft accuracy (means of thirds over ten annotators)."""
ENUMERATED = 16
"""Up to so many changed clusters every swap is tried when the scores lie on no grid."""
_CELLS = 1 << 28  # additions of one exact distribution
_BLOCK = 1 << 22  # elements of one block of sign flips
SIGN_TEST_FLIPS = 6
"""The fewest changed answers, all one way, that a two-sided sign test calls significant at 5 %: 2 / 2**6 = 0.031."""


def mcnemar_exact(up: int, down: int) -> float:
    """Two-sided exact p of McNemar's test: up and down are the answers that changed one way and the other (binomial with 1/2).

    McNemar 1947 (Psychometrika 12:153). 1.0 when nothing changed. Raises ValueError for negative counts.
    """
    if up < 0 or down < 0:
        raise ValueError(f"changed answers are counted from 0, not {up} and {down}")
    return float(binomtest(min(up, down), up + down, 0.5).pvalue) if up + down else 1.0


def permutation_p(sums: Sequence[float] | np.ndarray, *, draws: int = 9999, seed: int = 0) -> tuple[float, str]:
    """Two-sided p of the paired permutation test over clusters, and how it was found: "permutation_exact" or "permutation_sampled".

    sums: [num_clusters] sum of the differences in each cluster. Under the null hypothesis each sum is as likely to have the other sign (Fisher 1935, The
    Design of Experiments, section 21). Exact for scores on a grid (the distribution of the signed sum is built cluster by cluster, as Pagano & Tritchler
    1983, JASA 78:435, do by transforms) and for few clusters; otherwise `draws` seeded sign flips, with the observed one among them (Phipson & Smyth
    2010, SAGMB 9:39), so that p is never 0.
    """
    array = np.asarray(sums, dtype=np.float64)
    steps = np.rint(array * GRID)
    if np.allclose(array * GRID, steps, rtol=0, atol=1e-6):
        whole = np.abs(steps[steps != 0]).astype(np.int64)
        unit = int(np.gcd.reduce(whole)) if len(whole) else 1
        if len(whole) * int(whole.sum()) // unit <= _CELLS:
            return _exact_p(whole // unit, abs(int(np.rint(steps.sum()))) // unit), "permutation_exact"
    changed = array[np.abs(array) > 1e-12]
    observed = abs(changed.sum()) * (1 - 1e-9)  # sums that differ by rounding alone are ties
    if len(changed) <= ENUMERATED:
        signs = 1 - 2 * ((np.arange(1 << len(changed))[:, None] >> np.arange(len(changed))) & 1)
        return float(np.mean(np.abs(signs @ changed) >= observed)), "permutation_exact"
    generator, reached, left = np.random.default_rng(seed), 0, draws
    while left:
        block = min(left, max(1, _BLOCK // len(changed)))
        signs = 1 - 2 * generator.integers(0, 2, size=(block, len(changed)), dtype=np.int8)
        reached += int(np.sum(np.abs(signs @ changed) >= observed))
        left -= block
    return (reached + 1) / (draws + 1), "permutation_sampled"


def _exact_p(whole: np.ndarray, observed: int) -> float:
    """Share of sign patterns of the positive integers `whole` whose sum is at least `observed` in size."""
    total = int(whole.sum())
    chance = np.zeros(total + 1)  # of the sum of those that keep their sign
    chance[0] = 1.0
    end = 1
    for step in sorted(int(w) for w in whole):
        kept = chance[:end].copy()
        chance[:end] *= 0.5
        chance[step : step + end] += 0.5 * kept
        end += step
    reached = np.abs(2 * np.arange(total + 1) - total) >= observed
    return min(1.0, float(chance[reached].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the same order: rejecting those below a level keeps the chance of any false rejection below it.

    Holm 1979 (Scandinavian Journal of Statistics 6:65): the i-th smallest of m is multiplied by m - i, never decreasing, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def detectable_difference(stderr: float | None, n: int, *, binary: bool, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The true difference that a two-sided test at `alpha` finds with chance `power`: (z(1 - alpha/2) + z(power)) * stderr.

    stderr: clustered, of the paired difference (Miller 2024, arXiv 2411.00640, sections 4 and 5; the multiple of the standard error is Bloom 1995, Evaluation
    Review 19:547). For right-or-wrong answers never below SIGN_TEST_FLIPS / n, because fewer flips are never significant at 5 %. None with one cluster, which
    has no standard error, and when no score changed and the scores are soft: then there is no spread to judge by.
    """
    if stderr is None:
        return None
    normal = NormalDist()
    found = (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * stderr
    if binary:
        return max(found, SIGN_TEST_FLIPS / n)
    return found if stderr > 0 else None
