"""Audio clips at another rate: interpolation with a windowed sinc.

Owns the formula. Input: mono samples and two rates; output: mono samples. An encoder whose authors resampled this way hears what they did: FFmpeg's own
resampler, behind mmcore.media.decode, keeps more of the last tenth below the new Nyquist frequency.

Source: J. O. Smith, "Digital audio resampling" (ccrma.stanford.edu/~jos/resample), with a Hann window over ZEROS zero crossings on each side and the
cutoff at ROLLOFF of the lower Nyquist frequency: the choice of `torchaudio.functional.resample`.
"""

from __future__ import annotations

import math

import numpy as np

ZEROS, ROLLOFF = 6, 0.99
CHUNK = 1 << 15
"""Output samples per block, so that memory does not grow with the audio clip."""


def resample(samples: np.ndarray, hz: int, wanted_hz: int) -> np.ndarray:
    """float32 [n] at `hz` -> float32 [ceil(n * wanted_hz / hz)] at `wanted_hz`; silence stands before and behind."""
    samples = np.ascontiguousarray(samples, np.float32)
    if hz == wanted_hz:
        return samples
    common = math.gcd(hz, wanted_hz)
    old, new = hz // common, wanted_hz // common
    count = -(-len(samples) * new // old)
    cutoff = ROLLOFF * min(old, new) / old  # sinc zero crossings per input sample
    reach = math.ceil(ZEROS / cutoff)
    steps = np.arange(2 * reach + 2)
    phases = np.arange(min(new, count))  # output n lies (n * old % new) / new behind an input sample
    t = (steps - reach - (phases * old % new / new)[:, None]) * cutoff
    window = np.where(np.abs(t) < ZEROS, np.cos(t * np.pi / (2 * ZEROS)) ** 2, 0.0)
    weights = (np.sinc(t) * window * cutoff).astype(np.float32)
    padded = np.pad(samples, (reach, reach + 2))
    made = np.empty(count, np.float32)
    for start in range(0, count, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, count))
        near = padded[(numbers * old // new)[:, None] + steps]
        made[numbers] = np.einsum("nt,nt->n", near, weights[numbers % new])
    return made
