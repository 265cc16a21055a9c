"""Distances between sets of features against closed forms, and the intervals of scores that are no mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evals.generation.distance_rows import Vectors, distance_rows
from evals.generation.distances import frechet_distance, in_span, kernel_distance
from evals.statistics.jackknife import groups_of, jackknife_interval


def exactly(draws: np.random.Generator, number: int, mean: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these (axes of their own)."""
    rows = draws.normal(size=(number, len(mean)))
    rows -= rows.mean(0)
    rows = np.linalg.qr(rows)[0] * np.sqrt(number - 1)
    return rows * deviations + mean


def gram_frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The same distance without any covariance matrix: the trace of the root is the nuclear norm of the centred sets' cross Gram matrix."""
    a, b = first - first.mean(0), second - second.mean(0)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = np.square(a).sum() / (len(a) - 1) + np.square(b).sum() / (len(b) - 1)
    return float(np.square(first.mean(0) - second.mean(0)).sum() + traces - 2 * root)


def test_frechet_distance_is_the_closed_form_of_two_gaussians():
    draws = np.random.default_rng(0)
    means, deviations = (np.zeros(6), np.linspace(-1, 1, 6)), (np.linspace(0.5, 2, 6), np.linspace(2, 0.3, 6))
    first, second = (exactly(draws, 50, mean, deviation) for mean, deviation in zip(means, deviations, strict=True))
    truth = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()  # covariances that commute
    assert frechet_distance(first, second) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_few_wide_features_have_the_same_distances_in_their_span():
    draws = np.random.default_rng(1)
    first, second = draws.normal(size=(24, 200)), draws.normal(0.3, 1.2, size=(30, 200))
    made, real = in_span(first, second)
    assert made.shape == (24, 54) and real.shape == (30, 54)
    assert frechet_distance(made, real) == pytest.approx(gram_frechet(first, second), rel=1e-5)
    assert frechet_distance(first, second) == pytest.approx(gram_frechet(first, second), rel=1e-4)
    assert kernel_distance(made, real, 200) == pytest.approx(kernel_distance(first, second), rel=1e-9)
    assert in_span(first[:, :8], second[:, :8])[0].shape == (24, 8)


def test_kernel_distance_is_unbiased_and_grows_with_the_shift():
    draws = np.random.default_rng(2)
    same = [kernel_distance(draws.normal(size=(40, 16)), draws.normal(size=(40, 16))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same)) and min(same) < 0 < max(same)
    rows = draws.normal(size=(40, 16))
    shifts = [kernel_distance(rows + shift, draws.normal(size=(40, 16))) for shift in (0.0, 0.5, 1.0)]
    assert shifts[0] < shifts[1] < shifts[2]
    with pytest.raises(ValueError, match="two features or more"):
        kernel_distance(rows[:1], rows)


def test_kernel_distance_is_the_same_number_to_the_bit_whatever_was_drawn_before():
    rows = np.random.default_rng(3).normal(size=(13, 40))
    made, real = rows[:6], rows[:7] + 0.01
    numbers = set()
    for seed in range(20):
        torch.manual_seed(seed)
        numbers.add(kernel_distance(made, real))
    assert len(numbers) == 1


def test_frechet_distance_of_equal_worlds_is_biased_at_small_numbers():
    draws = np.random.default_rng(3)
    small, large = (np.mean([frechet_distance(draws.normal(size=(n, 16)), draws.normal(size=(n, 16))) for _ in range(5)]) for n in (24, 400))
    assert small > 5 * large > 0


def test_jackknife_of_a_mean_is_the_usual_interval_and_covers():
    draws = np.random.default_rng(4)
    clusters = [str(i) for i in range(40)]
    values = draws.normal(size=40)
    found = jackknife_interval(lambda keep: float(values[keep[0]].mean()), [clusters], 40, 0)
    assert found.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-9) and found.n == found.clusters == 40
    hits = 0
    for trial in range(100):
        values = np.random.default_rng(trial).normal(size=60)
        found = jackknife_interval(lambda keep, v=values: float(v[keep[0]].mean()), [[str(i) for i in range(60)]], 20, trial)
        hits += found.ci_lo <= 0 <= found.ci_hi
    assert hits >= 88


def test_jackknife_leaves_out_whole_clusters_on_every_side():
    clusters = [str(i // 3) for i in range(30)]
    dealt = groups_of(clusters, 5, 0)
    assert all(len(set(dealt[3 * i : 3 * i + 3])) == 1 for i in range(10)) and sorted(np.bincount(dealt).tolist()) == [6] * 5
    sizes = []
    jackknife_interval(lambda keep: float(sizes.append((keep[0].sum(), keep[1].sum())) or 0), [clusters, clusters[:15]], 5, 0)
    assert sizes == [(30, 15)] + [(24, 12)] * 5
    with pytest.raises(ValueError, match="at least 4"):
        jackknife_interval(lambda keep: 0.0, [["a", "b", "c"]], 5, 0)


def test_made_media_stand_between_real_ones_and_scrambled_ones():
    draws = np.random.default_rng(5)

    def some(number: int, shift: float) -> Vectors:
        return Vectors(rows_ME=draws.normal(shift, 1, size=(number, 12)).astype(np.float32), clusters=[f"{shift} {i // 2}" for i in range(number)])

    rows, refused = distance_rows("held_out", "image", some(40, 0.5), some(120, 0.0), some(40, 3.0), 10, 0)
    at = {(row["condition"], row["metric"]): row for row, _ in rows}
    for metric in ("frechet_distance", "kernel_distance"):
        real, made, noise = (at[name, metric]["value"] for name in ("held_out, real", "held_out", "held_out, scrambled"))
        assert real < made < noise and at["held_out", metric]["ci_lo"] < made < at["held_out", metric]["ci_hi"]
    assert at["held_out, real", "frechet_distance"]["clusters"] == 20 and not refused
    assert all("torchmetrics" in definition and "vectors of width 12" in definition for _, definition in rows)
    rows, refused = distance_rows("held_out", "image", some(4, 0.5), some(120, 0.0), some(4, 3.0), 10, 0)
    assert not rows and "2 media against 60 real ones" in refused["distance (held_out)"]
