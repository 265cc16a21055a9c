"""Settings of the small image decoder that is trained here, of its judge, and of the fits that train them.

Owns plain frozen dataclasses only: importing this module must not import torch, so that planning stays instant. Every field is identity.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import FitConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDecoderConfig:
    """A latent diffusion model of crops around easy-VQA's shapes, driven by the token states of a text encoder."""

    source: str = "easyvqa_captions"
    """Dataset of the training split; its images whose caption names a colour and a shape are learned from."""
    side: int = 32
    """Pixels of a crop's side; a multiple of the autoencoder's cell (2 ** (number of vae_widths - 1))."""
    tokens: int = 16
    """Longest prompt in tokens, CLS and SEP included."""
    vae_widths: tuple[int, ...] = (16, 32, 32)
    """Channels of the autoencoder's levels; every level but the last halves the side."""
    latent_channels: int = 4
    vae: FitConfig = FitConfig(steps=500, batch=32, lr=2e-3, warmup_steps=100)
    l1: float = 0.3
    """Weight of the absolute error beside the squared one."""
    shape_weight: float = 4.0
    """Weight of the shape's pixels against the background's in the autoencoder's loss."""
    kl: float = 3e-4
    """Weight of the latents' divergence from a standard normal, as a mean over their elements."""
    unet_widths: tuple[int, ...] = (48, 96)
    """Channels of the UNet's levels; every level has cross-attention."""
    heads: int = 4
    """Attention heads of every level."""
    norm_groups: int = 16
    unet: FitConfig = FitConfig(steps=1200, batch=32, lr=1e-3, warmup_steps=50, weight_decay=1e-3, ema=0.995)
    empty_share: float = 0.1
    """Share of the training images whose prompt is empty, for classifier-free guidance."""
    state_noise: float = 0.6
    """Noise that is added to a training prompt's states: a share of their own spread, drawn evenly from 0 to this for each image. An output projector comes
    near the states it aims at, not upon them; a decoder that only knows exact ones mistakes the colours."""
    padded_share: float = 0.5
    """Share of the prompts whose rows behind the last token are the text encoder's own, as a diffusers pipeline gives them; the other prompts
    have zeros there, as the `targets` step stores them and output projectors learn them."""
