"""What each stage is: literals that say what trains (matched against the model's parameter names; everything else is frozen), with which losses, on which
kind of batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mmcore.config import PairsStage, RowsStage, StageConfig, StatesStage

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """Parameters and buffers are patterns (fnmatch) of full names."""

    trains: tuple[str, ...]
    """Parameters that train."""
    config: type[StageConfig]
    """Class of its settings, one for each kind of batch. Rows have the cross-entropy of their supervised tokens as a loss of weight 1 (mmcore.training.rows),
    pairs InfoNCE (mmcore.two_tower.pairs), cached states none of their own (mmcore.training.states)."""
    losses: tuple[str, ...] = ()
    """Fields of the settings that weigh the losses beside the batch's own."""
    optional: tuple[str, ...] = ()
    """Parameters that train only when the recipe's train_projectors says so."""
    saves: tuple[str, ...] = ()
    """Buffers fitted at the start of the stage and saved with its tensors."""
    lora: bool = False
    """LoRA is attached and trained."""


STAGES = {
    "stage1": StageSpec(
        trains=("input_projectors.*",),
        config=RowsStage,
        losses=("generation_loss", "align_loss", "denoise_loss"),
        saves=("input_projectors.*.mean_E", "input_projectors.*.std_E"),
    ),
    "stage2": StageSpec(
        trains=("output_projectors.*", "lm.new_head_rows"),
        config=StatesStage,
        losses=("token_loss", "align_loss", "denoise_loss"),
        saves=("output_projectors.*.mean_QC", "output_projectors.*.scale", "output_projectors.*.in_*_SD"),
    ),
    "stage3": StageSpec(trains=("lm.base.*.lora_?.*", "lm.new_input_rows", "lm.new_head_rows"), config=RowsStage, optional=("input_projectors.*",), lora=True),
    "two_tower": StageSpec(trains=("media.*", "text.*", "log_scale"), config=PairsStage, saves=("*.mean_E", "*.std_E")),
}
"""Stage 1: pretrain_enc; stage 2: pretrain_dec; stage 3: instruction tuning. two_tower is a model of its own (mmcore.two_tower)."""


def stage_spec(stage: str) -> StageSpec:
    """The StageSpec of a stage name. Raises ValueError for an unknown one."""
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown; there are: {', '.join(STAGES)}")
    return STAGES[stage]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def select_trainable(model: torch.nn.Module, config: StageConfig) -> dict[str, torch.nn.Parameter]:
    """Freeze the model except what the stage trains; returns those parameters by full name, sorted. Raises ValueError when there are none."""
    spec = stage_spec(config.stage)
    patterns = spec.trains + (spec.optional if isinstance(config, RowsStage) and config.train_projectors else ())
    model.requires_grad_(False)
    chosen = {name: parameter for name, parameter in sorted(model.named_parameters()) if _matches(name, patterns) and parameter.numel()}
    if not chosen:
        raise ValueError(f"{config.stage} would train nothing: the model has no parameter called {' or '.join(patterns)}")
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def rate_shares(config: StageConfig, trained: Iterable[str]) -> dict[str, float]:
    """Trained parameters with a learning rate of their own -> its share of the stage's: the optional ones, with projector_lr."""
    if not isinstance(config, RowsStage) or not config.projector_lr:
        return {}
    return {name: config.projector_lr / config.lr for name in trained if _matches(name, stage_spec(config.stage).optional)}


def saved_tensors(model: torch.nn.Module, config: StageConfig, trained: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """What `tensors.safetensors` of the stage holds: its trained parameters (LoRA aside) and fitted buffers, by full name."""
    spec = stage_spec(config.stage)
    tensors = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items() if ".lora_" not in name}
    tensors |= {name: buffer.to("cpu", copy=True) for name, buffer in sorted(model.named_buffers()) if _matches(name, spec.saves)}
    return dict(sorted(tensors.items()))
