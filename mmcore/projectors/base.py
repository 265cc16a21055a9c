"""What all input projectors share: standardised features, the mask of real tokens, and the draw of their training noise.

The per-channel mean and standard deviation are buffers, computed once from the training features and saved with the trained
tensors, so that a projector sees unit-variance input and can start at the size of the LM's own embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from torch import nn

from mmcore.config import InputProjectorSpec

_MIN_STD = 1e-3


class StandardisedProjector(nn.Module):
    """Base of the input projectors. in_width: E.

    draw: None for evaluation; a number while the projector trains. Kinds with random parts draw from (draw, the item's features) only.
    """

    mean_E: torch.Tensor
    std_E: torch.Tensor

    def __init__(self, in_width: int):
        super().__init__()
        self.draw: int | None = None
        self.register_buffer("mean_E", torch.zeros(in_width))
        self.register_buffer("std_E", torch.ones(in_width))

    @classmethod
    def build(cls, spec: InputProjectorSpec, in_width: int, out_width: int) -> Self:
        """E=in_width -> D=out_width, as the spec says."""
        return cls(in_width, out_width, spec.init_std)  # type: ignore[call-arg]

    @torch.no_grad()
    def fit(self, chunks: Iterable[np.ndarray]) -> None:
        """Set mean and std from chunks of feature tokens [n, E], summed in float64 in the order given. No tokens: nothing changes."""
        total, squares, count = np.zeros(len(self.mean_E)), np.zeros(len(self.mean_E)), 0
        for chunk in chunks:
            tokens = np.asarray(chunk, np.float64)
            total += tokens.sum(0)
            squares += (tokens * tokens).sum(0)
            count += len(tokens)
        if count:
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean * mean, 0.0))
            self.mean_E.copy_(torch.from_numpy(mean))
            self.std_E.copy_(torch.from_numpy(np.where(std < _MIN_STD, 1.0, std)))

    def standardised(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 features of zero mean and unit variance [B, N, E], mask_BN: True for a real token). Raises ValueError for another E."""
        if features_BNE.shape[-1] != len(self.mean_E):
            raise ValueError(f"features have {features_BNE.shape[-1]} channels, the input projector takes {len(self.mean_E)}")
        mask_BN = torch.arange(features_BNE.shape[1], device=features_BNE.device)[None] < lengths_B[:, None]
        return (features_BNE.float() - self.mean_E) / self.std_E, mask_BN
