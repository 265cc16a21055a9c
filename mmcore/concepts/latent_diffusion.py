"""A small latent diffusion model: the networks, their losses, and the directory that diffusers opens.

Owns the autoencoder, the UNet and the noise schedule as diffusers' own classes, what each learns, and how they are packed together with a text
encoder as an ordinary StableDiffusionPipeline. Input: crops, token states of prompts; output: networks and a pipeline directory.

The latents are standardised per channel inside the autoencoder's 1x1 convolutions, so that scaling_factor is 1 and no reader needs a shift. The noise
schedule reaches zero signal (Lin et al. 2024, arXiv 2305.08891), which needs the velocity as target (Salimans & Ho 2022, arXiv 2202.00512).

Shape letters: B batch, C latent channels, H, W cells or pixels, P prompts, T text tokens, E width of the text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from infra.storage import list_files, write_atomic
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.runtime.seeding import seeded

TRACES = ("_name_or_path", "name_or_path", "local_files_only", "is_local")
"""Entries of JSON files that say where something was made; they are left out, so that equal work gives equal bytes."""


def build_vae(config: ImageDecoderConfig) -> Any:
    """AutoencoderKL with seeded weights: 3 x side x side pixels in [-1, 1] <-> latents. Raises ValueError when the side does not divide into cells."""
    cell = 2 ** (len(config.vae_widths) - 1)
    if config.side % cell or config.side % 8:
        raise ValueError(f"side {config.side}: it must be a multiple of 8 and of the autoencoder's cell of {cell} pixels")
    levels = len(config.vae_widths)
    with seeded(config.vae.seed):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.vae_widths,
            layers_per_block=1,
            latent_channels=config.latent_channels,
            norm_num_groups=min(8, min(config.vae_widths)),
            sample_size=config.side,
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )


def build_unet(config: ImageDecoderConfig, text_width: int) -> Any:
    """UNet2DConditionModel with seeded weights, cross-attention to text_width channels at every level."""
    levels = len(config.unet_widths)
    with seeded(config.unet.seed):
        return UNet2DConditionModel(
            sample_size=config.side // 2 ** (len(config.vae_widths) - 1),
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            block_out_channels=config.unet_widths,
            layers_per_block=1,
            attention_head_dim=config.heads,
            norm_num_groups=config.norm_groups,
            cross_attention_dim=text_width,
        )


def build_scheduler() -> Any:
    """DDIMScheduler: scaled-linear betas with zero terminal signal, velocity target, trailing steps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# ---- what they learn ------------------------------------------------------------------------------------------------


def vae_loss(vae: Any, pixels_BCHW: torch.Tensor, mask_BHW: torch.Tensor, config: ImageDecoderConfig, generator: torch.Generator) -> torch.Tensor:
    """Squared and absolute error, heavier on the shape, and the latents' divergence (Kingma & Welling 2014, arXiv 1312.6114).

    pixels: [-1, 1]; mask: bool, the shape's pixels. Scalar.
    """
    posterior = vae.encode(pixels_BCHW).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - pixels_BCHW
    weights = (1.0 + (config.shape_weight - 1.0) * mask_BHW.float()).unsqueeze(1)
    reconstruction = (weights * (error.square() + config.l1 * error.abs())).sum() / (weights.sum() * error.shape[1])
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    return reconstruction + config.kl * divergence


