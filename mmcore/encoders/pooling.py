"""Patch states -> a square grid of feature tokens, the same for every vision encoder.

Owns the pooling only. Input: tensors on any device; output: tensors there.

Shape letters: B batch, N patches, E encoder width, H/W cells.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def pool_grid(states_BNE: torch.Tensor, grid: int) -> torch.Tensor:
    """Mean-pool N patch states, row by row from the top left, to [B, grid * grid, E]. Raises ValueError when N is no square."""
    patches = states_BNE.shape[1]
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patch tokens are no square")
    return pool_map(states_BNE.transpose(1, 2).unflatten(2, (side, side)), grid)


def pool_map(states_BEHW: torch.Tensor, grid: int) -> torch.Tensor:
    """Mean-pool a feature map to [B, grid * grid, E], row by row from the top left."""
    return functional.adaptive_avg_pool2d(states_BEHW, grid).flatten(2).transpose(1, 2)
