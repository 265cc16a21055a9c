"""Signal blocks that the model did not begin itself: the whole block stands behind the request, as stage 2 learns from it.

Input: a model, requests; output: a SignalBlock each. What is made of them shows the output side alone, and is disclosed as help.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmcore.inference.decoding import PackedCache
from mmcore.model.any_model import AnyModel
from mmcore.types import SignalBlock


@torch.inference_mode()
def forced_blocks(model: AnyModel, modality: str, requests: Sequence[str]) -> list[SignalBlock]:
    """The block of a modality behind each request that begins a conversation. Raises ValueError for a modality without signal tokens."""
    if not model.lm.table.count(modality):
        raise ValueError(f"this model has no signal tokens for {modality}")
    if not requests:
        return []
    block = list(model.lm.table.block(modality))
    asked = [model.chat.question_prompt(text) for text in requests]
    hidden_BTD = PackedCache(model, len(asked)).extend([[(0, 0, [*prompt, *block])] for prompt in asked])
    states_BSD = torch.stack([hidden_BTD[b, len(prompt) : len(prompt) + len(block)] for b, prompt in enumerate(asked)])
    return [SignalBlock(modality, conditioning_QC.float().cpu()) for conditioning_QC in model.conditioning(modality, states_BSD)]
