"""The training loop: plain torch, one for the stages of the recipes and for the small networks beside them.

Owns steps, checkpoints, the moving average and the loss log. Input: named parameters, a Course, a directory of checkpoints, a collective of ranks.
Output: the trained parameters in place and the rows of the log. Raises AnyloomError for a checkpoint of other data and for a step without weight, ValueError
for a loss or gradient that is not finite. Same bytes on one machine for the same thread count and world size, killed and continued or not; another
world size changes rounding only. Every draw is a function of the step, so nothing but parameters, optimizer and average has to be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from infra.step import AnyloomError, Progress, no_progress
from mmcore.training.checkpoint import Checkpoint, load_latest, remove_unusable, save_checkpoint
from mmcore.training.losses import StepLoss
from mmcore.training.optimizer import AdamConfig, FlatAdamW

AVERAGE = "ema"
"""Name of the moving average among a checkpoint's tensors."""
COLUMNS = ("step", "loss", "lr", "tokens", "gradient_norm")
"""Columns of a full log before the parts; tokens: global weight of the step (supervised tokens, or captions)."""
NAMED = 32
"""Samples that a message names at most."""
RECENT = 20
"""Rows whose mean loss is shown while it runs."""


class LoopConfig(AdamConfig, Protocol):
    """What the loop needs to know: a StageConfig or a FitConfig."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        ...

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        ...


class Collective:
    """The ranks of a run; this one is alone."""

    rank, world = 0, 1

    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over ranks, in place."""

    def barrier(self) -> None:
        """Wait for every rank."""


def no_keys(step: int) -> Sequence[str]:
    """The keys of the samples of a step where they have none."""
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What a training run is, beside its parameters. Steps count from 0."""

    config: LoopConfig
    losses: Callable[[int], Iterable[StepLoss]]
    """Step -> the loss of each microbatch of this rank; their sum is divided by the sum of their weights over all ranks."""
    rate: Callable[[int], float]
    """Step -> learning rate."""
    cursor: Callable[[int], Mapping[str, int]]
    """Steps done -> where the data stands; compared with a checkpoint's."""
    keys: Callable[[int], Sequence[str]] = no_keys
    """Step -> the samples of its batch, over all ranks, for messages."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> factor of the learning rate, for those that have one of their own."""
    average: Callable[[int], float] | None = None
    """Step -> decay of the moving average of the parameters that takes their place in the end; None: none is kept."""
    save_last: bool = False
    """A checkpoint after the last step too, for work that goes on behind this run."""


