"""Gumbel noise of an item: a hash of (its features, draw, place, token, group); see mmcore.runtime.noise.



Shape letters: B items, N tokens, E channels, G groups.
"""

from __future__ import annotations

import torch

from mmcore.runtime.noise import mix, mixed, uniform


def item_seeds(features_BNE: torch.Tensor, mask_BN: torch.Tensor, draw: int) -> torch.Tensor:
    """seeds_B (int64) from the bits of each item's real tokens, their places, and the draw."""
    tokens_BN = features_BNE.float().contiguous().view(torch.int32).to(torch.int64).sum(-1)
    places_N = mix(torch.arange(tokens_BN.shape[1], device=tokens_BN.device))
    items_B = torch.where(mask_BN, mix(tokens_BN ^ places_N), 0).sum(1)
    return mix(items_B ^ mixed(draw))


def gumbel_noise(seeds_B: torch.Tensor, place: int, num_groups: int, num_tokens: int) -> torch.Tensor:
    """noise_BGN (float32), -log(-log(u)) of uniform u. place: which of the model's noisy layers. Token n's noise does not depend on N."""
    groups_G1 = torch.arange(num_groups, device=seeds_B.device)[:, None]
    tokens_N = torch.arange(num_tokens, device=seeds_B.device)
    cells_GN = mix(tokens_N * num_groups + groups_G1 + (place << 40))
    return -torch.log(-torch.log(uniform(seeds_B[:, None, None] ^ cells_GN))).float()
