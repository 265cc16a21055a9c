"""Sampling: conditioning -> media, by a decoder's own sampler with classifier-free guidance.

Owns the loop and the draws. Every item draws from a generator of its own seed on the CPU, so what one item becomes does not depend on its company in
the batch or on the device's generator. Input: a decoder, a conditioning and one seed per item; output: Medium each.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from infra.step import AnyloomError
from mmcore.decoders.base import Conditioning, Decoder
from mmcore.types import Medium


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """What to make; None: the contract's default."""

    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 or less: none, and no empty conditioning is needed."""
    height: int | None = None
    """image, video: pixels."""
    width: int | None = None
    """image, video: pixels."""
    frames: int | None = None
    """video: images."""
    seconds: float | None = None
    """audio: length of the audio clip."""


def generate(decoder: Decoder, conditioning: Conditioning, seeds: Sequence[int], options: SamplingOptions = SamplingOptions()) -> list[Medium]:
    """One Medium per item of the conditioning. Raises AnyloomError when seeds and items do not pair up or the size cannot be made."""
    contract = decoder.contract
    latents = sample(decoder, conditioning, seeds, options)
    if contract.modality == "video":
        wanted = contract.latent_frames(contract.frames if options.frames is None else options.frames)
        axis = contract.frame_axis + 1
        latents = latents.narrow(axis, latents.shape[axis] - wanted, wanted)
    media = decoder.media(latents)
    if contract.modality == "audio" and options.seconds is not None:
        samples = int(options.seconds * contract.rate_hz)
        media = [Medium(medium.modality, medium.data[:samples], medium.rate_hz) for medium in media]
    return media


@torch.no_grad()
def sample(decoder: Decoder, conditioning: Conditioning, seeds: Sequence[int], options: SamplingOptions = SamplingOptions()) -> torch.Tensor:
    """Clean latents [B, *latent_shape] in float32, one item per seed. A decoder without a noise schedule draws nothing and takes no options."""
    contract = decoder.contract
    if len(seeds) != len(conditioning):
        raise AnyloomError(f"{contract.family}: {len(conditioning)} conditionings and {len(seeds)} seeds were given; one seed per item")
    if not contract.denoises:
        if asked := [field.name for field in fields(options) if getattr(options, field.name) is not None]:
            raise AnyloomError(f"{contract.family} denoises nothing and makes audio clips of one length: leave {', '.join(asked)} out")
        return decoder.direct(conditioning)
    steps = contract.steps if options.steps is None else options.steps
    guidance = contract.guidance if options.guidance is None else options.guidance
    if steps < 1:
        raise AnyloomError(f"{contract.family}: {steps} denoising steps were asked for; take at least 1")
    shape = contract.sized(height=options.height, width=options.width, frames=options.frames, seconds=options.seconds)
    scheduler = type(decoder.scheduler).from_config(decoder.scheduler.config)
    scheduler.set_timesteps(steps, device=decoder.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(decoder.device) * scheduler.init_noise_sigma
    extra: dict[str, Any] = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    timesteps = list(scheduler.timesteps)
    for index, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        output = decoder.guided(scaled, timestep.expand(len(latents)), conditioning, guidance)
        latents = decoder.step(scheduler, output, timesteps, index, latents, extra)
    return latents
