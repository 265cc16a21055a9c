"""The training loop: plain torch, one function for every stage.

Input: a model, its trained parameters, a data stream that yields losses, a work directory for checkpoints, a collective of ranks.
Output: the trained parameters in place and the loss log. Same bytes on one machine for the same thread count and world size, whether or not
it was killed and continued; another world size changes rounding only. Refuses to know Ray, artifacts and what the losses mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from infra.step import AnyloomError, Progress, no_progress
from mmcore.config import StageConfig
from mmcore.training.checkpoint import Checkpoint, load_latest, remove_leftovers, save_checkpoint
from mmcore.training.losses import StepLoss
from mmcore.training.optimizer import FlatAdamW, learning_rate
from mmcore.training.stages import rate_shares, select_trainable

COLUMNS = ("step", "loss", "lr", "tokens", "gradient_norm")
"""Columns of the loss log before the parts; tokens: global weight of supervised tokens (stage 2: captions)."""


class StageData(Protocol):
    """What a stage trains on."""

    part_names: tuple[str, ...]

    def cursor(self, step: int) -> dict[str, int]: ...

    def losses(self, model: Any, step: int, rank: int, world: int) -> Iterator[StepLoss]: ...


class Collective:
    """The ranks of a run; this one is alone."""

    rank, world = 0, 1

    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over ranks, in place."""

    def barrier(self) -> None:
        """Wait for every rank."""


class TorchCollective(Collective):
    """Ranks of an initialised torch.distributed group."""

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def sum_(self, tensor: torch.Tensor) -> None:
        torch.distributed.all_reduce(tensor)

    def barrier(self) -> None:
        torch.distributed.barrier()


class LossLog:
    """Rows of the loss log: COLUMNS, then the mean of each part (None where a step had none of it)."""

    def __init__(self, part_names: tuple[str, ...], rows: list[list[float | None]] | None = None):
        self.columns = (*COLUMNS, *(f"loss_{name}" for name in part_names))
        self.rows = rows or []

    def add(self, step: int, loss: float, lr: float, tokens: float, norm: float, parts: torch.Tensor) -> None:
        """parts: [G, 2] sums and counts."""
        means = [total / count if count else None for total, count in parts.tolist()]
        self.rows.append([step, loss, lr, tokens, norm, *means])

    def write(self, path: Path) -> None:
        """losses.parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = [pa.int64(), *[pa.float64()] * (len(self.columns) - 1)]
        arrays = [pa.array([row[i] for row in self.rows], kind) for i, kind in enumerate(types)]
        pq.write_table(pa.table(arrays, names=list(self.columns)), path, compression="zstd")

    def tail_means(self, share: float = 0.1) -> dict[str, float]:
        """Mean of the loss and of every part over the last share of the steps."""
        last = self.rows[-max(1, round(len(self.rows) * share)) :]
        means = {}
        for name in ("loss", *self.columns[len(COLUMNS) :]):
            values = [row[self.columns.index(name)] for row in last]
            present = [value for value in values if value is not None]
            if present:
                means[name] = round(sum(present) / len(present), 6)
        return means


def _one_step(model: torch.nn.Module, optimizer: FlatAdamW, data: StageData, step: int, lr: float, collective: Collective, log: LossLog) -> None:
    """Forward and backward over this rank's microbatches, one all-reduce, one update, one row of the log."""
    sums = torch.zeros(2 + 2 * len(data.part_names), dtype=torch.float64, device=optimizer.gradient.device)
    for loss in data.losses(model, step, collective.rank, collective.world):
        loss.total.backward()
        sums += torch.cat([torch.stack([loss.total.detach().double(), loss.weight.double()]), loss.parts.reshape(-1)])
    collective.sum_(optimizer.gradient)
    collective.sum_(sums)
    total, weight = float(sums[0]), float(sums[1])
    if not weight > 0:
        raise AnyloomError(f"step {step} has nothing supervised: check the mixture's datasets")
    norm = optimizer.step(lr, weight)
    log.add(step, total / weight, lr, weight, norm, sums[2:].reshape(-1, 2))


def run_stage(
    config: StageConfig,
    model: torch.nn.Module,
    data: StageData,
    work_dir: Path,
    collective: Collective | None = None,
    progress: Progress = no_progress,
) -> tuple[dict[str, torch.nn.Parameter], LossLog, float]:
    """Train one stage to its last step, continuing from the newest checkpoint in `work_dir`.

    Returns the trained parameters by full name, the loss log and the seconds this call spent in steps.
    Raises AnyloomError when a checkpoint belongs to other data, or logged other parts of the loss.
    """
    collective = collective or Collective()
    folder = work_dir / "checkpoints"
    trained = select_trainable(model, config)
    optimizer = FlatAdamW(trained, config, rate_shares(config, trained))
    if collective.rank == 0:
        remove_leftovers(folder)
    collective.barrier()
    log, first, since = LossLog(data.part_names), 0, ""
    checkpoint = load_latest(folder)
    if checkpoint is not None:
        if checkpoint.cursor != data.cursor(checkpoint.step) or any(len(row) != len(log.columns) for row in checkpoint.log):
            raise AnyloomError(f"the checkpoint in {folder} was made from other data or by another version: remove {work_dir} and run again")
        optimizer.load(checkpoint.tensors, checkpoint.optimizer)
        log, first = LossLog(data.part_names, checkpoint.log), checkpoint.step
        since = f", continued from step {first}"
        if collective.rank == 0:
            progress(first, config.steps, f"continues from step {first}")
    started = time.monotonic()
    for step in range(first, config.steps):
        _one_step(model, optimizer, data, step, learning_rate(config, step), collective, log)
        done = step + 1
        if collective.rank == 0:
            if done % config.checkpoint_every == 0 and done < config.steps:
                save_checkpoint(folder, Checkpoint(step=done, tensors=trained, optimizer=optimizer.state(), cursor=data.cursor(done), log=log.rows))
            progress(done, config.steps, f"loss {log.rows[-1][1]:.3f}{since}")
    collective.barrier()
    return trained, log, time.monotonic() - started
