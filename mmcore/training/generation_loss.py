"""The denoising loss of one modality: what its frozen decoder, driven by an output projector's conditioning, makes of the captioned media's latents.

Owns the pairing of decoder and latents, and the draws: noise and timestep of a sample are a function of (seed, step, place in the global batch), so that
neither the number of ranks nor a resumption changes them. Input: conditioning and sample keys; output: one loss per sample, whose gradients reach the
conditioning only.

Shape letters: B batch, Q queries, C conditioning width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mmcore.config import RowsStage, StatesStage
from mmcore.decoders.base import Decoder
from mmcore.decoders.denoising import denoising_loss
from mmcore.decoders.projected import streams_of
from mmcore.training.fit import draws


class Latents(Protocol):
    """Clean latents of samples in the decoder's units (mmcore.stores.latents.LatentSet)."""

    def gather(self, keys: Sequence[str]) -> torch.Tensor:
        """float32 [B, *latent_shape]."""
        ...

    def __contains__(self, key: object) -> bool: ...


@dataclass(frozen=True, slots=True)
class Places:
    """Which samples a microbatch holds, and where they stand in the run."""

    keys: tuple[str, ...]
    """Sample keys [B]."""
    step: int
    """Optimizer step, from 0."""
    numbers: tuple[int, ...]
    """Place [B] of each sample in the step's global batch."""


class GenerationLoss:
    """decoder: frozen; latents: of every sample that is trained on; config: seed and min_snr_gamma of the stage."""

    def __init__(self, decoder: Decoder, latents: Latents, config: RowsStage | StatesStage):
        self.decoder, self.latents = decoder, latents
        self._seed, self._gamma = config.seed, config.min_snr_gamma or None

    def __call__(self, conditioning_BQC: torch.Tensor, places: Places) -> torch.Tensor:
        """[B] squared error of the denoiser's prediction (mmcore.decoders.denoising), on the conditioning's device.

        Raises AnyloomError when the conditioning is not what the decoder takes, ValueError for a sample without latents.
        """
        generators = [draws("denoising", self._seed, places.step, number) for number in places.numbers]
        conditioning = self.decoder.condition(*streams_of(self.decoder.contract, conditioning_BQC))
        loss_B = denoising_loss(self.decoder, self.latents.gather(places.keys), conditioning, generators, self._gamma)
        return loss_B.to(conditioning_BQC.device)
