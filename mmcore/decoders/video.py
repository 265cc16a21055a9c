"""Videos: text-to-video UNets (ModelScope and ZeroScope; Wang et al. 2023, arXiv 2308.06571) and CogVideoX (Yang et al. 2024, arXiv 2408.06072).

Owns how their denoisers are called and how latents become images. The UNet3D has no pipeline of diffusers behind it here, because diffusers has
retired that class.

Shape letters: B batch, F frames, H/W latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmcore.decoders.base import Conditioning, Decoder, pixels
from mmcore.types import Medium


class TextToVideoDecoder(Decoder):
    """Latents [B, 4, F, H, W] of a UNet3D -> videos; every frame is decoded by itself."""

    def _denoiser_class(self) -> Any:
        from diffusers import UNet3DConditionModel

        return UNet3DConditionModel

    def _call(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(noisy, timesteps_B, encoder_hidden_states=conditioning.streams[0], return_dict=False)[0]
        return output

    def _decode(self, latents: torch.Tensor) -> list[Medium]:
        videos = []
        for latent in self.unscaled(latents):
            frames = self.vae.decode(latent.transpose(0, 1), return_dict=False)[0]
            videos.append(Medium("video", pixels(frames.permute(0, 2, 3, 1)), self.contract.rate_hz))
        return videos


class CogVideoXDecoder(Decoder):
    """Latents [B, F, 16, H, W] of a transformer over text and video tokens -> videos; the VAE spreads frames over time."""

    part = "transformer"

    def _denoiser_class(self) -> Any:
        from diffusers import CogVideoXTransformer3DModel

        return CogVideoXTransformer3DModel

    def _vae_class(self) -> Any:
        from diffusers import AutoencoderKLCogVideoX

        return AutoencoderKLCogVideoX

    def _call(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            hidden_states=noisy,
            encoder_hidden_states=conditioning.streams[0],
            timestep=timesteps_B,
            image_rotary_emb=self._rotary(noisy.shape),
            return_dict=False,
        )[0]
        return output

    def _rotary(self, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rotary positions of a latent [B, F, C, H, W], None for a model with other positions. The grid of the trained size is cropped to this one's
        aspect ratio (CogVideoX 1.0) or cut from its corner (1.5, which has patches in time)."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config = self.denoiser.config
        if not config.use_rotary_positional_embeddings:
            return None
        patch, in_time = config.patch_size, config.patch_size_t
        grid = (shape[3] // patch, shape[4] // patch)
        base = (config.sample_height // patch, config.sample_width // patch)
        if in_time is None:
            crops = get_resize_crop_region_for_grid(grid, base[1], base[0])
            options: dict[str, Any] = {"crops_coords": crops, "temporal_size": shape[1]}
        else:
            frames = (shape[1] + in_time - 1) // in_time
            options = {"crops_coords": None, "temporal_size": frames, "grid_type": "slice", "max_size": base}
        rotary: Any = get_3d_rotary_pos_embed(config.attention_head_dim, grid_size=grid, device=self.device, **options)
        return rotary

    def step(self, scheduler: Any, output: torch.Tensor, timesteps: Sequence[torch.Tensor], index: int, latents: torch.Tensor, options: dict[str, Any]) -> Any:
        """See Decoder; CogVideoX's DPM solver also takes the clean latents it guessed one step before, kept on the scheduler between the steps."""
        if type(scheduler).__name__ != "CogVideoXDPMScheduler":
            return super().step(scheduler, output, timesteps, index, latents, options)
        before = timesteps[index - 1] if index else None
        old = scheduler.guessed if index else None
        latents, scheduler.guessed = scheduler.step(output, old, timesteps[index], before, latents, return_dict=False, **options)
        return latents

    def _decode(self, latents: torch.Tensor) -> list[Medium]:
        videos = []
        for latent in self.unscaled(latents):
            frames = self.vae.decode(latent.transpose(0, 1)[None], return_dict=False)[0][0]
            videos.append(Medium("video", pixels(frames.permute(1, 2, 3, 0)), self.contract.rate_hz))
        return videos
