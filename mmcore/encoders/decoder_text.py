"""Texts -> what a decoder's own text encoders make of them: the states that an output projector's conditioning is aligned with (caption targets).

Owns nothing but the way from one face to the other: mmcore.decoders.texts encodes, mmcore.decoders.projected lays the streams out as the projector's
spec.tokens tokens of spec.width channels. Input: an artifact with a decoder in `pipeline/`, UTF-8 bytes of texts; output: features [N, E], N at most
spec.tokens.

Shape letters: N tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmcore.decoders.projected import check_projector, joined
from mmcore.decoders.texts import TextSide
from mmcore.encoder_config import DecoderText
from mmcore.encoders.base import BatchedEncoder
from mmcore.media.decode import decode_text


class DecoderTextEncoder(BatchedEncoder):
    """One text -> the conditioning its decoder would give itself."""

    spec: DecoderText

    def __init__(self, spec: DecoderText, weights_dir: Path):
        """Raises AnyloomError when the decoder takes other tokens or another width than the spec says."""
        self.spec = spec
        self._side = TextSide(weights_dir / "pipeline")
        check_projector(self._side.contract, spec.tokens, spec.width)

    def place(self, device: str) -> None:
        """See BatchedEncoder; the text parts are opened there when the first text comes."""
        self.device = device
        self._side = TextSide(self._side.directory, device, self._side.contract)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> str:
        """Bytes -> the text; it has no span. Raises MediaError."""
        return decode_text(data)

    @torch.inference_mode()
    def forward(self, items: Sequence[str]) -> list[np.ndarray]:
        """Texts -> features [N, E] each."""
        with self._arithmetic():
            streams, masks = self._side.encode(items)
        return [self._stored(rows_NE) for rows_NE in joined(self._side.contract, streams, masks, self.spec.tokens, self.spec.width)]
