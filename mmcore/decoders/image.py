"""Images: Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752), a UNet over VAE latents that attends to text states.

Owns how its UNet is called and how latents become images; what the UNet predicts (noise in 1.x, velocity in 2.x) is the contract's.

Shape letters: B batch, H/W latent cells.
"""

from __future__ import annotations

from typing import Any

import torch

from mmcore.decoders.base import Conditioning, Decoder, pixels
from mmcore.types import Medium


class StableDiffusionDecoder(Decoder):
    """Latents [B, 4, H, W] -> images."""

    def _denoiser_class(self) -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel

    def _call(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(noisy, timesteps_B, encoder_hidden_states=conditioning.streams[0], return_dict=False)[0]
        return output

    def _decode(self, latents: torch.Tensor) -> list[Medium]:
        images = self.vae.decode(self.unscaled(latents), return_dict=False)[0]
        return [Medium("image", image) for image in pixels(images.permute(0, 2, 3, 1))]
