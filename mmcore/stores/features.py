"""Feature files: how the rows of a part are laid out on disk.

Owns the four stored types and the error each one costs. Input: features [T, E] of a part; output: arrays to write beside each other, and the
features again from what was read. float16, float32: the values. bfloat16: the upper half of the float32 bits, as uint16. int8: one symmetric scale
per row (LLM.int8(), Dettmers et al. 2022, row-wise absmax).

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
VALUES, SCALES = "features.npy", "scales.npy"


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
        values = features_TE.astype(np.float32)
        scales_T = np.abs(values).max(axis=1, initial=0.0) / np.float32(127)
        return {VALUES: np.rint(values / np.where(scales_T > 0, scales_T, 1)[:, None]).astype(np.int8), SCALES: scales_T.astype(np.float32)}
    return {VALUES: features_TE.astype(computed_dtype(dtype), copy=False)}


def unpack(stored: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """float32 (or the stored float16 / float32 as it is) from rows [..., E] of what `pack` made, and their scales [...] for int8."""
    if stored.dtype == np.int8:
        assert scales is not None
        return stored * scales[..., None]
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


def relative_error(features_TE: np.ndarray, packed: Mapping[str, np.ndarray]) -> float:
    """Norm of what storing lost over the norm of the features; 0 for features without any."""
    exact = features_TE.astype(np.float64)
    lost = _square_sum(exact - unpack(packed[VALUES], packed.get(SCALES)))
    return math.sqrt(lost / _square_sum(exact)) if exact.any() else 0.0


def _square_sum(values: np.ndarray) -> float:
    """Without BLAS, whose idle threads spin for a while and take the processor from the encoder."""
    return float(np.square(values).sum())
