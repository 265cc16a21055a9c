"""Simulated nights: is a drop of 2 points found, how late, and how often is nothing called a drop?

`prove.py bench nights [--series 200]`. Per kind of noise between nights (nights.py): series of 40 nights without a change, and as many with a drop of
2 points from night 20 on, and from night 6 on (a young history). Every night each detector sees the nights so far, and a series counts with its first
alarm: a false one before the drop (or without one), found after it. delay: nights from the drop to the alarm, 0 is the same night. A false alarm per
night: alarms of the quiet series over their nights, the first six (during which some detectors may not speak) included; a detector that speaks of
change points is counted once per series.

ours: the paired change point test. peer: the best of a fixed threshold of 1 point against the night before and a z-test against the mean of all
nights before (as Conbench does) beyond 3 and beyond 5, its default. limit: an oracle that knows the night, and asks only whether
the nights since differ from those before (paired, one test a night at the same level). Also in the note: the paired test against the night
before with and without the noise band, the change point test on values alone, on values with their own standard errors, and E-divisive.
One number per entry: the share of series in which the drop at night 20 is found within 5 nights and no false alarm came first.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from nights import NIGHTS, NOISES, Nights, simulate

from evals.nightly.alerts import Policy
from evals.nightly.comparison import paired_test
from evals.statistics import change_points
from evals.statistics.change_points import LEVEL, night_noise, retraining_sd, strongest_step
from evals.statistics.intervals import cluster_sums, clustered_stderr, wilson
from evals.statistics.significance import permutation_p

DROP, LATE, EARLY, PROMPT = 0.02, 20, 6, 5
SCENES = {"quiet": (0.0, NIGHTS), "late": (DROP, LATE), "early": (DROP, EARLY)}
"""scene -> (drop, first night of it)."""
FEW = 60
"""Series that E-divisive sees: it is slow."""
Detector = Callable[[Nights, int, int], bool]
"""(series, nights so far, night of the drop) -> alarm. Only the oracle looks at the last one."""


def fixed_threshold(series: Nights, nights: int, _: int) -> bool:
    """More than 1 point below the night before."""
    values = series.right[:nights].mean(axis=1)
    return nights > 1 and values[-2] - values[-1] > 0.01


def rolling_z(series: Nights, nights: int, _: int, bound: float = 3.0) -> bool:
    """More than `bound` standard deviations below the mean of all nights before, of which there must be six."""
    values = series.right[: nights - 1].mean(axis=1)
    return nights > 6 and (series.right[nights - 1].mean() - values.mean()) / max(values.std(ddof=1), 1e-9) < -bound


def paired_night(series: Nights, nights: int, _: int, band: bool = False) -> bool:
    """The alert rule on two nights: the paired test below 1 % and a drop of more than 1 point; band: also outside the spread of earlier nights."""
    policy = Policy()
    if nights < 2:
        return False
    before, now = series.right[nights - 2], series.right[nights - 1]
    delta = float((now - before).mean())
    if -delta <= policy.smallest_drop or paired_test(before, now, series.clusters)[0] >= policy.level:
        return False
    if band and nights - 1 >= policy.nights:
        earlier = series.right[: nights - 1]
        spread = retraining_sd(earlier.mean(axis=1), night_noise(earlier, series.clusters))
        stderr = clustered_stderr(*cluster_sums(now - before, np.ones(len(now)), series.clusters))
        width = statistics.NormalDist().inv_cdf(1 - policy.level / 2)
        return spread <= 0 or -delta > width * (stderr**2 + 2 * spread**2) ** 0.5
    return True


def steps(series: Nights, nights: int, noise: float) -> bool:
    """A change point for the worse."""
    values = series.right[:nights].mean(axis=1)
    index, p = strongest_step(values, noise=noise)
    return p < LEVEL and values[index:].mean() < values[:index].mean()


def change_point_values(series: Nights, nights: int, _: int) -> bool:
    """The change point test on values."""
    return steps(series, nights, 0.0)


def change_point_paired(series: Nights, nights: int, _: int) -> bool:
    """The change point test with the noise that pairing knows."""
    return steps(series, nights, night_noise(series.right[:nights], series.clusters))


def alert_rule(series: Nights, nights: int, at: int) -> bool:
    """What the nightly review alerts of: the paired test with band, or the paired change point."""
    return paired_night(series, nights, at, band=True) or change_point_paired(series, nights, at)


def known_stderr(series: Nights, nights: int, _: int) -> bool:
    """A step on values whose noise is their standard error (clustered, of questions drawn anew): the largest |z| against its distribution."""
    now = series.right[nights - 1]
    return steps(series, nights, clustered_stderr(*cluster_sums(now, np.ones(len(now)), series.clusters)) ** 2)


def oracle(series: Nights, nights: int, at: int) -> bool:
    """Knows the night: permutation test of the questions' means after it against before it."""
    if nights <= at:
        return False
    difference = series.right[at:nights].mean(axis=0) - series.right[:at].mean(axis=0)
    sums, _ = cluster_sums(difference, np.ones(len(difference)), series.clusters)
    return sums.sum() < 0 and permutation_p(sums, draws=9999)[0] < LEVEL


