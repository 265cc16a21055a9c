"""Token cross-entropy without the table of all logits.

Owns the negative log-likelihood of supervised positions over base vocabulary and signal tokens. Small tables are computed at once; larger ones in chunks of
the vocabulary, whose logits are made again in the backward pass and never kept (after "Cut Your Losses in Large-Vocabulary Language Models", Wijmans et
al. 2024, arXiv 2411.09009, here in plain torch): memory is P x CHUNK instead of P x V.

Shape letters: P supervised positions, D LM width, V base vocabulary, S signal tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from mmcore.lm.protocol import LanguageModelLike

DIRECT = 2**26
"""Most logits that are computed at once: 256 MiB in float32."""
CHUNK = 8192
"""Tokens of the vocabulary per chunk."""


def token_nll(lm: LanguageModelLike, hidden_PD: torch.Tensor, targets_P: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood [P] (float32) of the target tokens; gradients reach the states and the signal tokens' head rows."""
    head = lm.head
    if len(hidden_PD) * lm.table.base <= DIRECT or type(head) is not torch.nn.Linear:  # a quantised head is called as a whole
        return functional.cross_entropy(lm.logits(hidden_PD), targets_P, reduction="none")
    of_base_P = targets_P < lm.table.base
    base_lse_P, base_logit_P = _BaseTerms.apply(hidden_PD.to(lm.dtype), head.weight, head.bias, torch.where(of_base_P, targets_P, 0), CHUNK)
    if not lm.table.num_signals:
        return base_lse_P - base_logit_P
    signal_PS = hidden_PD.float() @ lm.new_head_rows.T
    own_P = signal_PS.gather(1, (targets_P - lm.table.base).clamp(min=0)[:, None])[:, 0]
    return torch.logaddexp(base_lse_P, signal_PS.logsumexp(-1)) - torch.where(of_base_P, base_logit_P, own_P)


class _BaseTerms(torch.autograd.Function):
    """hidden [P, D], weight [V, D], bias [V] or None, targets [P] -> (log-sum-exp [P] of the V logits, the target's logit [P]). Only hidden gets a gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_P: torch.Tensor, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [_logits(hidden_PD, weight_VD, bias_V, start, chunk).logsumexp(-1) for start in range(0, len(weight_VD), chunk)]
        lse_P = torch.stack(parts).logsumexp(0)
        own_P = (hidden_PD.float() * weight_VD[targets_P].float()).sum(-1)
        if bias_V is not None:
            own_P = own_P + bias_V[targets_P].float()
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, targets_P, lse_P)
        ctx.chunk = chunk
        return lse_P, own_P

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, targets_P, lse_P = ctx.saved_tensors
        for_lse_P, for_own_P = gradients
        total_PD = for_own_P[:, None] * weight_VD[targets_P].float()
        for start in range(0, len(weight_VD), ctx.chunk):
            share_PV = (_logits(hidden_PD, weight_VD, bias_V, start, ctx.chunk) - lse_P[:, None]).exp_() * for_lse_P[:, None]
            total_PD += (share_PV.to(hidden_PD.dtype) @ weight_VD[start : start + ctx.chunk]).float()
        return total_PD.to(hidden_PD.dtype), None, None, None, None


def _logits(hidden_PD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, start: int, chunk: int) -> torch.Tensor:
    """float32 logits [P, up to chunk] of a stretch of the vocabulary."""
    bias = None if bias_V is None else bias_V[start : start + chunk]
    return functional.linear(hidden_PD, weight_VD[start : start + chunk], bias).float()
