"""Scoring: how likely a model finds given captions of given media."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from mmcore.model.any_model import AnyModel
from mmcore.projectors.inputs import num_projected
from mmcore.training.batching import collate
from mmcore.types import IGNORE


@torch.no_grad()
def caption_nll(
    model: AnyModel, features_BNE: torch.Tensor, lengths_B: torch.Tensor, modality: str, captions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(nll_B summed over the tokens of each caption and its end token, tokens_B). Item b is scored with features b."""
    if len(captions) != len(features_BNE):
        raise ValueError(f"{len(captions)} captions but {len(features_BNE)} media")
    rows = [
        model.chat.caption_row(modality, num_projected(model.spec.input_projector, int(length)), caption)
        for length, caption in zip(lengths_B.tolist(), captions, strict=True)
    ]
    batch = collate(rows, {modality: (features_BNE, lengths_B, list(range(len(rows))))}).to(model.device)
    logits, targets = model.supervised(batch)
    nll_P = functional.cross_entropy(logits, targets, reduction="none")
    row_P = torch.nonzero(batch.targets_BT != IGNORE)[:, 0]
    nll_B = torch.zeros(len(rows), device=nll_P.device).index_add_(0, row_P, nll_P)
    return nll_B.cpu(), torch.bincount(row_P, minlength=len(rows)).cpu()
