"""Losses: sums and the weights to divide them by.

Every loss is handed on as an undivided sum with its weight, because the divisor is the *global* weight of the step over all ranks:
world size then changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one microbatch."""

    total: torch.Tensor
    """Sum, to be divided by the global weight."""
    weight: torch.Tensor
    """Weight of this sum (scalar, no gradient)."""
    parts: torch.Tensor
    """[G, 2] float64 (sum, count) of each logged part."""


def weighted_nll(nll_P: torch.Tensor, weights_P: torch.Tensor, groups_P: torch.Tensor, num_groups: int) -> StepLoss:
    """Cross-entropy at P supervised positions (mmcore.lm.token_nll); the logged parts are unweighted."""
    return StepLoss((nll_P * weights_P).sum(), weights_P.sum(), group_sums(nll_P.detach(), groups_P, num_groups))


def group_sums(values_P: torch.Tensor, groups_P: torch.Tensor, num_groups: int) -> torch.Tensor:
    """[G, 2] float64 sums and counts of values by group."""
    sums = torch.zeros(num_groups, 2, dtype=torch.float64, device=values_P.device)
    return sums.index_add_(0, groups_P, torch.stack([values_P.double(), torch.ones_like(values_P, dtype=torch.float64)], 1))


def parts_by_modality(parts: Sequence[str], modalities: Sequence[str]) -> tuple[str, ...]:
    """Names of logged parts: each over all modalities, and where there are several also `<part>_<modality>` of each."""
    return (*parts, *(f"{part}_{modality}" for modality in modalities for part in parts if len(modalities) > 1))


def modality_sums(names: Sequence[str], modality: str, values_B: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[G, 2] sums and counts of parts of one modality's samples, under the part itself and under `<part>_<modality>` where `names` has it."""
    pairs = [(part, name) for part in values_B for name in (part, f"{part}_{modality}") if name in names]
    groups = [torch.full((len(values_B[part]),), names.index(name), device=values_B[part].device) for part, name in pairs]
    return group_sums(torch.cat([values_B[part].detach() for part, _ in pairs]), torch.cat(groups), len(names))


def signal_nll(states_BPD: torch.Tensor, base_lse_BP: torch.Tensor, head_rows_SD: torch.Tensor, block: range) -> tuple[torch.Tensor, torch.Tensor]:
    """(nll_BS of the block's signal tokens, nll_BM of "not a signal token" at the other positions).

    states: hidden states at the position before the block, at its S tokens, and at negative positions, P = 1 + S + negatives; the last
    signal token's state is a negative position too, so M = P - S. base_lse: log-sum-exp of the base vocabulary's logits. block: columns
    of the modality's signal tokens among all S_all head rows. The softmax runs over base vocabulary and all signal tokens, exactly:
    -log p(signal i) = lse - logit_i and -log p(no signal) = lse - lse_base, where lse = logaddexp(lse_base, lse_signals).
    """
    logits_BPS = states_BPD.float() @ head_rows_SD.T
    lse_BP = torch.logaddexp(base_lse_BP, logits_BPS.logsumexp(-1))
    size = len(block)
    own = logits_BPS[:, :size, block.start : block.stop].diagonal(dim1=1, dim2=2)
    return lse_BP[:, :size] - own, lse_BP[:, size:] - base_lse_BP[:, size:]


def alignment(conditioning_BQC: torch.Tensor, target_BQC: torch.Tensor) -> torch.Tensor:
    """Euclidean distance per query token, averaged over the Q tokens: [B] (NExT-GPT's caption alignment)."""
    return torch.linalg.vector_norm(conditioning_BQC - target_BQC, dim=-1).mean(-1)
