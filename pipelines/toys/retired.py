"""Toy decoders whose pipeline classes diffusers has retired (last supported in 0.33): text-to-video and AudioLDM.

Owns the only imports of those classes, which are needed to write a directory in their layout; mmcore.decoders opens such a directory without them.
When diffusers drops the classes, this file is what breaks. Input: a seed; output: a pipeline of diffusers.
"""

from __future__ import annotations

from typing import Any

from mmcore.runtime.seeding import seeded
from pipelines.toys.blocks import BLOCKS_2D, SCALED, audio_side, clip_text
from pipelines.toys.joint import BODY, WIDTH, tiny_clap
from pipelines.toys.parts import tiny_vae


def tiny_text_to_video(seed: int) -> Any:
    """ModelScope's and ZeroScope's layout: a UNet3D that attends to CLIP states; images of 32 x 32."""
    from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    with seeded(seed):
        unet = UNet3DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=BODY["hidden_size"],
            attention_head_dim=4,
        )
    scheduler = DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return TextToVideoSDPipeline(vae=tiny_vae(seed)[0], unet=unet, scheduler=scheduler, **clip_text(seed))


def tiny_audioldm(seed: int) -> Any:
    """AudioLDM's layout: a UNet whose time embedding is joined by one CLAP vector; audio clips of 0.32 s."""
    from diffusers import AudioLDMPipeline, DDIMScheduler, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    tokenizer = tiny_clap(seed)[1]
    with seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            cross_attention_dim=BLOCKS_2D["block_out_channels"],
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=WIDTH,
            class_embeddings_concat=True,
            **BLOCKS_2D,
        )
        encoder = ClapTextModelWithProjection(
            ClapTextConfig(**BODY, vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id, projection_dim=WIDTH)
        )
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return AudioLDMPipeline(text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, **audio_side(seed))
