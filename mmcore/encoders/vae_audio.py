"""Audio clips -> latents of AudioLDM's and AudioLDM2's autoencoder: the mel spectrogram that their vocoder reads, encoded.

Owns the way from samples to mel cells, as those models were trained (Liu et al. 2023, arXiv 2301.12503, section 3; github.com/haoheliu/AudioLDM, folder
audioldm/audio): mean removed, peak 0.5, silence behind; magnitudes of a Hann window of 1024 samples, the vocoder's hop and number of mel bins from 0 Hz to
half the rate on Slaney's scale with unit areas, natural logarithm of at least 1e-5. Every audio clip gets the length of spec.max_seconds, in whole cells.
The latent is the mean, in the units the diffusion model is trained in. Input: a decoder's artifact and media bytes; output: features [N, E], one row per
cell, time first.

Shape letters: S samples, T mel frames, M mel bins, C latent channels (the width E), N cells in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from mmcore.decoders.contract import read_contract
from mmcore.encoder_config import VaeAudio
from mmcore.encoders.vae import VaeEncoder
from mmcore.media.decode import decode_audio

WINDOW, FLOOR, PEAK = 1024, 1e-5, 0.5
"""Samples of a window; smallest mel magnitude; largest absolute sample."""


class VaeAudioEncoder(VaeEncoder):
    """One audio clip -> its latent, one token per cell."""

    spec: VaeAudio

    def __init__(self, spec: VaeAudio, weights_dir: Path):
        """Raises ValueError as VaeEncoder does, and AnyloomError when the directory is no audio decoder or max_seconds makes no cell."""
        super().__init__(spec, weights_dir)
        contract = read_contract(weights_dir / "pipeline")
        self._rate, self._hop, bins = int(contract.rate_hz), contract.hop, contract.latent_shape[2] * contract.cell
        self._frames = contract.sized(seconds=spec.max_seconds)[1] * contract.cell
        self._mel_FM = torch.from_numpy(mel_filter_bank(WINDOW // 2 + 1, bins, 0.0, self._rate / 2, self._rate, norm="slaney", mel_scale="slaney")).float()

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> float32 [T, M] log mel magnitudes."""
        return self.log_mel(decode_audio(data, self._rate, self.spec.max_seconds, start_s, end_s))

    def log_mel(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples [S] -> float32 [T, M]; T is the same for every audio clip."""
        wave = torch.zeros(self._frames * self._hop)
        given = torch.from_numpy(np.array(samples[: len(wave)], np.float32))
        given = given - given.mean()
        wave[: len(given)] = given / (given.abs().max() + 1e-8) * PEAK
        spectrum_FT = torch.stft(wave, WINDOW, self._hop, window=torch.hann_window(WINDOW), center=True, pad_mode="reflect", return_complex=True).abs()
        mel_TM: np.ndarray = (spectrum_FT[:, : self._frames].T @ self._mel_FM).clamp(min=FLOOR).log().numpy()
        return mel_TM

    @torch.inference_mode()
    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [T, M] each -> latents [N, C] each."""
        latents_BCTM = self._latents(self._put(torch.from_numpy(np.stack(items)))[:, None])
        return list(self._stored(latents_BCTM.flatten(2).transpose(1, 2)))
