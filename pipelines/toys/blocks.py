"""Blocks: the parts that several toy decoders share.

Owns the toy text encoder, the toy audio side (VAE and vocoder) and the sizes of the 2D networks. Input: a seed. Output: random models, the same ones each
time. Raises nothing of its own.
"""

from __future__ import annotations

from typing import Any

from mmcore.runtime.seeding import seeded
from pipelines.toys.joint import BODY, CONTEXT, WIDTH, tiny_clip

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's noise schedule."""

HOP_RATES, MEL_BINS = (5, 4, 4, 2), 16
"""The toy vocoder's upsampling (160 samples per mel frame, as the real one's) and its mel bins (64)."""

BLOCKS_2D: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}


def clip_text(seed: int) -> dict[str, Any]:
    """text_encoder and tokenizer of the CLIP-driven families: 64 tokens of width 32."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_clip(seed)[1]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with seeded(seed):
        encoder = CLIPTextModel(CLIPTextConfig(**BODY, **ids, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, projection_dim=WIDTH))
    return {"text_encoder": encoder, "tokenizer": tokenizer}


def audio_side(seed: int) -> dict[str, Any]:
    """VAE (one mel cell is 4 x 4) and HiFi-GAN vocoder (16 kHz) of the audio families."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        model_in_dim=MEL_BINS,
        sampling_rate=16000,
        upsample_initial_channel=32,
        upsample_rates=list(HOP_RATES),
        upsample_kernel_sizes=[rate + 6 if rate % 2 else 2 * rate for rate in HOP_RATES],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    with seeded(seed):
        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8,) * 3,
            norm_num_groups=4,
            latent_channels=8,
            scaling_factor=0.9227,
        )
        return {"vae": vae, "vocoder": SpeechT5HifiGan(config)}