def e_divisive(series: Nights, nights: int, _: int, draws: int = 1200) -> bool:
    """The strongest split by energy distance (Matteson & James 2014, JASA 109:334), at least 2 nights each side, permuted nights."""
    values = series.right[:nights].mean(axis=1)
    if nights < 8:
        return False
    observed = energy(values[None, :])[0]
    index = int(observed.argmax()) + 2
    if values[index:].mean() >= values[:index].mean():
        return False
    rng = np.random.default_rng(nights)
    for _ in range(draws // 200):  # p < LEVEL needs that none of the permuted series reaches the observed one, so the first that does ends it
        orders = rng.permuted(np.repeat(values[None, :], 200, axis=0), axis=1)
        if (energy(orders).max(axis=1) >= observed.max() - 1e-12).any():
            return False
    return True


def energy(series: np.ndarray) -> np.ndarray:
    """Scaled energy distance of every split with at least 2 nights each side: [S, nights] -> [S, nights - 3]."""
    nights = series.shape[1]
    sums = np.abs(series[:, :, None] - series[:, None, :]).cumsum(1).cumsum(2)
    split = np.arange(2, nights - 1)
    within_a, total = sums[:, split - 1, split - 1], sums[:, -1, -1][:, None]
    across = sums[:, split - 1, -1] - within_a
    a, b = split, nights - split
    return a * b / nights * (2 * across / (a * b) - within_a / a**2 - (total - within_a - 2 * across) / b**2)


DETECTORS: dict[str, Detector] = {
    "paired change point": change_point_paired,
    "change point on values": change_point_values,
    "paired test": paired_night,
    "paired test with band": partial(paired_night, band=True),
    "either of both (the alert rule)": alert_rule,
    "threshold 1 point": fixed_threshold,
    "z of 3 against past nights": rolling_z,
    "z of 5 against past nights": partial(rolling_z, bound=5.0),
    "values with their standard error": known_stderr,
    "E-divisive": e_divisive,
    "oracle": oracle,
}
OURS, PEERS, LIMIT = "paired change point", ("threshold 1 point", "z of 3 against past nights", "z of 5 against past nights"), "oracle"


def run(options: argparse.Namespace) -> list[dict]:
    """One entry per kind of noise. Every simulated null distribution is kept (some 800 of 80 kB): statistics.change_points keeps too few for so many series."""
    change_points._null = cache(change_points._null.__wrapped__)
    return [entry(noise, options.series, options.seed) for noise in NOISES]


def entry(noise: str, count: int, seed: int) -> dict:
    """Every detector on every scene."""
    alarms: dict[str, dict[str, list[int | None]]] = {name: {} for name in DETECTORS}
    spread, share = [], []
    for scene, (drop, at) in SCENES.items():
        for number in range(count):
            series = simulate(NOISES[noise], drop=drop, at=at, seed=(seed * 10 + list(SCENES).index(scene)) * 100_000 + number)
            if scene == "quiet":
                values = series.right.mean(axis=1)
                spread.append(float(values.std(ddof=1)))
                share.append(float(values.mean()))
            for name, detector in DETECTORS.items():
                if name != "E-divisive" or number < FEW:
                    alarms[name].setdefault(scene, []).append(first_alarm(detector, series, at))
        print(noise, scene, "done", flush=True)
    table = {name: summary(found) for name, found in alarms.items()}
    good = {name: row["late"]["prompt"] for name, row in table.items()}
    peer = max(PEERS, key=lambda name: good[name])
    return {
        "name": f"nights_{noise}",
        "ours": good[OURS],
        "peer": good[peer],
        "limit": good[LIMIT],
        "unit": f"share of series with the drop found within {PROMPT} nights and no false alarm before",
        "ratio_peer": round(good[OURS] / good[peer], 2) if good[peer] else None,
        "ratio_limit": round(good[OURS] / good[LIMIT], 3),
        "runs": count,
        "spread": [round(x, 3) for x in share_interval(good[OURS], count)],
        "seed": seed,
        "note": {
            "peer": peer,
            "sd of a night, points": round(100 * statistics.mean(spread), 2),
            "share right": round(statistics.mean(share), 4),
            "drop, points": 100 * DROP,
            "E-divisive": f"the first {FEW} series",
            "table": table,
        },
    }


def first_alarm(detector: Detector, series: Nights, at: int) -> int | None:
    """Index of the first night with an alarm."""
    return next((nights - 1 for nights in range(1, NIGHTS + 1) if detector(series, nights, at)), None)


def summary(found: dict[str, list[int | None]]) -> dict[str, dict[str, float | None]]:
    """Rates of one detector: per night the alarms of quiet series over the nights watched until the first."""
    quiet = found["quiet"]
    watched = sum(NIGHTS if night is None else night + 1 for night in quiet)
    rates: dict[str, dict[str, float | None]] = {
        "quiet": {
            "false alarms per night": round(sum(night is not None for night in quiet) / watched, 5),
            "series with one": round(float(np.mean([night is not None for night in quiet])), 4),
        }
    }
    for scene in ("late", "early"):
        rates[scene] = drop_rates(found[scene], SCENES[scene][1])
    return rates


def drop_rates(nights: Sequence[int | None], at: int) -> dict[str, float | None]:
    """Of series with a drop: false alarms before it, found at all, promptly (not counting those with a false alarm first), and the delay."""
    delays = [night - at for night in nights if night is not None and night >= at]
    return {
        "alarm before": round(float(np.mean([night is not None and night < at for night in nights])), 4),
        "found": round(len(delays) / len(nights), 4),
        "prompt": round(sum(delay <= PROMPT for delay in delays) / len(nights), 4),
        "median delay": float(np.median(delays)) if delays else None,
        "mean delay": round(float(np.mean(delays)), 2) if delays else None,
    }


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson interval of a share."""
    return wilson(round(share * count), count)
