"""A speaking voice: latent frames -> audio, the second half of a Piper VITS (Kim et al. 2021, arXiv 2106.06103).

It is a HiFi-GAN (Kong et al. 2020, arXiv 2010.05646), a decoder without noise: its conditioning is what it decodes. The first half, which says what
conditioning a text should have (caption targets), is mmcore.decoders.speech.text. Input: a directory as pipelines.weights.voice writes it, with
vocoder/{config.json, model.onnx}; output: audio clips, of one length.

Shape letters: B batch, Q conditioning tokens, C their width, N latent frames.
"""

from __future__ import annotations

import numpy as np
import torch

from mmcore.decoders.base import Conditioning, Decoder
from mmcore.decoders.speech.text import GRAPH, LATENTS, open_graph
from mmcore.types import Medium, NotFinite


class VoiceDecoder(Decoder):
    """Latent frames -> speech. Every item is decoded by itself."""

    part = "vocoder"

    def _open_parts(self) -> None:
        self._session = open_graph(self.directory / self.part / GRAPH)

    def direct(self, conditioning: Conditioning) -> torch.Tensor:
        """See Decoder: [B, channels, frames]; a token's channels are those of its frames one after the other."""
        tokens_BQC, (channels, frames) = conditioning.streams[0].float(), self.contract.latent_shape
        return tokens_BQC.reshape(len(tokens_BQC), frames, channels).transpose(1, 2)

    def _decode(self, latents: torch.Tensor) -> list[Medium]:
        media = []
        for latents_CN in latents.cpu().numpy():
            (samples,) = self._session.run(None, {LATENTS: latents_CN[None].astype(np.float32)})
            if not np.isfinite(samples).all():
                raise NotFinite(f"{self.directory}: the voice gave samples that are not finite; is its conditioning?")
            media.append(Medium("audio", np.clip(samples.reshape(-1), -1, 1), self.contract.rate_hz))
        return media
