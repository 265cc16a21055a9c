"""Jackknife: intervals of scores that are no mean, such as a distance between two sets of media or a corpus score.

Owns the delete-a-group jackknife over whole clusters. A bootstrap repeats samples, which moves distances between sets away from 0; leaving groups out does
not. Input: a score as a function of the rows that are kept; output: Interval.

Sources: Kott 2001 (Journal of Official Statistics 17:521), the delete-a-group jackknife; its interval is Student's with groups - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

from evals.statistics.intervals import Interval

MIN_GROUPS = 4
"""With fewer an interval says nothing."""


def groups_of(clusters: Sequence[str], groups: int, seed: int) -> np.ndarray:
    """int64 [N]: the group of each row; rows of one cluster share it, and clusters are dealt out in a seeded order."""
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    dealt = np.empty(len(names), np.int64)
    dealt[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % groups
    return dealt[index]


def jackknife_interval(score: Callable[[list[np.ndarray]], float], sides: Sequence[Sequence[str]], groups: int, seed: int) -> Interval:
    """The score of all rows with a 95 % interval.

    sides: the cluster of every row of each set that the score is of (one for a corpus, two for a distance); score: from the rows kept of each side (bool
    [N] each). In each round the same group of every side is left out. n and clusters are those of the first side. A score that no group moves has no
    interval: nothing says how much other media would move it.
    Raises ValueError when a side has fewer than MIN_GROUPS clusters.
    """
    found = [len(set(clusters)) for clusters in sides]
    count = min(groups, *found)
    if count < MIN_GROUPS:
        raise ValueError(f"an interval needs at least {MIN_GROUPS} independent items on every side, not {min(found)}")
    dealt = [groups_of(clusters, count, seed + side) for side, clusters in enumerate(sides)]
    value = score([np.ones(len(clusters), bool) for clusters in sides])
    left_out = np.array([score([of != group for of in dealt]) for group in range(count)])
    stderr = math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))
    half = float(student.ppf(0.975, count - 1)) * stderr
    low, high = (value - half, value + half) if stderr > 0 else (None, None)
    return Interval(value=value, ci_lo=low, ci_hi=high, stderr=stderr, n=len(sides[0]), clusters=found[0])
