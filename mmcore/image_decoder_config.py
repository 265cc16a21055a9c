"""Settings of the small picture decoder that is trained here, of its judge, and of the fits that train them.

Owns plain frozen dataclasses only: importing this module must not import torch, so that planning stays instant. Every field is identity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """One fit of one small network: AdamW, linear warm-up, cosine decay to 0."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Pictures per step."""
    lr: float
    """Peak of the learning rate."""
    warmup_steps: int
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Global gradient norm; 0 clips nothing."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is kept in place of the last ones; 0 keeps the last ones."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Draws the initial weights, the order of the pictures and the noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDecoderConfig:
    """A latent diffusion model of crops around easy-VQA's shapes, driven by the token states of a text encoder."""

    source: str = "easyvqa_captions"
    """Dataset of the training split; its pictures whose caption names a colour and a shape are learned from."""
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
    """Share of the training pictures whose prompt is empty, for classifier-free guidance."""
    state_noise: float = 0.6
    """Noise that is added to a training prompt's states: a share of their own spread, drawn evenly from 0 to this for each picture. An output projector comes
    near the states it aims at, not upon them; a decoder that only knows exact ones mistakes the colours."""
    padded_share: float = 0.5
    """Share of the prompts whose rows behind the last token are the text encoder's own, as a diffusers pipeline gives them; the other prompts
    have zeros there, as the `targets` step stores them and output projectors learn them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """A classifier of shape and colour that learns from real pictures which no decoder has seen (picture_judge)."""

    source: str = "easyvqa_test"
    """Dataset with questions about its pictures; what they affirm is the truth."""
    side: int = 32
    """Pixels of a crop's side, as the decoder makes them."""
    train_share: float = 0.5
    """Share of the pictures that it learns from; it is tested on the others."""
    fit: FitConfig = FitConfig(steps=250, batch=64, lr=2e-3, warmup_steps=40, weight_decay=1e-2)


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingEvalConfig:
    """Requests to the whole model, and ordinary talk beside them (eval_drawing)."""

    draws: int = 4
    """Requests for every concept, in new and in trained wordings."""
    others: int = 48
    """Requests for held-out things that are no shapes."""
    others_source: str = "stamps_heldout"
    """Dataset whose captions name them."""
    others_max_words: int = 5
    """Longest caption."""
    questions: int = 100
    """Test pictures that are asked about; none of these questions asks for a picture."""
    questions_source: str = "easyvqa_test"
    """Dataset of these pictures."""
    max_new_tokens: int = 24
    """Longest reply."""
    chunk: int = 192
    """Prompts answered together; part of the identity because batches fix the rounding."""
    batch: int = 24
    """Pictures drawn together; the same."""
    seed: int = 0
    """Draws the prompts and the noise."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PicturesEvalConfig:
    """Seeded draws of the decoder, judged (eval_pictures)."""

    draws: int = 4
    """Pictures of every concept under every condition."""
    steps: int = 25
    """DDIM steps of a picture."""
    guidance: float = 2.0
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598). Measured on 48 pictures in new wordings: 1 gives 0.88, 2 gives 0.98, 4 gives 0.85
    and 7 gives 0.54 with shape and colour right: with a noise schedule that reaches zero signal, stronger guidance shifts the colours."""
    batch: int = 24
    """Pictures drawn together; part of the identity because it fixes the rounding."""
    seed: int = 0
    """Draws the noise and the wordings; the same noise under every condition."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0
