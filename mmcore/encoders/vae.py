"""Images and videos -> latents of a variational autoencoder (Stable Diffusion's, CogVideoX's and their relatives), through diffusers' classes.

Owns the square crop and the rows' layout. The weights are an autoencoder of their own (`encoder/`) or that of a decoder (`pipeline/vae`), so that latents
and denoiser are of one decoder. The latent is the mean of the encoder's distribution, so it is the same every time, in the units the
diffusion model is trained in: (mean - shift_factor) * scaling_factor of the model's config (Stable Diffusion: no shift, 0.18215; Rombach et al.
2022, arXiv 2112.10752). spec.image_size pixels per side give side = image_size / downsampling, stored row by row from the top left as
[side * side, channels]. A video's rows follow each other frame by frame. `latents` turns an image's rows back (for every modality:
mmcore.stores.latents). Input: a diffusers directory and media bytes; output: features [N, E].

Shape letters: B batch, C latent channels (the width E), F frames, H/W cells, N cells in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from infra.storage import read_json
from mmcore.decoders.opening import open_weights
from mmcore.encoder_config import EncoderConfig, VaeImage, VaeVideo
from mmcore.encoders.base import BatchedEncoder
from mmcore.media.decode import decode_image
from mmcore.media.scenes import sample_frames


def vae_folder(weights_dir: Path) -> Path:
    """Where a weights artifact keeps its autoencoder: a decoder's `pipeline/vae`, else `encoder`."""
    own = weights_dir / "pipeline" / "vae"
    return own if own.is_dir() else weights_dir / "encoder"


class VaeEncoder(BatchedEncoder):
    """What the autoencoders share. A subclass sets `classes` and adds prepare and forward."""

    classes: tuple[str, ...] = ("AutoencoderKL",)
    """diffusers classes that config.json may name."""

    def __init__(self, spec: EncoderConfig, weights_dir: Path):
        """Raises ValueError when the weights are of another class or have another number of latent channels."""
        self.spec = spec
        folder = vae_folder(weights_dir)
        import diffusers

        name = read_json(folder / "config.json").get("_class_name")
        if name not in self.classes:
            raise ValueError(f"the VAE in {weights_dir} is a {name}: {spec.kind} opens {' or '.join(self.classes)}")
        self._model = open_weights(getattr(diffusers, name), folder, torch.float32, "cpu")
        config = self._model.config
        if config.latent_channels != spec.width:
            raise ValueError(f"the VAE in {weights_dir} has {config.latent_channels} latent channels, the spec says width {spec.width}")
        self._cell = 2 ** (len(config.block_out_channels) - 1)
        self._shift, self._scale = config.get("shift_factor") or 0.0, config.scaling_factor

    def _latents(self, values: torch.Tensor) -> torch.Tensor:
        """What the autoencoder takes -> means of its latents in the diffusion model's units, float32."""
        with self._arithmetic():
            mean: torch.Tensor = self._model.encode(values).latent_dist.mean
        return (mean.float() - self._shift) * self._scale


class VaeSquareEncoder(VaeEncoder):
    """What the autoencoders of images and videos share: squares of spec.image_size pixels."""

    spec: VaeImage | VaeVideo

    def __init__(self, spec: VaeImage | VaeVideo, weights_dir: Path):
        """Raises ValueError as VaeEncoder does, and when the image size does not divide into cells."""
        super().__init__(spec, weights_dir)
        if spec.image_size % self._cell:
            step = self._cell
            raise ValueError(f"the VAE in {weights_dir} makes one cell of {step} x {step} pixels: image_size {spec.image_size} is no multiple of it")

    def _square(self, image: Image.Image) -> np.ndarray:
        side = self.spec.image_size
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)

    def _pixels(self, values: np.ndarray) -> torch.Tensor:
        """uint8 -> -1..1 on the encoder's device."""
        return self._put(torch.from_numpy(np.ascontiguousarray(values))).float() / 127.5 - 1


class VaeImageEncoder(VaeSquareEncoder):
    """One image -> its latent, one token per cell."""

    spec: VaeImage

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> uint8 [3, H, W]: the largest central square, resized; an image has no span."""
        return self._square(decode_image(data))

    @torch.inference_mode()
    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [3, H, W] each -> latents [N, C] each."""
        latents_BCHW = self._latents(self._pixels(np.stack(items)))
        return list(self._stored(latents_BCHW.flatten(2).transpose(1, 2)))


class VaeVideoEncoder(VaeSquareEncoder):
    """One video -> the latents of spec.frames frames, each by itself (AutoencoderKL) or over time (CogVideoX's). A video is one encoder call."""

    spec: VaeVideo
    classes = ("AutoencoderKL", "AutoencoderKLCogVideoX")

    def __init__(self, spec: VaeVideo, weights_dir: Path):
        """Raises ValueError as VaeSquareEncoder does, and when a VAE over time cannot take that many frames."""
        super().__init__(spec, weights_dir)
        self._over_time = type(self._model).__name__ == "AutoencoderKLCogVideoX"
        ratio = int(self._model.config.get("temporal_compression_ratio") or 1)
        if self._over_time and (spec.frames - 1) % ratio:
            raise ValueError(f"the VAE in {weights_dir} takes 1 + a multiple of {ratio} frames, the spec says {spec.frames}")

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> uint8 [F, 3, H, W]: frames from the middles of equal parts of the video, each its largest central square."""
        return np.stack([self._square(frame) for frame in sample_frames(data, self.spec.frames, "uniform", start_s, end_s)])

    @torch.inference_mode()
    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [F, 3, H, W] each -> latents [N, C] each, frame by frame."""
        return [self._video(frames) for frames in items]

    def _video(self, frames: np.ndarray) -> np.ndarray:
        pixels_F3HW = self._pixels(frames)
        if self._over_time:
            latents_FCHW = self._latents(pixels_F3HW.transpose(0, 1)[None])[0].transpose(0, 1)
        else:
            latents_FCHW = self._latents(pixels_F3HW)
        return self._stored(latents_FCHW.permute(0, 2, 3, 1).flatten(0, 2))


def latents(rows_NC: np.ndarray) -> np.ndarray:
    """Stored rows -> float32 [C, H, W], what a diffusion model works on. Raises ValueError when they are no square."""
    side = math.isqrt(len(rows_NC))
    if side * side != len(rows_NC):
        raise ValueError(f"{len(rows_NC)} latent rows are no square image")
    return rows_NC.astype(np.float32).T.reshape(-1, side, side)
