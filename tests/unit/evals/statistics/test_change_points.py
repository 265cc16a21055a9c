"""Change points: found at the right place, quiet without one, segments, the noise that pairing knows."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest

from evals.statistics.change_points import Night, find_changes, night_noise, retraining_sd, segments, strongest_step

DRAWS = 1999


def _answers(rng: np.random.Generator, nights: int, chance: float | np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Right answers [nights, 600] to 3 questions about each of 200 pictures; a picture's questions are right together."""
    right = rng.random((nights, 200)) < np.broadcast_to(chance, nights)[:, None]
    return np.repeat(right, 3, axis=1).astype(float), [str(i // 3) for i in range(600)]


def test_a_step_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=30) + np.where(np.arange(30) < 18, 0.0, -6.0)
    (change,) = find_changes(values, draws=DRAWS)
    assert change.index == 18
    assert change.before == pytest.approx(values[:18].mean())
    assert change.after == pytest.approx(values[18:].mean())
    assert change.p == 1 / (DRAWS + 1)
    assert find_changes(values, draws=DRAWS) == find_changes(list(values), draws=DRAWS)


def test_several_steps_and_their_levels() -> None:
    level = np.repeat([0.0, 10.0, 4.0], 15)
    values = np.random.default_rng(1).normal(size=45) + level
    changes = find_changes(values, draws=DRAWS)
    assert [change.index for change in changes] == [15, 30]
    assert [round(change.after - change.before) for change in changes] == [10, -6]


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(2)
    known, unknown = [], []
    for _ in range(400):
        values = rng.normal(size=20)
        unknown.append(strongest_step(values, draws=DRAWS)[1])
        known.append(strongest_step(values, noise=1.0, draws=DRAWS)[1])
    for level in (0.05, 0.2):
        for p in (unknown, known):
            assert (np.array(p) < level).mean() < level + 3 * np.sqrt(level * (1 - level) / 400)
    assert (np.array(unknown) < 0.2).mean() > 0.13


def test_too_short_or_constant_series_have_no_change() -> None:
    for values in ([], [1.0], [1.0, 0.0], [0.9] * 12):
        assert find_changes(values, draws=DRAWS) == []
    with pytest.raises(ValueError, match="at least 1000"):
        find_changes([1.0] * 9, draws=99)


def test_pairing_knows_the_noise_of_answers_that_flip_together() -> None:
    rng = np.random.default_rng(3)
    scores, clusters = _answers(rng, 400, 0.9)
    truth = 0.9 * 0.1 / 200
    assert night_noise(scores, clusters) == pytest.approx(truth, rel=0.05)
    assert night_noise(scores, [str(i) for i in range(600)]) == pytest.approx(truth / 3, rel=0.05)
    few = [night_noise(_answers(rng, 4, 0.9)[0], clusters) for _ in range(50)]
    assert np.std(few) < 0.2 * truth  # four nights are enough
    assert night_noise(scores[:1], clusters) == 0.0


def test_pairing_finds_more_steps_in_short_series() -> None:
    rng = np.random.default_rng(4)
    found = {"values": 0, "paired": 0}
    for _ in range(100):
        scores, clusters = _answers(rng, 8, np.where(np.arange(8) < 4, 0.95, 0.85))
        values = scores.mean(axis=1)
        found["values"] += bool(find_changes(values, draws=DRAWS))
        found["paired"] += bool(find_changes(values, noise=night_noise(scores, clusters), draws=DRAWS))
    assert found["paired"] > 1.3 * found["values"]


def test_noise_of_the_whole_model_is_seen_in_the_series_and_raises_no_alarm() -> None:
    rng = np.random.default_rng(5)
    alarms, spreads = 0, []
    for _ in range(60):
        scores, clusters = _answers(rng, 24, np.clip(0.9 + rng.normal(0, 0.04, size=24), 0, 1))
        values, noise = scores.mean(axis=1), night_noise(scores, clusters)
        alarms += bool(find_changes(values, noise=noise, draws=DRAWS))
        spreads.append(retraining_sd(values, noise))
    assert alarms <= 2
    assert np.mean(spreads) == pytest.approx(0.04, rel=0.2)
    assert retraining_sd([0.5, 0.5], 1.0) == 0.0


def test_annotations_start_a_new_segment() -> None:
    start = datetime(2026, 1, 1)
    nights = [Night(run_id=str(i), at=start + timedelta(days=i), value=0.0) for i in range(6)]
    cut = segments(nights, [start + timedelta(days=2), start + timedelta(days=3, hours=1), start - timedelta(days=9), start + timedelta(days=99)])
    assert [[night.run_id for night in part] for part in cut] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert segments(nights, []) == [nights]
    assert segments([], [start]) == []
