"""One Linear over standardised features: N tokens of width E -> N tokens of width D.

The per-channel mean and standard deviation are buffers, computed once from the training features and saved with the trained
tensors, so that the projector sees unit-variance input and starts at the size of the LM's own embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

_MIN_STD = 1e-3


class LinearProjector(nn.Module):
    """embeds = W ((x - mean) / std) + b. in_width: E; out_width: D; init_std: standard deviation of an output channel at step 0."""

    mean_E: torch.Tensor
    std_E: torch.Tensor

    def __init__(self, in_width: int, out_width: int, init_std: float):
        super().__init__()
        self.proj = nn.Linear(in_width, out_width)
        nn.init.normal_(self.proj.weight, std=init_std / in_width**0.5)
        nn.init.zeros_(self.proj.bias)
        self.register_buffer("mean_E", torch.zeros(in_width))
        self.register_buffer("std_E", torch.ones(in_width))

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

    def forward(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features_BNE, lengths_B -> embeds_BKD (float32), mask_BK (True: a real token); K = N."""
        if features_BNE.shape[-1] != self.proj.in_features:
            raise ValueError(f"features have {features_BNE.shape[-1]} channels, the input projector takes {self.proj.in_features}")
        mask = torch.arange(features_BNE.shape[1], device=features_BNE.device)[None] < lengths_B[:, None]
        return self.proj((features_BNE.float() - self.mean_E) / self.std_E), mask
