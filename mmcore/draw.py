"""What a signal block becomes: the medium that the exported model's own decoder makes of its conditioning.

Input: an export directory, SignalBlocks; output: Medium each. A decoder is opened when its first block comes. Refuses to know language models and files
of media.

Shape letters: Q conditioning tokens, C conditioning width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.decoders import load_decoder
from mmcore.generate import DESCRIPTION
from mmcore.types import SignalBlock

if TYPE_CHECKING:
    import torch

    from mmcore.decoders.base import Decoder, Medium

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

        from mmcore.decoders.sampling import SamplingOptions, generate

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
        streams = split_streams(torch.stack([block.conditioning_QC for block in blocks]), [stream.tokens for stream in decoder.contract.streams])
        return generate(decoder, decoder.condition(*streams), seeds, SamplingOptions(**self._sampling.get(modality, {})))


def split_streams(conditioning_BQC: torch.Tensor, tokens: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """A projector's tokens -> one tensor per stream: those before the last stream take their own number of tokens, the last one takes what is left.

    Raises AnyloomError when there are too few tokens.
    """
    before = sum(tokens[:-1])
    if conditioning_BQC.shape[1] <= before:
        raise AnyloomError(
            f"the output projector makes {conditioning_BQC.shape[1]} tokens, the decoder takes more than {before}: set queries of output_projectors"
        )
    edges = [0]
    for count in tokens[:-1]:
        edges.append(edges[-1] + count)
    edges.append(conditioning_BQC.shape[1])
    return tuple(conditioning_BQC[:, start:stop] for start, stop in pairwise(edges))
