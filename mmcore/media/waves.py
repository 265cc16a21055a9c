"""Waves: decoded audio of any rate and number of channels -> mono samples at one rate.

Owns the resampling and the mix. Input: frames of PyAV; output: float32 samples, piece by piece. Raises what libav raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def mono(frames: Iterator[Any], hz: int) -> Iterator[np.ndarray]:
    """Samples at `hz`, the mean of the channels, piece by piece; a track may change its rate or channels on the way.

    Packed samples: PyAV reads outside of the memory of planar ones with more than 8 channels.
    """
    import av

    resampler, before = av.AudioResampler(format="flt", rate=hz), None
    for frame in _then_flush(frames):
        form = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        pieces: list[Any] = []
        if form != before:
            pieces += resampler.resample(None)
            resampler, before = av.AudioResampler(format="flt", rate=hz), form
        if frame is not None:
            pieces += resampler.resample(frame)
        yield from (piece.to_ndarray().reshape(-1, piece.layout.nb_channels).mean(axis=1) for piece in pieces)


def _then_flush(frames: Iterator[Any]) -> Iterator[Any]:
    yield from frames
    yield None
