"""Log-mel filter banks as Kaldi computes them, in torch.

Owns the frames, the window, the mel bank and the logarithm. Input: mono samples in -1..1; output: fbank_FM float32. Formulas: Kaldi's feat/feature-fbank and
feat/mel-computations with `htk_compat`, `snip_edges`, no dither and no energy (Povey et al. 2011, "The Kaldi speech recognition toolkit"); mel(f) = 1127
ln(1 + f / 700).

Shape letters: F frames, W samples of a window, M mel bins.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

PREEMPHASIS = 0.97
LOW_HZ = 20.0


def fbank(samples: torch.Tensor, hz: int, mel_bins: int = 128, window_s: float = 0.025, shift_s: float = 0.010) -> torch.Tensor:
    """samples [n] -> log mel energies [F, M], F = 1 + (n - W) // shift; F is 0 for an audio clip shorter than one window. Arithmetic in the samples' dtype."""
    width, shift = round(window_s * hz), round(shift_s * hz)
    if len(samples) < width:
        return samples.new_zeros(0, mel_bins)
    frames_FW = samples.unfold(0, width, shift)
    frames_FW = frames_FW - frames_FW.mean(dim=1, keepdim=True)
    before_FW = functional.pad(frames_FW[None], (1, 0), mode="replicate")[0, :, :-1]
    frames_FW = (frames_FW - PREEMPHASIS * before_FW) * torch.hann_window(width, periodic=False, dtype=samples.dtype)
    padded = 1 << (width - 1).bit_length()
    power = torch.fft.rfft(frames_FW, n=padded).abs().square()
    energies_FM = power[:, : padded // 2] @ mel_bank(mel_bins, padded, hz).to(samples.dtype)
    return energies_FM.clamp(min=torch.finfo(torch.float32).eps).log()


def mel(hz: torch.Tensor) -> torch.Tensor:
    """Hertz -> mel."""
    return 1127.0 * torch.log1p(hz / 700.0)


@functools.lru_cache(maxsize=8)
def mel_bank(mel_bins: int, fft: int, hz: int) -> torch.Tensor:
    """Triangles in mel space [fft // 2, M], float64, from LOW_HZ to half the sampling rate; the highest frequency bin belongs to none."""
    edges = torch.linspace(0, 1, mel_bins + 2, dtype=torch.float64)
    low, high = mel(torch.tensor([LOW_HZ, hz / 2], dtype=torch.float64))
    edges = low + (high - low) * edges
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = mel(torch.arange(fft // 2, dtype=torch.float64) * hz / fft)[:, None]
    return torch.minimum((at - left) / (centre - left), (right - at) / (right - centre)).clamp(min=0)
