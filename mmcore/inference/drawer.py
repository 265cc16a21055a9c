"""What a signal block becomes: the medium that the exported model's own decoder makes of its conditioning.

Input: an export directory, SignalBlocks; output: Medium each. A decoder is opened when its first block comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.decoders import load_decoder
from mmcore.decoders.projected import streams_of
from mmcore.decoders.sampling import SamplingOptions, generate
from mmcore.inference.generator import DESCRIPTION
from mmcore.types import SignalBlock

if TYPE_CHECKING:
    from mmcore.decoders.base import Decoder
    from mmcore.types import Medium

DECODERS = "decoders"
"""Folder of an export: one diffusers directory per modality."""


class Drawer:
    """directory: an export, which also says how its decoders are sampled; where it says nothing, as their families are by default."""

    def __init__(self, directory: Path, device: str = "cpu"):
        self._directory, self._device = Path(directory) / DECODERS, device
        self._sampling: dict[str, dict[str, Any]] = read_json(Path(directory) / DESCRIPTION).get("sampling", {})
        self._open: dict[str, Decoder] = {}

    def can(self, modality: str) -> bool:
        """True when the export has a decoder for the modality."""
        return (self._directory / modality).is_dir()

    def draw(self, blocks: Sequence[SignalBlock], seeds: Sequence[int]) -> list[Medium]:
        """Blocks of one modality -> media; a medium depends on its block and its seed, whatever the others are.

        Raises AnyloomError when the export has no decoder for it, or the conditioning is not what the decoder takes.
        """
        import torch

        if not blocks:
            return []
        modality = blocks[0].modality
        if any(block.modality != modality for block in blocks):
            raise ValueError("draw takes blocks of one modality at a time")
        if not self.can(modality):
            raise AnyloomError(f"this model has no decoder for {modality}: name one in the recipe's decoders and export again")
        if modality not in self._open:
            self._open[modality] = load_decoder(self._directory / modality, self._device)
        decoder = self._open[modality]
        streams = streams_of(decoder.contract, torch.stack([block.conditioning_QC for block in blocks]))
        return generate(decoder, decoder.condition(*streams), seeds, SamplingOptions(**self._sampling.get(modality, {})))
