"""Fit: one small network, trained alone on batches of images.

Owns its draws, the order of its images and its schedule. Input: named parameters, a function from step number to loss, a directory of checkpoints.
Output: the parameters in place (their moving average where the config asks for one) and the log of the losses. Raises as mmcore.training.loop does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from infra.step import Progress, no_progress
from mmcore.config import FitConfig
from mmcore.training.batching import epoch_order
from mmcore.training.loop import Course, LossLog, train
from mmcore.training.losses import StepLoss
from mmcore.training.optimizer import learning_rate

LOG_COLUMNS = ("step", "loss", "lr", "gradient_norm")
"""Of the loop's columns."""


def draws(*parts: object) -> torch.Generator:
    """A generator seeded by the text of its parts: the same in every process."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_rows(num: int, config: FitConfig, step: int, name: str) -> np.ndarray:
    """Rows [batch] of `num` that a step sees: one seeded permutation after the other, cut into batches."""
    places = np.arange(step * config.batch, (step + 1) * config.batch)
    epochs = {int(epoch): epoch_order(num, config.seed, int(epoch), name) for epoch in np.unique(places // num)}
    return np.array([epochs[int(place) // num][int(place) % num] for place in places], np.int64)


def fit_rate(config: FitConfig, step: int) -> float:
    """Linear warm-up, then a half cosine that would reach 0 right after the last step."""
    return learning_rate(config.lr, step, warmup=config.warmup_steps, span=config.steps - config.warmup_steps, schedule="cosine", final=None)


def ema_decay(config: FitConfig, step: int) -> float:
    """Decay after a step: short at first, so that the random start is forgotten, then `ema`."""
    return min(config.ema, (1 + step) / (10 + step))


def fit(
    parameters: Mapping[str, torch.nn.Parameter],
    config: FitConfig,
    loss: Callable[[int], torch.Tensor],
    folder: Path,
    about: Mapping[str, int],
    progress: Progress = no_progress,
) -> LossLog:
    """Train `parameters` (float32, every one that needs a gradient) to the last step, continuing from the newest checkpoint in `folder`.

    loss: step -> scalar; about: counts that say which data this is, compared with the checkpoint's. Raises as mmcore.training.loop does.
    """
    weight, parts = torch.ones(()), torch.zeros(0, 2, dtype=torch.float64)
    log = LossLog(columns=LOG_COLUMNS)
    course = Course(
        config=config,
        losses=lambda step: [StepLoss(loss(step), weight, parts)],
        rate=lambda step: fit_rate(config, step),
        cursor=lambda done: {**about, "step": done},
        average=(lambda step: ema_decay(config, step)) if config.ema else None,
        save_last=True,
    )
    train(parameters, course, log, folder, progress=progress)
    return log
