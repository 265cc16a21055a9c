"""The identity-bearing settings of the two-tower model. Torch-free, so that planning stays instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcore.config import EncoderSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerShape:
    """Every tower: standardised tokens -> pooling -> (hidden layer) -> unit vector."""

    width: int = 256
    """W, channels of the shared space."""
    hidden: int = 0
    """Channels of the hidden layer (GELU); 0: one linear map."""
    pooling: str = "attention"
    """media: `mean` over the stored tokens, or `attention` (one learned query, which starts as the mean). A text is one vector already."""
    temperature: float = 0.07
    """Initial temperature: cosines are divided by it (learnable; its inverse stays within 1..100)."""
    across: bool = False
    """True: captions of other modalities are negatives too; False: only those of the medium's own."""
    seed: int = 0
    """Initial values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoTowerSpec:
    """Which frozen encoders the towers stand on, and their shape."""

    encoders: tuple[tuple[str, EncoderSpec], ...]
    """(modality, spec) of the media."""
    text: EncoderSpec
    shape: TowerShape = TowerShape()


def two_tower_spec_from_json(values: Mapping[str, Any]) -> TwoTowerSpec:
    """The TwoTowerSpec that `dataclasses.asdict` turned into JSON. Raises ValueError naming what does not fit."""
    try:
        return TwoTowerSpec(
            encoders=tuple((modality, EncoderSpec(**spec)) for modality, spec in values["encoders"]),
            text=EncoderSpec(**values["text"]),
            shape=TowerShape(**values["shape"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is not a two-tower description of this version: {error}") from error
