"""Routes: which LoRA adapters each token of packed rows goes through.

A route looks only at what is known when an answer is generated: the input media, that is the placeholder tokens of a sample. Text is always
part of it. A segment's route is text, the media of the prefix it sees, and its own media; so every token of a sample has the route that
the sample would have alone. When a later turn brings a new modality, the route of everything before it changes too (mmcore.inference.decoding then
computes the keys and values again). Signal tokens change nothing.

Shape letters: B rows, L tokens of a row, A adapters.
"""

from __future__ import annotations

import torch

from mmcore.chat.special_tokens import TokenTable, placeholder


def token_routes(ids_BL: torch.Tensor, segments_BL: torch.Tensor, table: TokenTable, adapters: tuple[str, ...]) -> torch.Tensor:
    """0/1 routes [B, L, A], float32. adapters: modalities in order, text among them.

    Raises ValueError when a segment brings a modality that the non-empty prefix it shares with others does not have: the prefix would
    need two routes at once.
    """
    routes = [torch.ones_like(ids_BL) if name == "text" else _seen(ids_BL, segments_BL, table.placeholder_id(name), name) for name in adapters]
    return torch.stack(routes, -1).float()


def _seen(ids_BL: torch.Tensor, segments_BL: torch.Tensor, token: int, modality: str) -> torch.Tensor:
    """[B, L] 1 where a token's segment or the prefix it sees holds this placeholder."""
    holes_BL = (ids_BL == token).long()
    slots_BL = segments_BL + 1  # padding is slot 0, the prefix slot 1
    num_slots = max(2, int(slots_BL.max()) + 1) if slots_BL.numel() else 2
    counts_BS = torch.zeros(len(ids_BL), num_slots, dtype=torch.int64, device=ids_BL.device).scatter_add_(1, slots_BL, holes_BL)
    in_prefix_B = counts_BS[:, 1] > 0
    has_prefix_B = (slots_BL == 1).any(1)
    late_B = has_prefix_B & ~in_prefix_B & (counts_BS[:, 2:] > 0).any(1)
    for row in torch.nonzero(late_B).flatten().tolist():
        raise ValueError(f"row {row}: a segment brings {placeholder(modality)}, which its shared prefix does not have: put the media into the prefix")
    return ((counts_BS.gather(1, slots_BL) > 0) | in_prefix_B[:, None]).long()
