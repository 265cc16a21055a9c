"""Significance: known p-values, exactness against enumeration, uniformity under the null, Holm by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from evals.nightly.comparison import paired_test
from evals.statistics.intervals import clustered_stderr, paired_interval
from evals.statistics.significance import detectable_difference, holm, mcnemar_exact, permutation_p


@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (0, 6), (3, 11), (10, 10), (59, 121), (800, 900)])
def test_mcnemar_is_the_two_sided_sign_test(up: int, down: int) -> None:
    n = up + down
    expected = min(Fraction(1), Fraction(2 * sum(math.comb(n, k) for k in range(min(up, down) + 1)), 2**n))
    assert mcnemar_exact(up, down) == pytest.approx(float(expected), rel=1e-12)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(6, 0) == pytest.approx(2 / 2**6)
    assert mcnemar_exact(1, 4) == pytest.approx(2 * (1 + 5) / 2**5)
    with pytest.raises(ValueError, match="counted from 0"):
        mcnemar_exact(-1, 2)


def _enumerated(sums: np.ndarray) -> float:
    reached = [abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-9 for signs in product((-1, 1), repeat=len(sums))]
    return float(np.mean(reached))


@pytest.mark.parametrize("grid", [1.0, 0.1, 1 / 3, None])
def test_permutation_equals_enumeration(grid: float | None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        sums = rng.normal(size=9) + 0.4
        sums = sums if grid is None else np.rint(sums / grid * 2) * grid
        p, how = permutation_p(sums)
        assert how == "permutation_exact"
        assert p == pytest.approx(_enumerated(sums))


def test_permutation_of_single_flips_is_mcnemar() -> None:
    sums = np.array([1.0] * 5 + [-1.0] * 17 + [0.0] * 80)
    assert permutation_p(sums)[0] == pytest.approx(mcnemar_exact(5, 17))
    assert permutation_p(np.zeros(4)) == (1.0, "permutation_exact")


def test_sampled_permutation_is_seeded_near_the_exact_one_and_never_zero() -> None:
    rng = np.random.default_rng(1)
    whole = rng.integers(-3, 5, size=40).astype(float)
    exact, _ = permutation_p(whole)
    sampled, how = permutation_p(whole * np.pi, draws=20000, seed=3)
    assert how == "permutation_sampled"
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20000) + 1e-4)
    assert (sampled, how) == permutation_p(whole * np.pi, draws=20000, seed=3)
    assert permutation_p(np.full(40, np.pi), draws=999)[0] == 1 / 1000


def _null(rng: np.random.Generator, soft: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two runs without a difference: 4 questions about each of 30 pictures, and a picture's answers flip together."""
    flips = rng.random(30) < 0.4
    direction = np.where(rng.random(30) < 0.5, 1.0, -1.0)
    size = rng.random((30, 4)) if soft else (rng.random((30, 4)) < 0.8).astype(float)
    difference = (flips * direction)[:, None] * size
    a = np.where(difference < 0, -difference, 0.0).ravel()
    return a, a + difference.ravel(), [str(i // 4) for i in range(120)]


@pytest.mark.parametrize("soft", [False, True])
def test_permutation_over_clusters_is_uniform_under_the_null(soft: bool) -> None:
    rng = np.random.default_rng(2)
    p = np.array([paired_test(*_null(rng, soft), draws=999, seed=trial)[0] for trial in range(500)])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 500)
    assert (p <= 0.2).mean() > 0.12
    assert (p <= 0.5).mean() > 0.4


def test_ignoring_clusters_would_reject_too_often() -> None:
    rng = np.random.default_rng(3)
    wrong, right = [], []
    for _ in range(300):
        a, b, clusters = _null(rng, soft=False)
        wrong.append(mcnemar_exact(int(np.sum(b > a)), int(np.sum(b < a))) < 0.05)
        p, test = paired_test(a, b, clusters)
        right.append(p < 0.05)
        assert test == "permutation_exact"
    assert np.mean(wrong) > 0.2
    assert np.mean(right) < 0.09


def test_mcnemar_is_chosen_when_flips_are_independent() -> None:
    a, b = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    assert paired_test(a, b, list("uvwxyz")) == (mcnemar_exact(1, 3), "mcnemar_exact")
    assert paired_test(a, b, list("uuwxyz"))[1] == "permutation_exact"
    assert paired_test(a * 0.3, b * 0.3, list("uvwxyz")) == (pytest.approx(mcnemar_exact(1, 3)), "permutation_exact")


def test_holm_by_hand() -> None:
    # smallest first: .01 * 4, .02 * 3, .03 * 2 (not below the one before), .2 * 1
    assert holm([0.03, 0.01, 0.02, 0.2]) == pytest.approx([0.06, 0.04, 0.06, 0.2])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_detectable_difference_is_found_at_the_stated_rate() -> None:
    # 2.8016 standard errors; 80 % of comparisons with that true difference are significant
    assert detectable_difference(0.01, 1000, binary=False) == pytest.approx(0.028016, abs=1e-6)
    assert detectable_difference(0.0, 1000, binary=True) == 6 / 1000
    assert detectable_difference(0.0, 1000, binary=False) is None
    rng = np.random.default_rng(4)

    def sums() -> np.ndarray:  # differences of 5 questions about each of 80 pictures, added up
        return (rng.normal(size=80)[:, None] + rng.normal(size=(80, 5))).sum(axis=1)

    truth = detectable_difference(float(np.mean([clustered_stderr(sums(), np.full(80, 5.0)) for _ in range(20)])), 400, binary=False)
    found = [permutation_p(sums() + 5 * truth, draws=499, seed=i)[0] < 0.05 for i in range(200)]
    assert 0.7 < np.mean(found) < 0.9


def test_paired_interval_covers() -> None:
    rng = np.random.default_rng(5)
    clusters, covered = [str(i // 4) for i in range(240)], 0
    for trial in range(200):
        shared = rng.normal(size=240)
        moved = shared + 0.3 + np.repeat(rng.normal(size=60), 4) + rng.normal(size=240)
        interval = paired_interval(moved, shared, clusters, draws=400, seed=trial)
        covered += interval.ci_lo <= 0.3 <= interval.ci_hi
    assert 180 <= covered <= 199
