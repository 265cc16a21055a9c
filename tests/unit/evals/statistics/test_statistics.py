"""Statistics: textbook values, coverage of the cluster bootstrap, pairing, derangements."""

from __future__ import annotations

import numpy as np
import pytest

from evals.statistics.intervals import clustered_stderr, derangement, mean_interval, paired_interval, wilson


def test_wilson_textbook_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="n >= 1"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="whole number of successes"):
        wilson(0.5, 3)


def test_wilson_is_its_formula_to_the_last_digits() -> None:
    z = 1.959963984540054
    for n, successes in ((1, 1), (7, 3), (148, 15), (25_000, 8_333)):
        share, scale = successes / n, 1 + z * z / n
        centre, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
        assert wilson(successes, n) == pytest.approx(((centre - half) / scale, min(1.0, (centre + half) / scale)), abs=1e-12)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0


def test_clusters_of_one_give_the_ordinary_standard_error() -> None:
    values = np.random.default_rng(0).random(50)
    assert clustered_stderr(values, np.ones(50)) == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    sums, counts = values.reshape(10, 5).sum(axis=1), np.full(10, 5.0)
    old = np.sqrt(np.sum((sums - 5 * values.mean()) ** 2)) / 50  # without C / (C - 1)
    assert clustered_stderr(sums, counts) == pytest.approx(old * np.sqrt(10 / 9))
    with pytest.raises(ValueError, match="two clusters"):
        clustered_stderr(np.array([3.0]), np.array([5.0]))


def test_identical_questions_of_a_picture_count_once() -> None:
    values = [0.0, 1.0] * 20
    names = [str(i) for i in range(40)]
    once = mean_interval(values, names)
    repeated = mean_interval([v for v in values for _ in range(5)], [n for n in names for _ in range(5)])
    assert repeated.value == once.value == 0.5
    assert repeated.stderr == pytest.approx(once.stderr)
    assert (repeated.ci_lo, repeated.ci_hi) == pytest.approx((once.ci_lo, once.ci_hi))
    assert (repeated.n, repeated.clusters) == (200, 40)


def test_interval_covers_and_is_seeded() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        picture = rng.normal(size=40)
        values = (picture[:, None] + rng.normal(size=(40, 4))).ravel()
        interval = mean_interval(values, [str(i // 4) for i in range(160)], draws=400, seed=trial)
        covered += interval.ci_lo <= 0 <= interval.ci_hi
    assert 181 <= covered <= 199  # 95 % of 200
    once, again = (mean_interval(values, [str(i // 4) for i in range(160)], seed=3) for _ in range(2))
    assert once == again


def test_a_perfect_score_still_has_an_interval() -> None:
    interval = mean_interval([1.0] * 30, [str(i // 2) for i in range(30)], proportion=True)
    assert interval.ci_hi == 1.0
    assert interval.ci_lo == pytest.approx(wilson(15, 15)[0])


def test_weighted_mean_is_a_ratio_of_sums() -> None:
    assert mean_interval([6.0, 2.0], ["a", "b"], weights=[3, 1]).value == 2.0


def test_pairing_removes_what_both_sides_share() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(scale=10, size=100)
    first, second = shared + 0.5 + rng.normal(scale=0.1, size=100), shared
    interval = paired_interval(first, second, [str(i) for i in range(100)])
    assert 0.45 < interval.ci_lo < interval.ci_hi < 0.55
    with pytest.raises(ValueError, match="same items"):
        paired_interval([1.0], [1.0, 2.0], ["a"])


def test_derangement_differs_in_every_label() -> None:
    groups = [(f"media{i // 3}", f"caption{i % 7}") for i in range(60)]
    order = derangement(groups, seed=0)
    assert sorted(order) == list(range(60))
    assert all(groups[i][0] != groups[j][0] and groups[i][1] != groups[j][1] for i, j in enumerate(order))
    assert order == derangement(groups, seed=0) != derangement(groups, seed=1)
    with pytest.raises(ValueError, match="cannot be shuffled"):
        derangement([("m", "a"), ("n", "a")], seed=0)
