"""Pictures -> latents of a variational autoencoder (Stable Diffusion's and its relatives), through diffusers' AutoencoderKL.

Owns the square crop and the rows' layout. The latent is the mean of the encoder's distribution, so it is the same every time, in the units the
diffusion model is trained in: (mean - shift_factor) * scaling_factor of the model's config (Stable Diffusion: no shift, 0.18215; Rombach et al.
2022, arXiv 2112.10752). spec.image_size pixels per side give side = image_size / downsampling, stored row by row from the top left as
[side * side, channels]; spec.grid is ignored. `latents` turns the rows back into what the decoder takes. Input: a diffusers directory and picture
bytes; output: features [N, E]. Refuses to know what the latents are for.

Shape letters: B batch, C latent channels (the width E), H/W cells, N = H * W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps

from mmcore.config import EncoderSpec
from mmcore.data.media import decode_image
from mmcore.encoders import BatchedEncoder


class VaeImageEncoder(BatchedEncoder):
    """One picture -> its latent, one token per cell."""

    def __init__(self, spec: EncoderSpec, weights_dir: Path):
        """Raises ValueError when the weights have another number of latent channels or the picture size does not divide into cells."""
        self.spec = spec
        folder = weights_dir / "encoder"
        self._model = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32)
        self._model.eval().requires_grad_(False)
        config = self._model.config
        if config.latent_channels != spec.width:
            raise ValueError(f"the VAE in {weights_dir} has {config.latent_channels} latent channels, the spec says width {spec.width}")
        step = 2 ** (len(config.block_out_channels) - 1)
        if spec.image_size % step:
            raise ValueError(f"the VAE in {weights_dir} makes one cell of {step} x {step} pixels: image_size {spec.image_size} is no multiple of it")
        self._shift, self._scale = config.shift_factor or 0.0, config.scaling_factor

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> uint8 [3, H, W]: the largest central square, resized; a picture has no span."""
        side = self.spec.image_size
        picture = ImageOps.fit(decode_image(data), (side, side), Image.Resampling.BICUBIC)
        return np.asarray(picture).transpose(2, 0, 1)

    @torch.inference_mode()
    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [3, H, W] each -> latents [N, C] each."""
        pixels = self._put(torch.from_numpy(np.stack(items))).float() / 127.5 - 1
        with self._arithmetic():
            mean_BCHW = self._model.encode(pixels).latent_dist.mean
        latents_BCHW = (mean_BCHW.float() - self._shift) * self._scale
        return list(self._stored(latents_BCHW.flatten(2).transpose(1, 2)))


def latents(rows_NC: np.ndarray) -> np.ndarray:
    """Stored rows -> float32 [C, H, W], what a diffusion model works on. Raises ValueError when they are no square."""
    side = math.isqrt(len(rows_NC))
    if side * side != len(rows_NC):
        raise ValueError(f"{len(rows_NC)} latent rows are no square picture")
    return rows_NC.astype(np.float32).T.reshape(-1, side, side)
