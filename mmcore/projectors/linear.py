"""One Linear over standardised features: N tokens of width E -> N tokens of width D."""

from __future__ import annotations

import torch
from torch import nn

from mmcore.projectors.base import StandardisedProjector


class LinearProjector(StandardisedProjector):
    """embeds = W ((x - mean) / std) + b. in_width: E; out_width: D; init_std: standard deviation of an output channel at step 0."""

    def __init__(self, in_width: int, out_width: int, init_std: float):
        super().__init__(in_width)
        self.proj = nn.Linear(in_width, out_width)
        nn.init.normal_(self.proj.weight, std=init_std / in_width**0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features_BNE, lengths_B -> embeds_BKD (float32), mask_BK (True: a real token); K = N."""
        x_BNE, mask_BN = self.standardised(features_BNE, lengths_B)
        return self.proj(x_BNE), mask_BN
