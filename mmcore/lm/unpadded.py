"""Unpadded: a transformers model that computes nothing for the padding of its rows.

Owns the way of a batch of rows of unequal length through a causal model of transformers: its layers get one row with all real tokens, and only attention sees
the rows as they stand, because a token must not see another row's. Padding then costs a little attention and no linear layer, which has nearly all of the work.
Input: embeddings, mask, positions, and which tokens are real; output: hidden states, 0 at padding. Attention itself is the family's own eager one. The idea is
that of Effective Transformer (ByteDance) and ByteTransformer (arXiv 2210.03052).

Shape letters: B rows, T tokens of a row, N real tokens of all rows, L cached and new tokens, H heads, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "anyloom_unpadded"
"""Of the attention among those of transformers."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the real tokens of a batch stand."""

    rows: int
    length: int
    at_N: torch.Tensor
    """Of each in the rows laid end to end, ascending."""

    @staticmethod
    def of(real_BT: torch.Tensor) -> Places | None:
        """None when all tokens are real."""
        at_N = real_BT.reshape(-1).nonzero()[:, 0]
        return None if len(at_N) == real_BT.numel() else Places(real_BT.shape[0], real_BT.shape[1], at_N)

    def real(self, values_BTX: torch.Tensor) -> torch.Tensor:
        """[B, T, ..] -> [1, N, ..]."""
        return values_BTX.flatten(0, 1).index_select(0, self.at_N)[None]

    def padded(self, values_1NX: torch.Tensor) -> torch.Tensor:
        """[1, N, ..] -> [B, T, ..] with zeros at padding."""
        rest = values_1NX.shape[2:]
        return values_1NX.new_zeros(self.rows * self.length, *rest).index_copy(0, self.at_N, values_1NX[0]).view(self.rows, self.length, *rest)

    def padded_heads(self, values_1HND: torch.Tensor) -> torch.Tensor:
        """[1, H, N, D] -> [B, H, T, D]."""
        return self.padded(values_1HND.transpose(1, 2)).transpose(1, 2)


_places: ContextVar[Places | None] = ContextVar("places", default=None)


@contextmanager
def unpadded(places: Places | None) -> Iterator[None]:
    """While it lasts, attention and caches take what they get for the real tokens of these rows; None: for rows as they stand."""
    token = _places.set(places)
    try:
        yield
    finally:
        _places.reset(token)


def _attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **options: Any) -> Any:
    """The eager attention of the module's family. query: [B, H, T, D], or [1, H, N, D] of real tokens; key, value: the same, or [B, H, L, D] of a cache."""
    eager, places = sys.modules[type(module).__module__].eager_attention_forward, _places.get()
    if places is None:
        return eager(module, query, key, value, attention_mask, **options)
    if key.shape[2] == query.shape[2] and len(key) == 1:
        key, value = places.padded_heads(key), places.padded_heads(value)
    out_BTHD, weights = eager(module, places.padded_heads(query), key, value, attention_mask, **options)
    return places.real(out_BTHD), weights


class RowsCache(DynamicCache):
    """Keys and values of rows as they stand, whichever way they come."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append those of the new tokens; returns all [B, H, L, D]."""
        places = _places.get()
        if places is not None:
            key_states, value_states = places.padded_heads(key_states), places.padded_heads(value_states)
        found: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, *arguments, **options)
        return found


def prepare(base: Any) -> bool:
    """Give a model with eager attention ours, in place. False for one that has another, or whose family has no eager function to call: it computes padding."""
    if base.config._attn_implementation == NAME:
        return True
    families = {type(module).__module__ for module in base.modules() if type(module).__name__.endswith("Attention")}
    if base.config._attn_implementation != "eager" or not all(hasattr(sys.modules[name], "eager_attention_forward") for name in families):
        return False
    base.config._attn_implementation = NAME
    return True


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
