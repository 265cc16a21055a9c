"""What the intervals hold: simulations of few clusters, equal and unequal, with answers that agree inside a cluster."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evals.statistics.intervals import Interval, degrees_of_freedom, known_interval, mean_interval, paired_interval, ratio_interval, wilson

SIZES = {
    "10 of 5": [5] * 10,
    "10 of 1 to 10": [1, 2, 2, 3, 4, 5, 6, 7, 8, 10],
    "16 of 1 to 16": list(range(1, 17)),
    "24 of 6": [6] * 24,
    "24 of 1 to 8": [1, 2, 3, 4, 6, 8] * 4,
    "60 of 4": [4] * 60,
}
TRIALS = 1500
ERROR = 3 * (0.05 * 0.95 / TRIALS) ** 0.5
"""Three standard errors of a simulated coverage."""


def names_of(sizes: list[int]) -> list[str]:
    return [f"image {number}" for number, size in enumerate(sizes) for _ in range(size)]


def coverage(draw: Callable[[], Interval], truth: float, trials: int = TRIALS) -> float:
    found = [draw() for _ in range(trials)]
    return float(np.mean([one.ci_lo is not None and one.ci_hi is not None and one.ci_lo - 1e-12 <= truth <= one.ci_hi + 1e-12 for one in found]))


@pytest.mark.slow
@pytest.mark.parametrize("agreement", [0.02, 0.1, 0.3], ids=lambda icc: f"icc {icc}")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_rates_are_covered_from_ten_clusters_on(sizes: list[int], agreement: float) -> None:
    """94 to 96 % at rates of 0.5 and 0.8; never less at 0.95, where so few answers are wrong that no interval can be exact."""
    rng = np.random.default_rng([len(sizes), sum(sizes), int(100 * agreement)])
    clusters = names_of(sizes)
    found = {}
    for rate in (0.5, 0.8, 0.95):
        shape = rate * (1 - agreement) / agreement, (1 - rate) * (1 - agreement) / agreement

        def draw(shape: tuple[float, float] = shape) -> Interval:
            chances = np.repeat(rng.beta(*shape, size=len(sizes)), sizes)
            return mean_interval((rng.random(len(chances)) < chances).astype(float), clusters, proportion=True)

        found[rate] = coverage(draw, rate)
    assert all(0.94 - ERROR <= share for share in found.values()), found
    assert found[0.5] <= 0.96 + ERROR and found[0.8] <= 0.96 + ERROR, found


@pytest.mark.slow
@pytest.mark.parametrize("agreement", [0.02, 0.2], ids=lambda icc: f"icc {icc}")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize(("risen", "fallen"), [(0.15, 0.15), (0.25, 0.1), (0.05, 0.02)])
def test_paired_differences_are_covered_from_ten_clusters_on(sizes: list[int], agreement: float, risen: float, fallen: float) -> None:
    rng = np.random.default_rng([len(sizes), sum(sizes), int(100 * agreement), int(100 * risen)])
    clusters = names_of(sizes)
    shape = np.array([risen, fallen, 1 - risen - fallen]) * (1 - agreement) / agreement

    def draw() -> Interval:
        chances = np.repeat(rng.dirichlet(shape, size=len(sizes)), sizes, axis=0)
        which = rng.random(len(chances))
        up, down = which < chances[:, 0], which > 1 - chances[:, 1]
        return paired_interval(up.astype(float), down.astype(float), clusters, proportion=True)

    assert coverage(draw, risen - fallen, TRIALS // 2) >= 0.94 - 1.5 * ERROR


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [10, 24])
def test_scores_without_bounds_are_covered(clusters: int) -> None:
    """Normal ones, and skewed ones better than by Student's t, which holds 85 to 90 % here."""
    rng = np.random.default_rng(clusters)
    names = names_of([4] * clusters)

    def normal() -> Interval:
        return mean_interval((rng.normal(size=(clusters, 1)) + rng.normal(size=(clusters, 4))).ravel(), names, draws=999, seed=int(rng.integers(1 << 30)))

    def skewed() -> Interval:
        values = np.exp(0.7 * rng.normal(size=(clusters, 1)) + 0.7 * rng.normal(size=(clusters, 4))).ravel()
        return mean_interval(values, names, draws=999, seed=int(rng.integers(1 << 30)))

    assert coverage(normal, 0.0, 1000) >= 0.93
    assert coverage(skewed, float(np.exp(0.49)), 1000) >= 0.90


