"""Fit: the loop that trains one small network, killed and continued to the same bytes.

Owns the schedule, the moving average and the checkpoints. Input: named parameters, a function from step number to loss, a directory of
checkpoints. Output: the parameters in place (their moving average where the config asks for one) and the loss of every step. Every draw is a function
of (seed, step), so nothing but the parameters and the optimizer has to be kept. Refuses to know what is trained.
The stages of the recipes have a loop of their own (pipelines.training.loop): ranks, mixtures and token weights are theirs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from infra.step import AnyloomError, Progress, no_progress
from mmcore.config import FitConfig
from mmcore.training.batching import epoch_order
from mmcore.training.checkpoint import Checkpoint, load_latest, remove_leftovers, save_checkpoint
from mmcore.training.optimizer import FlatAdamW

EMA = "ema"
"""Name of the moving average among a checkpoint's tensors."""
LOG_COLUMNS = ("step", "loss", "lr", "gradient_norm")


def draws(*parts: object) -> torch.Generator:
    """A generator seeded by the text of its parts: the same in every process."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_rows(num: int, config: FitConfig, step: int, name: str) -> np.ndarray:
    """Rows [batch] of `num` that a step sees: one seeded permutation after the other, cut into batches."""
    places = np.arange(step * config.batch, (step + 1) * config.batch)
    epochs = {int(epoch): epoch_order(num, config.seed, int(epoch), name) for epoch in np.unique(places // num)}
    return np.array([epochs[int(place) // num][int(place) % num] for place in places], np.int64)


def cosine_rate(config: FitConfig, step: int) -> float:
    """Linear warm-up, then a half cosine to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts). step counts from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


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
) -> list[list[float | None]]:
    """Train `parameters` (float32, every one that needs a gradient) to the last step, continuing from the newest checkpoint in `folder`.

    loss: step -> scalar; about: counts that say which data this is, compared with the checkpoint's. Returns a row of LOG_COLUMNS for every step.
    Raises AnyloomError when a checkpoint belongs to other data, ValueError when a gradient is not finite.
    """
    optimizer = FlatAdamW(parameters, config)
    average = optimizer.flat.detach().clone()
    remove_leftovers(folder)
    log: list[list[float | None]] = []
    checkpoint = load_latest(folder)
    if checkpoint is not None:
        if dict(checkpoint.cursor) != {**about, "step": checkpoint.step}:
            raise AnyloomError(f"the checkpoint in {folder} was made from other data: remove {folder} and run again")
        optimizer.load(checkpoint.tensors, checkpoint.optimizer)
        average.copy_(checkpoint.tensors[EMA])
        log = checkpoint.log
    started, first = time.monotonic(), len(log)
    for step in range(first, config.steps):
        value = loss(step)
        value.backward()
        rate = cosine_rate(config, step)
        norm = optimizer.step(rate, 1.0)
        decay = ema_decay(config, step)
        average.lerp_(optimizer.flat.detach(), 1.0 - decay)
        log.append([step, float(value.detach()), rate, norm])
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.steps:
            tensors = {**parameters, EMA: average}
            save_checkpoint(folder, Checkpoint(step=done, tensors=tensors, optimizer=optimizer.state(), cursor={**about, "step": done}, log=log))
        left = (time.monotonic() - started) / (done - first) * (config.steps - done)
        progress(done, config.steps, f"loss {_recent(log):.4f}, about {left:.0f} s left")
    if config.ema:
        optimizer.flat.data.copy_(average)
    return log


def _recent(log: list[list[float | None]], rows: int = 20) -> float:
    """Mean loss of the last rows."""
    return float(np.mean([row[1] for row in log[-rows:] if row[1] is not None]))
