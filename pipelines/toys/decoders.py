"""Random decoders at toy size, made from a seed: real diffusers pipelines with the layout, schedules and prediction types of the published ones.

Owns the toy architectures. Input: a seed; output: a pipeline of diffusers whose save_pretrained writes the standard directory. Same seed, same values.
The two pipeline classes that diffusers has retired are built in pipelines.toys.retired.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcore.decoders.contract import read_contract
from mmcore.decoders.texts import write_empty
from mmcore.runtime.seeding import seeded
from pipelines.toys import retired as weights_deprecated
from pipelines.toys.blocks import BLOCKS_2D, SCALED, audio_side, clip_text
from pipelines.toys.joint import BODY, WIDTH, tiny_clap
from pipelines.toys.parts import tiny_vae
from pipelines.toys.voice import TinyVoice

T5_WIDTH, T5_CONTEXT, GPT_WIDTH = 24, 16, 32
"""Channels and longest text of the toy T5; channels of the toy GPT-2."""


def t5_text(seed: int) -> tuple[Any, Any]:
    """(T5 encoder of one layer, tokenizer over printable ASCII)."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(chr(code), -2.0) for code in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=T5_CONTEXT)
    config = T5Config(vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    with seeded(seed):
        return T5EncoderModel(config), tokenizer


def _stable_diffusion(seed: int, scheduler: Any) -> Any:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    with seeded(seed):
        unet = UNet2DConditionModel(sample_size=4, cross_attention_dim=BODY["hidden_size"], **BLOCKS_2D)
    parts = {"vae": tiny_vae(seed)[0], "unet": unet, "scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**clip_text(seed), **parts, requires_safety_checker=False)


def tiny_sd15(seed: int) -> Any:
    """Stable Diffusion 1.5's layout: predicts the noise, PNDM sampler; images of 32 x 32."""
    from diffusers import PNDMScheduler

    return _stable_diffusion(seed, PNDMScheduler(**SCALED, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1))


def tiny_sd2(seed: int) -> Any:
    """Stable Diffusion 2's layout: predicts the velocity, Euler sampler, which works in sigmas."""
    from diffusers import EulerDiscreteScheduler

    return _stable_diffusion(seed, EulerDiscreteScheduler(**SCALED, prediction_type="v_prediction", steps_offset=1))


def tiny_audioldm2(seed: int) -> Any:
    """AudioLDM2's layout: a UNet that attends to 8 generated GPT-2 states and to T5 states."""
    from diffusers import AudioLDM2Pipeline, AudioLDM2UNet2DConditionModel, DDIMScheduler
    from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel
    from transformers import GPT2Config, GPT2LMHeadModel

    clap, tokenizer, extractor = tiny_clap(seed)
    t5, tokenizer_2 = t5_text(seed)
    with seeded(seed):
        unet = AudioLDM2UNet2DConditionModel(
            sample_size=8, in_channels=8, out_channels=8, cross_attention_dim=[[None, GPT_WIDTH, T5_WIDTH]] * 2, transformer_layers_per_block=1, **BLOCKS_2D
        )
        projection = AudioLDM2ProjectionModel(WIDTH, T5_WIDTH, GPT_WIDTH)
        language_model = GPT2LMHeadModel(
            GPT2Config(vocab_size=32, n_positions=64, n_embd=GPT_WIDTH, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        )
    return AudioLDM2Pipeline(
        text_encoder=clap,
        text_encoder_2=t5,
        projection_model=projection,
        language_model=language_model,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        feature_extractor=extractor,
        unet=unet,
        scheduler=DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        **audio_side(seed),
    )


def tiny_cogvideox(seed: int, rotary: bool = False) -> Any:
    """CogVideoX's layout: 5 images of 32 x 32 in 2 latent frames; predicts the velocity, its schedule ends in pure noise.

    Like the 2B model (sinusoidal positions, DDIM) or, with `rotary`, like the 5B model (rotary positions, DPM solver).
    """
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    t5, tokenizer = t5_text(seed)
    with seeded(seed):
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=T5_WIDTH,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=T5_CONTEXT,
            use_rotary_positional_embeddings=rotary,
        )
        vae = AutoencoderKLCogVideoX(block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2, sample_height=32, sample_width=32)
    kind = CogVideoXDPMScheduler if rotary else CogVideoXDDIMScheduler
    scheduler = kind(
        **SCALED,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        timestep_spacing="trailing",
        snr_shift_scale=1.0 if rotary else 3.0,
    )
    return CogVideoXPipeline(tokenizer=tokenizer, text_encoder=t5, vae=vae, transformer=transformer, scheduler=scheduler)


def _deprecated(name: str) -> Callable[[int], Any]:
    """A maker of pipelines.toys.retired, imported when it is called: that diffusers drops its classes breaks that file only."""

    def make(seed: int) -> Any:

        return getattr(weights_deprecated, name)(seed)

    return make


DECODERS: dict[str, Callable[[int], Any]] = {
    "tiny-sd15": tiny_sd15,
    "tiny-sd2": tiny_sd2,
    "tiny-text-to-video": _deprecated("tiny_text_to_video"),
    "tiny-audioldm": _deprecated("tiny_audioldm"),
    "tiny-audioldm2": tiny_audioldm2,
    "tiny-cogvideox": tiny_cogvideox,
    "tiny-cogvideox-rotary": lambda seed: tiny_cogvideox(seed, rotary=True),
    "tiny-voice": TinyVoice,
}
"""Name in mmcore.decoders.catalogue -> a seeded pipeline of diffusers, or what saves itself like one."""


def save_decoder(pipeline: Any, directory: Path) -> Path:
    """Write a pipeline in the standard directory format, safetensors only, with its empty conditioning (for guidance) beside the weights."""

    pipeline.save_pretrained(directory, safe_serialization=True)
    if read_contract(directory).denoises:
        write_empty(directory)
    return directory
