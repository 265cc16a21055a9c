"""A stage's training: its config, model and data as a course of the training loop.

Owns how a StageConfig is read, and the ranks of a torch.distributed group. Input: a model, a data stream that yields losses, a work directory. Output: the
trained parameters in place and the loss log. Raises as mmcore.training.loop does, and ValueError for an unknown schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from infra.step import Progress, no_progress
from mmcore.config import StageConfig, check_stage
from mmcore.training.loop import Collective, Course, LossLog, train
from mmcore.training.losses import StepLoss
from mmcore.training.optimizer import learning_rate
from mmcore.training.stages import rate_shares, select_trainable


class StageData(Protocol):
    """What a stage trains on."""

    part_names: tuple[str, ...]

    def cursor(self, step: int) -> dict[str, int]: ...

    def keys(self, step: int) -> list[str]: ...

    def losses(self, model: Any, step: int, rank: int, world: int) -> Iterator[StepLoss]: ...


class TorchCollective(Collective):
    """Ranks of an initialised torch.distributed group."""

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def sum_(self, tensor: torch.Tensor) -> None:
        torch.distributed.all_reduce(tensor)

    def barrier(self) -> None:
        torch.distributed.barrier()


def stage_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then decay from the peak to `final_lr` of it at the last step. step counts from 0. Raises ValueError for an unknown schedule."""
    check_stage(config)
    span = config.steps - 1 - config.warmup_steps
    return learning_rate(config.lr, step, warmup=config.warmup_steps, span=span, schedule=config.schedule, final=config.final_lr)


def stage_course(config: StageConfig, model: torch.nn.Module, data: StageData, trained: dict[str, torch.nn.Parameter], collective: Collective) -> Course:
    """What the loop is to do for a stage, on this rank."""
    return Course(
        config=config,
        losses=lambda step: data.losses(model, step, collective.rank, collective.world),
        rate=lambda step: stage_rate(config, step),
        cursor=data.cursor,
        keys=data.keys,
        shares=rate_shares(config, trained),
    )


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
    """
    collective = collective or Collective()
    trained, log = select_trainable(model, config), LossLog(data.part_names)
    seconds = train(trained, stage_course(config, model, data, trained, collective), log, work_dir / "checkpoints", collective, progress)
    return trained, log, seconds
