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
from mmcore.decoders import Stream, load_decoder
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
        streams = split_streams(torch.stack([block.conditioning_QC for block in blocks]), decoder.contract.streams)
        return generate(decoder, decoder.condition(*streams), seeds, SamplingOptions(**self._sampling.get(modality, {})))


def split_streams(conditioning_BQC: torch.Tensor, streams: Sequence[Stream]) -> tuple[torch.Tensor, ...]:
    """A projector's tokens -> one tensor per stream of a decoder: those before the last take their own number of tokens, the last one takes what is left.

    C is the width of the widest stream; a narrower one takes the first of the channels. Raises AnyloomError when tokens or channels do not fit.
    """
    before, widest = sum(stream.tokens for stream in streams[:-1]), max(stream.width for stream in streams)
    if conditioning_BQC.shape[1] <= before:
        raise AnyloomError(f"the output projector makes {conditioning_BQC.shape[1]} tokens, the decoder more than {before}: set queries of output_projectors")
    if conditioning_BQC.shape[2] != widest:
        raise AnyloomError(f"the output projector makes {conditioning_BQC.shape[2]} channels, the decoder takes {widest}: set out of output_projectors")
    edges = [0]
    for stream in streams[:-1]:
        edges.append(edges[-1] + stream.tokens)
    edges.append(conditioning_BQC.shape[1])
    return tuple(conditioning_BQC[:, start:stop, : stream.width] for stream, (start, stop) in zip(streams, pairwise(edges), strict=True))
