"""Configs of the training, states and export steps. Torch-free; every field is identity.

Earlier stages are the inputs whose names begin with `stage`; they are loaded in the order they were trained in.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import ModelSpec, StageConfig, TwoTowerSpec

RECIPE_FILE = "recipe"
"""Name of the export's source that is the user's recipe."""
NEEDS_OUTPUT_PROJECTORS = (
    "generation_loss goes through the output projectors that a stage on states trains: put stage2 before it in stages, or set generation_loss to 0"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training stage."""

    stage: StageConfig
    model: ModelSpec | TwoTowerSpec
    """TwoTowerSpec for the stage `two_tower`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatesConfig:
    """Cached LM states of captions, for stage 2."""

    model: ModelSpec
    batch: int = 32
    """Captions per forward pass: part of the identity because it fixes the rounding."""
    part: int = 128
    """Captions per file, the unit of resumption and of what a worker does."""
    requests: int = 1
    """Maximum request wordings per caption, capped by how often the data asks for it. Wordings come from the instructions and from
    mmcore.chat.chat.REQUESTS; each has its own states."""
    sources: tuple[str, ...] = ()
    """Datasets whose captions are taken; empty: all."""
    caption_turn: bool = False
    """Conversations about a medium begin with its caption, as stage 3 has them."""
    restate: bool = False
    """The answer to a request in one of the wordings says the caption before it gives the medium, as the recipe's instructions do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """One directory that loads and generates."""

    model: ModelSpec
    stages: tuple[str, ...]
    """Names of the inputs that are stages, in training order; later tensors win."""
    sampling: tuple[tuple[str, int, float], ...] = ()
    """(modality, denoising steps, guidance) of the decoders that are not used with their family's defaults."""
    licences: tuple[tuple[str, str, str, str], ...] = ()
    """(part, name, licence, commercial use) of every part: lm, image, audio, decoder_<modality> (pipelines.dag.licences)."""
    commercial_use: str = "unknown"
    """What all parts together permit."""
    caption_turn: bool = False
    """The model answers after a self-written caption unless told otherwise (the helped recipe)."""
