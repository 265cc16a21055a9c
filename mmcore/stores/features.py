"""Feature files: how the rows of a part are laid out on disk.

Owns the four stored types and the error each one costs. Input: features [T, E] of a part; output: arrays to write beside each other, and the
features again from what was read. float16, float32: the values. bfloat16: the upper half of the float32 bits, as uint16. int8: one symmetric scale
per channel of the part, and one per row of what is then left (LLM.int8(), Dettmers et al. 2022, vector-wise absmax), so that a channel with large values costs
the others nothing. In format 1 there was the row's scale alone; such parts are read as they are.

Shape letters: T rows (tokens) of a part, E encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

DTYPES = ("float16", "bfloat16", "float32", "int8")
"""What `EncoderConfig.dtype` may be."""
STORED = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "int8": "int8"}
"""NumPy type of the values on disk."""
VALUES, SCALES, CHANNELS = "features.npy", "scales.npy", "channels.npy"
FORMATS = {"int8": 2}
"""Stored type -> format in which it is written, where that is not 1."""


def computed_dtype(dtype: str) -> str:
    """The NumPy type in which an encoder hands over features that are stored as `dtype`. Raises ValueError for an unknown one."""
    if dtype not in DTYPES:
        raise ValueError(f"features cannot be stored as '{dtype}': choose one of {', '.join(DTYPES)}")
    return "float16" if dtype == "float16" else "float32"


def pack(features_TE: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """File name -> array. Raises ValueError when a value is not finite, or does not fit into the type."""
    if not np.isfinite(features_TE).all():
        raise ValueError(
            f"{int((~np.isfinite(features_TE)).sum())} features are not finite (float16 ends at 65504: set the encoder's dtype to bfloat16 or float32)"
        )
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(features_TE, np.float32).view(np.uint32)
        return {VALUES: ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)}  # to nearest, ties to even
    if dtype == "int8":
        values: np.ndarray = features_TE.astype(np.float32)
        channels_1E = _channel_scales(values)
        values = values / np.where(channels_1E > 0, channels_1E, 1)
        scales_T = np.abs(values).max(axis=1, initial=0.0) / np.float32(127)
        rounded = np.rint(values / np.where(scales_T > 0, scales_T, 1)[:, None]).astype(np.int8)
        return {VALUES: rounded, SCALES: scales_T.astype(np.float32), CHANNELS: channels_1E.astype(np.float32)}
    return {VALUES: features_TE.astype(computed_dtype(dtype), copy=False)}


def _channel_scales(values_TE: np.ndarray) -> np.ndarray:
    """How large each channel is beside the others, [1, E]: its root mean square over rows that are brought to one size, as a large row would decide it
    otherwise; and the size of a row is taken over channels of one size. 0 for a channel of zeros."""
    scales_1E = np.ones((1, values_TE.shape[1]), np.float32)
    for _ in range(2):
        sizes_T1 = np.abs(values_TE / np.where(scales_1E > 0, scales_1E, 1)).mean(axis=1, keepdims=True)
        alike_TE = values_TE / np.where(sizes_T1 > 0, sizes_T1, 1)
        scales_1E = np.sqrt(np.square(alike_TE).sum(axis=0, keepdims=True) / np.float32(max(len(values_TE), 1))).astype(np.float32)
    return scales_1E


def unpack(stored: np.ndarray, scales: np.ndarray | None = None, channels: np.ndarray | None = None) -> np.ndarray:
    """float32 (or the stored float16 / float32 as it is) from rows [..., E] of what `pack` made, and for int8 their scales [...] and their part's channel
    scales [..., 1, E] (None: format 1)."""
    if stored.dtype == np.int8:
        assert scales is not None
        values: np.ndarray = stored * scales[..., None]
        return values if channels is None else values * channels
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


def relative_error(features_TE: np.ndarray, packed: Mapping[str, np.ndarray]) -> float:
    """Norm of what storing lost over the norm of the features; 0 for features without any."""
    exact = features_TE.astype(np.float64)
    lost = _square_sum(exact - _back(packed))
    return math.sqrt(lost / _square_sum(exact)) if exact.any() else 0.0


def worst_channel_error(features_TE: np.ndarray, packed: Mapping[str, np.ndarray]) -> float:
    """The largest `relative_error` that one channel alone has, among those with any value but 0: large channels hide in the whole what small ones lose."""
    exact = features_TE.astype(np.float64)
    norms_E = np.square(exact).sum(axis=0)
    lost_E = np.square(exact - _back(packed)).sum(axis=0)
    return math.sqrt(float((lost_E[norms_E > 0] / norms_E[norms_E > 0]).max(initial=0.0)))


def _back(packed: Mapping[str, np.ndarray]) -> np.ndarray:
    return unpack(packed[VALUES], packed.get(SCALES), packed.get(CHANNELS))


def _square_sum(values: np.ndarray) -> float:
    """Without BLAS, whose idle threads spin for a while and take the processor from the encoder."""
    return float(np.square(values).sum())
