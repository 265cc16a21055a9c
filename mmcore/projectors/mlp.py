"""Two Linears with a GELU between them over standardised features: N tokens of width E -> N tokens of width D.

The projector of LLaVA-1.5 (Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744): the hidden width is D.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mmcore.projectors.base import StandardisedProjector

_GELU_POWER = 0.42518
"""E[gelu(z)^2] for a standard normal z, by numerical integration."""


class MLPProjector(StandardisedProjector):
    """embeds = W2 gelu(W1 ((x - mean) / std) + b1) + b2. in_width: E; out_width: D; init_std: standard deviation of an output channel at step 0."""

    def __init__(self, in_width: int, out_width: int, init_std: float):
        super().__init__(in_width)
        self.into = nn.Linear(in_width, out_width)
        self.out = nn.Linear(out_width, out_width)
        nn.init.normal_(self.into.weight, std=in_width**-0.5)
        nn.init.normal_(self.out.weight, std=init_std / (out_width * _GELU_POWER) ** 0.5)
        nn.init.zeros_(self.into.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features_BNE, lengths_B -> embeds_BKD (float32), mask_BK (True: a real token); K = N."""
        x_BNE, mask_BN = self.standardised(features_BNE, lengths_B)
        return self.out(functional.gelu(self.into(x_BNE))), mask_BN
