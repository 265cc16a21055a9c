"""What every decoder shares: opening parts, checking conditioning, the noise schedule, and one guided prediction.

Owns Conditioning (the tensors that drive a decoder), Medium (what one makes) and the Decoder base class. A family adds how its denoiser is called and
how its latents become a medium. Input: a diffusers directory and its contract; output: predictions and media.

Shape letters: B batch, Q conditioning tokens, C conditioning width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from infra.step import AnyloomError
from mmcore.decoders import texts
from mmcore.decoders.contract import DecoderContract, Stream
from mmcore.decoders.opening import open_weights
from mmcore.types import Medium, NotFinite


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The tensors that drive a decoder, checked against its contract (see Decoder.condition)."""

    streams: tuple[torch.Tensor, ...]
    """[B, Q, C] each, in the contract's order; a pooled stream has Q = 1."""
    masks: tuple[torch.Tensor | None, ...]
    """int64 [B, Q] of 0 and 1 for a masked stream; None for the others."""

    def __len__(self) -> int:
        return len(self.streams[0])

    def __add__(self, other: Conditioning) -> Conditioning:
        """Both batches after each other; their shapes must agree."""
        masks = tuple(None if a is None or b is None else torch.cat([a, b]) for a, b in zip(self.masks, other.masks, strict=True))
        return Conditioning(tuple(torch.cat([a, b]) for a, b in zip(self.streams, other.streams, strict=True)), masks)

    def fits(self, other: Conditioning) -> bool:
        """True when both can be one batch."""
        return all(a.shape == b.shape for a, b in zip(self.streams, other.streams, strict=True))

    def repeat(self, count: int) -> Conditioning:
        """One item -> a batch of `count` equal ones."""
        masks = tuple(None if mask is None else mask.expand(count, -1) for mask in self.masks)
        return Conditioning(tuple(stream.expand(count, -1, -1) for stream in self.streams), masks)


