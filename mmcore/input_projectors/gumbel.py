"""Gumbel noise that is a function of the item and the training step, not of a random generator.

A generator's numbers depend on what was drawn before: on the other items of the batch, on the number of ranks, on what other threads do. Here
the noise of an item is a hash of (its features, draw, place, token, group), so a run gives the same bytes after a restart, and another world size
changes rounding only. Refuses to know what the noise is added to.

Shape letters: B items, N tokens, E channels, G groups.
"""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's int64 holds it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_STEP, _FIRST, _SECOND = _signed(0x9E3779B97F4A7C15), _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64 of int64 patterns (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = x + _STEP
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def item_seeds(features_BNE: torch.Tensor, mask_BN: torch.Tensor, draw: int) -> torch.Tensor:
    """seeds_B (int64) from the bits of each item's real tokens, their places, and the draw."""
    tokens_BN = features_BNE.float().contiguous().view(torch.int32).to(torch.int64).sum(-1)
    places_N = mix(torch.arange(tokens_BN.shape[1], device=tokens_BN.device))
    items_B = torch.where(mask_BN, mix(tokens_BN ^ places_N), 0).sum(1)
    return mix(items_B ^ int(mix(torch.tensor(_signed(draw)))))


def gumbel_noise(seeds_B: torch.Tensor, place: int, num_groups: int, num_tokens: int) -> torch.Tensor:
    """noise_BGN (float32), -log(-log(u)) of uniform u. place: which of the model's noisy layers. Token n's noise does not depend on N."""
    groups_G1 = torch.arange(num_groups, device=seeds_B.device)[:, None]
    tokens_N = torch.arange(num_tokens, device=seeds_B.device)
    cells_GN = mix(tokens_N * num_groups + groups_G1 + (place << 40))
    uniform_BGN = (_shifted(mix(seeds_B[:, None, None] ^ cells_GN), 11).double() + 0.5) / (1 << 53)
    return -torch.log(-torch.log(uniform_BGN)).float()
