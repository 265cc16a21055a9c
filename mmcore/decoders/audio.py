"""Audio clips: AudioLDM (Liu et al. 2023, arXiv 2301.12503) and AudioLDM2 (Liu et al. 2023, arXiv 2308.05734): mel latents, a VAE and a HiFi-GAN vocoder.

Owns how their UNets are called and how latents become samples. AudioLDM is driven by one CLAP vector that enters as a class label beside the time
embedding; it has no text to attend to. AudioLDM2 attends to two sequences.

Shape letters: B batch.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from mmcore.decoders.base import Conditioning, Decoder
from mmcore.types import Medium, NotFinite


class AudioLDMDecoder(Decoder):
    """Latents [B, 8, time, mel] -> audio clips, driven by a class label."""

    def _denoiser_class(self) -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel

    @cached_property
    def vocoder(self) -> Any:
        """The mel spectrogram's way to samples, opened when something is decoded."""
        from transformers import SpeechT5HifiGan

        return self.open(SpeechT5HifiGan, "vocoder")

    def _call(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        label = conditioning.streams[0][:, 0]
        output: torch.Tensor = self.denoiser(noisy, timesteps_B, encoder_hidden_states=None, class_labels=label, return_dict=False)[0]
        return output

    def _decode(self, latents: torch.Tensor) -> list[Medium]:
        mel_BTM = self.vae.decode(self.unscaled(latents), return_dict=False)[0].squeeze(1)
        audio_BS = self.vocoder(mel_BTM).float()
        if not torch.isfinite(audio_BS).all():
            raise NotFinite("the decoder gave values that are not finite; use float32, or bfloat16 instead of float16")
        return [Medium("audio", samples_S.cpu().numpy(), self.contract.rate_hz) for samples_S in audio_BS]


class AudioLDM2Decoder(AudioLDMDecoder):
    """The same latents, driven by the states AudioLDM2's language model generates and by T5 states with their mask."""

    def _denoiser_class(self) -> Any:
        from diffusers import AudioLDM2UNet2DConditionModel

        return AudioLDM2UNet2DConditionModel

    def _call(self, noisy: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        generated, text = conditioning.streams
        output: torch.Tensor = self.denoiser(
            noisy,
            timesteps_B,
            encoder_hidden_states=generated,
            encoder_hidden_states_1=text,
            encoder_attention_mask_1=conditioning.masks[1],
            return_dict=False,
        )[0]
        return output