def test_degrees_of_freedom_are_those_of_the_residuals_covariance() -> None:
    for counts in ([1.0, 1, 2, 3, 8], [4.0] * 10, [0.5, 2.5, 7, 11, 11, 40]):
        array = np.array(counts)
        total, scale = array.sum(), 1 / np.sqrt(1 - array / array.sum())
        covariance = scale[:, None] * (np.diag(array) - np.outer(array, array) / total) * scale[None, :]
        assert degrees_of_freedom(array) == pytest.approx(np.trace(covariance) ** 2 / np.sum(covariance**2))
    assert degrees_of_freedom(np.full(10, 3.0)) == pytest.approx(9)


def test_no_interval_has_no_width_but_what_is_known() -> None:
    clusters = names_of([2] * 12)
    alike = [1.0, 0.0] * 12
    for found in (
        mean_interval(alike, clusters, proportion=True),
        mean_interval(alike, clusters),
        mean_interval([0.5] * 24, clusters, proportion=True),
        mean_interval([1.0] * 24, clusters, proportion=True),
        mean_interval([0.0] * 24, clusters, proportion=True),
        paired_interval(alike, alike, clusters, proportion=True),
        paired_interval([1.0] * 24, [0.0] * 24, clusters, proportion=True),
        paired_interval(alike, [0.0] * 24, clusters, proportion=True),
        ratio_interval(alike, [1.0] * 24, clusters),
    ):
        assert found is not None and found.ci_lo is not None and found.ci_hi is not None
        assert found.ci_hi - found.ci_lo > 0.1 and found.ci_lo <= found.value <= found.ci_hi
    assert mean_interval([0.5] * 24, clusters).ci_lo is None  # without bounds and without spread nothing is known
    assert paired_interval([2.5] * 24, [1.0] * 24, clusters).ci_hi is None
    chance = known_interval([0.25] * 24, clusters)
    assert (chance.ci_lo, chance.ci_hi) == (0.25, 0.25)


def test_one_cluster_has_no_interval() -> None:
    for values in ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0]):
        for proportion in (True, False):
            found = mean_interval(values, ["image"] * 3, proportion=proportion)
            assert (found.ci_lo, found.ci_hi, found.stderr, found.clusters) == (None, None, None, 1)
            pair = paired_interval(values, [0.0] * 3, ["image"] * 3, proportion=proportion)
            assert (pair.ci_lo, pair.ci_hi, pair.stderr) == (None, None, None)
    rate = ratio_interval([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], ["a", "a", "b"])  # the second image has no case of this rate
    assert rate is not None and rate.ci_lo is None and rate.clusters == 1


def test_intervals_stay_where_rates_can_be() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        sizes = [int(size) for size in rng.integers(1, 9, size=int(rng.integers(2, 30)))]
        values = (rng.random(sum(sizes)) < rng.choice([0.02, 0.5, 0.98])).astype(float)
        found = mean_interval(values, names_of(sizes), proportion=True)
        assert found.ci_lo is not None and found.ci_hi is not None
        assert 0 <= found.ci_lo <= found.value <= found.ci_hi <= 1 and found.ci_lo < found.ci_hi
        other = paired_interval(values, 1 - values, names_of(sizes), proportion=True)
        assert other.ci_lo is not None and other.ci_hi is not None
        assert -1 <= other.ci_lo <= other.value <= other.ci_hi <= 1 and other.ci_lo < other.ci_hi


def test_independent_answers_have_wilsons_interval_nearly() -> None:
    found = mean_interval([1.0] * 300 + [0.0] * 100, [str(number) for number in range(400)], proportion=True)
    assert (found.ci_lo, found.ci_hi) == pytest.approx(wilson(300, 400), abs=0.002)


def test_shares_outside_their_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="shares lie from 0 to 1"):
        mean_interval([2.0, 0.0], ["a", "b"], proportion=True)
    with pytest.raises(ValueError, match="from -1 to 1"):
        paired_interval([2.0, 0.0], [0.0, 0.0], ["a", "b"], proportion=True)