class Decoder:
    """A frozen decoder. A subclass defines `_denoiser_class`, `_call` and `_decode`, and sets `part` where its denoiser is no UNet."""

    part = "unet"
    """Folder of the denoiser."""

    scheduler: Any = None
    denoiser: Any = None

    def __init__(self, directory: Path, contract: DecoderContract, device: str, dtype: str):
        """Opens denoiser and scheduler. Raises AnyloomError when they are missing, no safetensors or of an unknown class."""
        self.directory, self.contract, self.device = directory, contract, torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._empty: Conditioning | None = None
        self._open_parts()

    def _open_parts(self) -> None:
        """What every call needs; a decoder without a noise schedule has other parts."""
        self.scheduler = self._scheduler()
        self.denoiser = self.open(self._denoiser_class(), self.part)

    def _denoiser_class(self) -> Any:
        raise TypeError(f"{type(self).__name__} names no denoiser class")

    def open(self, kind: Any, part: str) -> Any:
        """The weights of `directory/part`, on the decoder's device and in its dtype. Raises AnyloomError."""
        return open_weights(kind, self.directory / part, self.dtype, self.device)

    def _scheduler(self) -> Any:
        import diffusers

        found = getattr(diffusers, self.contract.scheduler, None)
        if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
            raise AnyloomError(f"{self.directory}/scheduler: '{self.contract.scheduler}' is no scheduler of diffusers; name one of its classes")
        scheduler = found.from_pretrained(self.directory / "scheduler", local_files_only=True)
        if getattr(scheduler, "alphas_cumprod", None) is None:
            name = self.contract.scheduler
            raise AnyloomError(
                f"{self.directory}/scheduler: {name} has no variance-preserving noise schedule (alphas_cumprod); flow models are not decoders here"
            )
        return scheduler

    @cached_property
    def alphas_T(self) -> torch.Tensor:
        """float32 [T]: share of the signal's variance at each step of this decoder's own noise schedule (alpha-bar; Ho et al. 2020, arXiv 2006.11239)."""
        return self.scheduler.alphas_cumprod.float().to(self.device)

    @cached_property
    def vae(self) -> Any:
        """The variational autoencoder, opened when something is decoded."""
        return self.open(self._vae_class(), "vae")

    def _vae_class(self) -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL

    # -- conditioning -------------------------------------------------------------------------------------------------------------

    def condition(self, *streams: torch.Tensor, masks: Sequence[torch.Tensor | None] | None = None) -> Conditioning:
        """Tensors [B, Q, C] in the contract's order (a pooled one may be [B, C]) -> Conditioning on the decoder's device; gradients pass through.

        A normalised stream is brought to unit length. masks: [B, Q] of 0 and 1 for masked streams, default all ones. Raises AnyloomError with both
        counts when a number of streams, tokens or channels is not the contract's.
        """
        wanted = self.contract.streams
        if len(streams) != len(wanted):
            names = ", ".join(stream.name for stream in wanted)
            raise AnyloomError(f"{self.contract.family} takes {len(wanted)} conditioning tensors ({names}), {len(streams)} were given")
        masks = masks or (None,) * len(wanted)
        checked = [self._checked(spec, tensor) for spec, tensor in zip(wanted, streams, strict=True)]
        if len({len(tensor) for tensor in checked}) > 1:
            raise AnyloomError(f"{self.contract.family}: conditioning tensors of different batches: {', '.join(str(len(tensor)) for tensor in checked)}")
        return Conditioning(tuple(checked), tuple(self._mask(spec, *pair) for spec, pair in zip(wanted, zip(checked, masks, strict=True), strict=True)))

    def _checked(self, spec: Stream, tensor: torch.Tensor) -> torch.Tensor:
        family, tensor = self.contract.family, tensor.to(self.device)
        if spec.pooled and tensor.ndim == 2:
            tensor = tensor[:, None]
        if tensor.ndim != 3 or tensor.shape[2] != spec.width:
            raise AnyloomError(f"{family}: conditioning '{spec.name}' is [batch, tokens, {spec.width}], {list(tensor.shape)} was given")
        if not spec.any_length and tensor.shape[1] != spec.tokens:
            raise AnyloomError(f"{family}: conditioning '{spec.name}' has exactly {spec.tokens} tokens, {tensor.shape[1]} were given")
        return functional.normalize(tensor.float(), dim=-1) if spec.normalised else tensor

    def _mask(self, spec: Stream, tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        if not spec.masked:
            if mask is not None:
                raise AnyloomError(f"{self.contract.family}: conditioning '{spec.name}' takes no mask")
            return None
        mask = torch.ones(tensor.shape[:2], dtype=torch.int64) if mask is None else mask
        if mask.shape != tensor.shape[:2]:
            raise AnyloomError(f"{self.contract.family}: the mask of '{spec.name}' is {list(mask.shape)}, its tokens are {list(tensor.shape[:2])}")
        return mask.to(self.device, torch.int64)

    def empty(self, count: int) -> Conditioning:
        """The conditioning of the empty text, `count` times: what classifier-free guidance pushes away from (Ho & Salimans 2022, arXiv 2207.12598).

        Read from the directory's empty.safetensors; without that file the text encoder is opened once, and let go. Raises AnyloomError when neither is there.
        """
        if self._empty is None:
            self._empty = self.condition(*texts.read_empty(self.directory, self.contract, str(self.device)))
        return self._empty.repeat(count)

    # -- the denoiser ---------------------------------------------------------------------------------------------------------------

    def predict(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's output (see contract.prediction_type) for noisy latents [B, *latent_shape] at integer timesteps; float32.

        The weights are frozen; gradients flow to the conditioning (and the latents), if these ask for them.
        """
        cast = Conditioning(tuple(stream.to(self.dtype) for stream in conditioning.streams), conditioning.masks)
        return self._call(noisy.to(self.device, self.dtype), timesteps_B.to(self.device), cast).float()

    def guided(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning, guidance: float) -> torch.Tensor:
        """empty + guidance * (conditioned - empty); a guidance of at most 1 asks once and needs no empty conditioning."""
        if guidance <= 1.0:
            return self.predict(noisy, timesteps_B, conditioning)
        empty = self.empty(len(conditioning))
        if empty.fits(conditioning):
            both = self.predict(torch.cat([noisy, noisy]), torch.cat([timesteps_B, timesteps_B]), empty + conditioning)
            without, with_it = both.chunk(2)
        else:
            without, with_it = self.predict(noisy, timesteps_B, empty), self.predict(noisy, timesteps_B, conditioning)
        return without + guidance * (with_it - without)

    def step(self, scheduler: Any, output: torch.Tensor, timesteps: Sequence[torch.Tensor], index: int, latents: torch.Tensor, options: dict[str, Any]) -> Any:
        """One step of the sampler, from timesteps[index] to the next -> less noisy latents. options: what this scheduler's step takes besides."""
        return scheduler.step(output, timesteps[index], latents, return_dict=False, **options)[0]

    def _call(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} calls no denoiser")

    def direct(self, conditioning: Conditioning) -> torch.Tensor:
        """Latents [B, *latent_shape] of a decoder without a noise schedule: its conditioning, laid out as latents."""
        raise TypeError(f"{type(self).__name__} comes to its latents by denoising")

    # -- media ------------------------------------------------------------------------------------------------------------------------

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents in the VAE's own units and precision."""
        return (latents / self.contract.latent_scale + self.contract.latent_shift).to(self.device, self.dtype)

    @torch.no_grad()
    def media(self, latents: torch.Tensor) -> list[Medium]:
        """Clean latents [B, *latent_shape] -> one Medium each."""
        return self._decode(latents)

    def _decode(self, latents: torch.Tensor) -> list[Medium]:
        raise TypeError(f"{type(self).__name__} decodes nothing")


def pixels(values: torch.Tensor) -> np.ndarray:
    """VAE output in -1..1, channels last -> uint8. Raises NotFinite when a value is none."""
    if not torch.isfinite(values).all():
        raise NotFinite("the decoder gave values that are not finite; use float32, or bfloat16 instead of float16")
    return (values.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte().cpu().numpy()
