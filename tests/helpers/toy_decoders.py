"""Toy decoders on disk, made once per test session: shared by the tests of decoders."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from mmcore.decoders import load_decoder
from mmcore.decoders.base import Conditioning, Decoder
from pipelines.toys.decoders import DECODERS, save_decoder

FAMILIES = ("tiny-sd15", "tiny-sd2", "tiny-text-to-video", "tiny-audioldm", "tiny-audioldm2", "tiny-cogvideox")
DIFFUSED = (*FAMILIES, "tiny-cogvideox-rotary")
ALL = (*DIFFUSED, "tiny-voice")
"""Every toy; the voice is no diffusion model."""
_ROOT = tempfile.TemporaryDirectory(prefix="toy-decoders-")


@functools.cache
def pipeline(name: str):
    """The toy as a pipeline of diffusers, in evaluation mode, as from_pretrained would give it; the voice as what saves itself like one."""
    made = DECODERS[name](0)
    if name not in DIFFUSED:
        return made
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def directory(name: str) -> Path:
    """The directory of a toy, with its empty conditioning."""
    return save_decoder(pipeline(name), Path(_ROOT.name) / name)


@functools.cache
def decoder(name: str) -> Decoder:
    """The opened toy."""
    return load_decoder(directory(name))


def streams(name: str, count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Random conditioning tensors of the toy's contract."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, stream.tokens, stream.width, generator=generator) for stream in decoder(name).contract.streams]


def conditioning(name: str, count: int = 2, seed: int = 0) -> Conditioning:
    """The same, checked."""
    return decoder(name).condition(*streams(name, count, seed))


def latents(name: str, count: int = 2, seed: int = 1) -> torch.Tensor:
    """Random clean latents of the toy's contract."""
    return torch.randn(count, *decoder(name).contract.latent_shape, generator=torch.Generator().manual_seed(seed))
