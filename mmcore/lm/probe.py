"""Probe: whether a model of a family that nobody has tested computes what LanguageModel assumes of it.

Owns a few tokens' worth of forward passes: the logits are the head applied to the hidden states, a segment of a packed row is read as if it stood alone behind
its prefix, and with a cache as without. Input: a LanguageModel. Raises ValueError in one line for one that does otherwise; families differ there in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_PREFIX, _FIRST, _SECOND = 5, 4, 2
"""Tokens of the packed row: a prefix and two segments."""
_LARGEST = {torch.float32: 1e-2}
"""Most that hidden states or logits may differ, as a share of their size; in types of half the width 0.15."""


@torch.no_grad()
def check_computes(lm: Any, kind: str, packed_mask: Callable[..., torch.Tensor]) -> None:
    """Raises ValueError naming what the model of this type does not compute. One whose rows are shorter than the probe is refused too.

    packed_mask: that of mmcore.lm.language_model.
    """
    length = _PREFIX + _FIRST + _SECOND
    if 0 < lm.longest < length:
        raise ValueError(f"{kind} takes rows of {lm.longest} tokens at most: too few to be used here")
    vocabulary, device = lm.table.base, next(iter(lm.base.parameters())).device
    ids = (torch.arange(length, device=device) * 7 + vocabulary // 3)[None] % vocabulary
    try:
        wrong = _wrong(partial(_hidden, lm, packed_mask), lm, ids)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:150]
        raise ValueError(f"{kind} cannot be used here: it does not take packed rows with a mask, positions and a cache of their own ({why})") from error
    if wrong:
        raise ValueError(f"{kind} cannot be used here: {wrong}")


def _wrong(hidden: Callable[..., torch.Tensor], lm: Any, ids_1T: torch.Tensor) -> str:
    """What is computed otherwise; "" when nothing is."""
    shared, ends = _PREFIX, _PREFIX + _FIRST
    second_1T = torch.cat([ids_1T[:, :shared], ids_1T[:, ends:]], 1)
    alone = hidden(second_1T)
    if _differs(lm.base_logits(alone[0]), lm.base(input_ids=second_1T, use_cache=False).logits[0].float(), lm.dtype):
        return "its logits are not the head applied to its last hidden states over all earlier tokens"
    segments = torch.tensor([[0] * _PREFIX + [1] * _FIRST + [2] * _SECOND], device=ids_1T.device)
    positions = torch.tensor([[*range(ends), *range(shared, shared + _SECOND)]], device=ids_1T.device)
    packed = hidden(ids_1T, segments, positions)
    if _differs(packed[0, ends:], alone[0, shared:], lm.dtype):
        return "it does not keep to the mask and the positions of packed rows, so questions that share a prefix would read each other"
    cache, parts = lm.new_cache(), []
    for start, end in ((0, shared), (shared, shared + 2), (shared + 2, ids_1T.shape[1])):
        parts.append(hidden(ids_1T[:, start:end], segments[:, start:end], positions[:, start:end], cache, segments[:, :end]))
    if _differs(torch.cat(parts, 1)[0], packed[0], lm.dtype):
        return "with a cache it computes something else than without"
    return ""


def _hidden(
    lm: Any, packed_mask: Callable[..., torch.Tensor], ids: torch.Tensor, segments: Any = None, positions: Any = None, cache: Any = None, keys: Any = None
) -> torch.Tensor:
    segments = torch.zeros_like(ids) if segments is None else segments
    positions = torch.arange(ids.shape[1], device=ids.device)[None] if positions is None else positions
    states: torch.Tensor = lm.hidden(lm.embed(ids), packed_mask(segments, segments if keys is None else keys, lm.dtype), positions, cache)
    return states


def _differs(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> bool:
    size = float(other.float().norm())
    return not float((one.float() - other.float()).norm()) <= _LARGEST.get(dtype, 0.15) * size
