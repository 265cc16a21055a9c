"""Simulated nights: answers to the same questions by models that were trained again every day, with or without a drop.

Modelled on the smol recipe: 1,004 questions about 105 pictures, 98 / 97 / 87 % right by type. A question's chance of being answered right is its type's,
shifted on the logit scale by its picture (sd 1) and by itself (sd 2), so that the mean of each type is as stated. Noise between nights:
answers alone (each answer is drawn anew with its chance), or besides a shift of the whole model and of every picture on the logit scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TYPES = {"yes/no": (761, 0.984), "shape": (124, 0.968), "colour": (119, 0.874)}
"""type -> questions, share right: the recipe's own figures."""
PICTURES, NIGHTS = 105, 40
PICTURE_SD, QUESTION_SD = 1.0, 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What training again changes, as standard deviations on the logit scale."""

    model: float
    """Shared by every question of a night."""
    pictures: float
    """Of each picture in each night."""


NOISES = {"answers": Noise(model=0.0, pictures=0.0), "plain": Noise(model=0.2, pictures=0.5), "smol": Noise(model=0.45, pictures=0.7)}
"""answers: every answer is drawn anew. plain, smol: as far apart as the three seeds that the README shows for smol_plain (sd 0.6 points) and smol (1.0)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nights:
    """One simulated series."""

    right: np.ndarray
    """[nights, questions] 0.0 or 1.0."""
    clusters: list[str]
    """Picture of each question."""


def logistic(x: np.ndarray) -> np.ndarray:
    """Logit to probability."""
    return 1 / (1 + np.exp(-x))


def shift_to(logits: np.ndarray, mean: float) -> float:
    """The shift of all logits after which their mean probability is `mean` (bisection)."""
    lo, hi = -30.0, 30.0
    for _ in range(60):
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if logistic(logits + middle).mean() < mean else (lo, middle)
    return (lo + hi) / 2


def simulate(noise: Noise, *, drop: float, at: int, seed: int, nights: int = NIGHTS) -> Nights:
    """`nights` nights; from night `at` on the expected share of right answers is `drop` lower (0: no change)."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(TYPES)), [n for n, _ in TYPES.values()])
    picture = rng.permutation(np.arange(len(kinds)) % PICTURES)
    logits = rng.normal(0, PICTURE_SD, PICTURES)[picture] + rng.normal(0, QUESTION_SD, len(kinds))
    for kind, (_, share) in enumerate(TYPES.values()):
        logits[kinds == kind] += shift_to(logits[kinds == kind], share)
    mean = float(logistic(logits).mean())
    night = logits + rng.normal(0, noise.model, (nights, 1)) + rng.normal(0, noise.pictures, (nights, PICTURES))[:, picture]
    level = shift_to(night.ravel(), mean)  # the noise alone moves the mean of a logistic; undo that
    after = shift_to(night.ravel(), mean - drop)
    night = night + np.where(np.arange(nights) < at, level, after)[:, None]
    right = (rng.random(night.shape) < logistic(night)).astype(np.float64)
    return Nights(right=right, clusters=[f"{p:03d}" for p in picture])