@torch.no_grad()
def encode(vae: Any, pixels_BCHW: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Means of the latents [B, C, h, w] of pixels in [-1, 1]."""
    return torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels_BCHW.split(batch)])


@torch.no_grad()
def decode(vae: Any, latents_BCHW: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] of latents."""
    return torch.cat([vae.decode(chunk).sample for chunk in latents_BCHW.split(batch)]).clamp(-1, 1)


@torch.no_grad()
def standardise(vae: Any, latents_BCHW: torch.Tensor) -> None:
    """Shift and scale the latents to mean 0 and deviation 1 per channel over the given ones, inside quant_conv and post_quant_conv.

    The decoder gives the same pixels for the new latents as it gave for the old ones.
    """
    mean_C, std_C = latents_BCHW.mean((0, 2, 3)), latents_BCHW.std((0, 2, 3))
    channels = len(mean_C)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= std_C[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean_C) / std_C
    into.bias[channels:] -= 2 * std_C.log()
    out.bias += out.weight[:, :, 0, 0] @ mean_C
    out.weight *= std_C[None, :, None, None]


def stratified_timesteps(batch: int, num_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """int64 [B]: one from each of `batch` equal stretches of the schedule."""
    return ((torch.arange(batch) + torch.rand(batch, generator=generator)) / batch * num_timesteps).long().clamp(max=num_timesteps - 1)


def diffusion_loss(unet: Any, scheduler: Any, latents_BCHW: torch.Tensor, states_BTE: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Squared error of the velocity at stratified timesteps. Scalar."""
    noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
    timesteps_B = stratified_timesteps(len(latents_BCHW), scheduler.config["num_train_timesteps"], generator)
    noisy_BCHW = scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    target_BCHW = scheduler.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
    return torch.nn.functional.mse_loss(unet(noisy_BCHW, timesteps_B, encoder_hidden_states=states_BTE).sample, target_BCHW)


def noisy(states_BTE: torch.Tensor, spread_E: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Prompt states with normal noise of `spread` per channel, times a level in 0..most that is drawn for each prompt."""
    if not most:
        return states_BTE
    levels_B = most * torch.rand(len(states_BTE), generator=generator)
    return states_BTE + levels_B[:, None, None] * spread_E * torch.randn(states_BTE.shape, generator=generator)


# ---- prompts and the directory --------------------------------------------------------------------------------------


def load_text_parts(directory: Path, tokens: int) -> tuple[Any, Any]:
    """(tokenizer, text encoder) of a transformers directory, set up as a StableDiffusionPipeline needs them: it pads every prompt to the tokenizer's
    model_max_length, and hands on the mask when the encoder's config says so."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = tokens
    encoder = AutoModel.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32).eval().requires_grad_(False)
    encoder.config.use_attention_mask = True
    return tokenizer, encoder


@torch.no_grad()
def prompt_states(tokenizer: Any, encoder: Any, prompts: Sequence[str], batch: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """(states [P, T, E], mask bool [P, T] of real tokens), cut and padded to the tokenizer's length as the pipeline does it."""
    states, masks = [], []
    for start in range(0, len(prompts), batch):
        length = tokenizer.model_max_length
        texts, options = list(prompts[start : start + batch]), {"padding": "max_length", "max_length": length, "return_tensors": "pt"}
        given = tokenizer(texts, truncation=True, split_special_tokens=True, **options)
        states.append(encoder(given["input_ids"], attention_mask=given["attention_mask"])[0].float())
        masks.append(given["attention_mask"].bool())
    return torch.cat(states), torch.cat(masks)


def save_pipeline(directory: Path, vae: Any, unet: Any, tokenizer: Any, text_encoder: Any) -> None:
    """Write what StableDiffusionPipeline.from_pretrained opens: safetensors and JSON, without traces of where they were made."""
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(directory, safe_serialization=True)
    for name in list_files(directory):
        path = directory / name
        path.chmod(0o644)  # safetensors makes them private
        if name.endswith(".json") and name != "tokenizer/tokenizer.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in values.items() if key not in TRACES}
            write_atomic(path, json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def load_pipeline(directory: Path) -> Any:
    """The saved StableDiffusionPipeline, silent, on the CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(directory, local_files_only=True, use_safetensors=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: Any, states_BTE: torch.Tensor, empty_TE: torch.Tensor, noise_BCHW: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [0, 1] of prompt states: the pipeline's own call, guided away from the empty prompt's states.

    noise: standard normal latents, one for each image.
    """
    with torch.inference_mode():
        made = pipeline(
            prompt_embeds=states_BTE,
            negative_prompt_embeds=empty_TE.expand_as(states_BTE),
            latents=noise_BCHW,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
        )
    pixels: torch.Tensor = made.images
    return pixels.clone()
