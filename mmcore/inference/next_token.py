"""Choosing the next token: the likeliest, or a seeded draw.

Input: logits of the streams being written; output: one token each. A draw depends on the sampling's seed, the stream's own number and how many tokens it has
drawn. The number is made of what is asked (mmcore.inference.batches), so an answer is the same alone, in a batch, and anywhere in a list.

Shape letters: S streams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. Raises ValueError for values that cannot be."""

    temperature: float = 1.0
    """Logits are divided by it; 0: the likeliest token, whatever else is set."""
    top_k: int = 0
    """Only the k likeliest tokens are drawn; 0: all."""
    top_p: float = 1.0
    """Only the fewest tokens that together have this probability are drawn (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature}: it must be 0 (the likeliest token) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: it must be above 0 and at most 1")

    def generator(self, number: int) -> torch.Generator | None:
        """Of the stream with this number; None when nothing is drawn."""
        if self.temperature == 0:
            return None
        return torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)


LIKELIEST = Sampling(temperature=0.0)


def choose(logits_SV: torch.Tensor, generators: Sequence[torch.Generator | None], sampling: Sampling) -> list[int]:
    """One token per stream; generators: Sampling.generator of each."""
    best = logits_SV.argmax(-1)
    return [
        int(token) if generator is None else _drawn(logits_V, generator, sampling)
        for token, logits_V, generator in zip(best, logits_SV, generators, strict=True)
    ]


def _drawn(logits_V: torch.Tensor, generator: torch.Generator, sampling: Sampling) -> int:
    values, tokens = (logits_V.float().cpu() / sampling.temperature).sort(descending=True, stable=True)
    share = values.softmax(-1, dtype=torch.float64)
    kept = share.cumsum(-1) - share < sampling.top_p
    if sampling.top_k:
        kept[sampling.top_k :] = False
    share = torch.where(kept, share, 0.0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * share.sum()
    place = int(torch.searchsorted(share.cumsum(-1), point, right=True))
    return int(tokens[min(place, int(kept.sum()) - 1)])