class LossLog:
    """Rows of the loss log, a value for each of `columns`: those of COLUMNS that are kept, then the mean of each part (None where a step had none of it)."""

    def __init__(self, part_names: Sequence[str] = (), columns: Sequence[str] = COLUMNS):
        self.parts = tuple(f"loss_{name}" for name in part_names)
        self.columns = (*columns, *self.parts)
        self.rows: list[list[float | None]] = []

    def add(self, step: int, loss: float, lr: float, tokens: float, norm: float, parts: torch.Tensor) -> None:
        """parts: [G, 2] sums and counts."""
        means = [total / count if count else None for total, count in parts.tolist()]
        row: dict[str, float | None] = dict(zip((*COLUMNS, *self.parts), (step, loss, lr, tokens, norm, *means), strict=True))
        self.rows.append([row[name] for name in self.columns])

    def recent(self) -> float:
        """Mean loss of the last rows."""
        values = self._values("loss", RECENT)
        return sum(values) / len(values)

    def write(self, path: Path) -> None:
        """The log as a Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = [pa.int64(), *[pa.float64()] * (len(self.columns) - 1)]
        arrays = [pa.array([row[i] for row in self.rows], kind) for i, kind in enumerate(types)]
        pq.write_table(pa.table(arrays, names=list(self.columns)), path, compression="zstd")

    def tail_means(self, share: float = 0.1) -> dict[str, float]:
        """Mean of the loss and of every part over the last share of the steps."""
        found = {name: self._values(name, max(1, round(len(self.rows) * share))) for name in ("loss", *self.parts)}
        return {name: round(sum(values) / len(values), 6) for name, values in found.items() if values}

    def _values(self, name: str, last: int) -> list[float]:
        """What the last rows have in a column."""
        place = self.columns.index(name)
        return [value for row in self.rows[-last:] if (value := row[place]) is not None]


def train(
    parameters: Mapping[str, torch.nn.Parameter],
    course: Course,
    log: LossLog,
    folder: Path,
    collective: Collective | None = None,
    progress: Progress = no_progress,
) -> float:
    """Train `parameters` (float32, every one that needs a gradient) to the last step, continuing from the newest checkpoint in `folder`.

    Fills the log, which comes empty. Damaged checkpoints are left out, and named in the progress. Returns the seconds that this call spent in steps.
    """
    config, collective = course.config, collective or Collective()
    optimizer = FlatAdamW(parameters, config, course.shares)
    average = optimizer.flat.clone() if course.average else None
    damaged = remove_unusable(folder) if collective.rank == 0 else ""
    collective.barrier()
    first = _continued(optimizer, average, course, log, folder)
    since = (f", continued from step {first}" if first else "") + (f" ({damaged})" if damaged else "")
    if (first or damaged) and collective.rank == 0:
        progress(first, config.steps, damaged or f"continues from step {first}")
    started = time.monotonic()
    for step in range(first, config.steps):
        one_step(optimizer, course, step, collective, log)
        if course.average and average is not None:
            average.lerp_(optimizer.flat, 1.0 - course.average(step))
        done = step + 1
        if collective.rank == 0:
            if course.save_last if done == config.steps else done % config.checkpoint_every == 0:
                tensors = dict(parameters) | ({AVERAGE: average} if average is not None else {})
                save_checkpoint(folder, Checkpoint(step=done, tensors=tensors, optimizer=optimizer.state(), cursor=course.cursor(done), log=log.rows))
            progress(done, config.steps, f"loss {log.recent():.4f}{since}")
    collective.barrier()
    if average is not None:
        optimizer.flat.copy_(average)
    return time.monotonic() - started


def _continued(optimizer: FlatAdamW, average: torch.Tensor | None, course: Course, log: LossLog, folder: Path) -> int:
    """Steps that the newest checkpoint has done, everything being as it was then; 0 without one."""
    checkpoint = load_latest(folder)
    if checkpoint is None:
        return 0
    known = dict(checkpoint.cursor) == dict(course.cursor(checkpoint.step)) and all(len(row) == len(log.columns) for row in checkpoint.log)
    if not known or (average is not None and AVERAGE not in checkpoint.tensors):
        raise AnyloomError(f"the checkpoint in {folder} was made from other data or by another version: remove {folder} and run again")
    optimizer.load(checkpoint.tensors, checkpoint.optimizer)
    if average is not None:
        average.copy_(checkpoint.tensors[AVERAGE])
    log.rows = checkpoint.log
    return checkpoint.step


def _noted(course: Course, step: int) -> Iterator[StepLoss]:
    """The losses of a step; what is raised while they are made tells of the step and its samples."""
    try:
        yield from course.losses(step)
    except Exception as error:
        error.add_note(f"at training step {step}{_samples(course.keys(step), ', samples ')}")
        raise


def one_step(optimizer: FlatAdamW, course: Course, step: int, collective: Collective, log: LossLog) -> None:
    """Forward and backward over this rank's microbatches, one all-reduce, one update, one row of the log."""
    sums = torch.zeros(2 + 2 * len(log.parts), dtype=torch.float64, device=optimizer.gradient.device)
    for loss in _noted(course, step):
        loss.total.backward()
        sums += torch.cat([torch.stack([loss.total.detach().double(), loss.weight.double()]), loss.parts.reshape(-1)])
    collective.sum_(optimizer.gradient)
    collective.sum_(sums)
    total, weight = float(sums[0]), float(sums[1])
    if not weight > 0:
        raise AnyloomError(f"step {step}: the batch has no supervised tokens; check the datasets in `mixture`")
    rate = course.rate(step)
    try:
        if not math.isfinite(total):
            raise ValueError(f"the loss is {total}")
        norm = optimizer.step(rate, weight)
    except ValueError as error:
        remedies = "a lower learning rate, more warm-up or float32 are the usual remedies"
        raise ValueError(f"step {step}: {error}{_samples(course.keys(step), '; the samples of the batch are ')}; {remedies}") from error
    log.add(step, total / weight, rate, weight, norm, sums[2:].reshape(-1, 2))


def _samples(keys: Sequence[str], before: str) -> str:
    """The keys for a message, the first of them where there are many; nothing without any."""
    if not keys:
        return ""
    return before + ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
