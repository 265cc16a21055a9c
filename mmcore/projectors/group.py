"""Grouping: N tokens of width E -> K tokens of width D, whatever N is, by assigning tokens to learned groups in stages.

After GroupViT (Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision", arXiv 2202.11094, section 3.2 and figure 3), as
NExT-GPT (ICML 2024) puts it between encoder and LM. A stage lets its group tokens and the segments (at first the feature tokens) attend to each
other; then every segment goes to one group, and the mean of each group's segments, added to the group token, is a segment of the next stage.
Sizes by default: width 512, stages of 6 / 3 / 3 layers, 64 then 8 groups, so K = 8. Written from the paper.

The assignment is hard with a straight-through gradient: to the most similar group, and while training (`draw` set) to a sample of the softmax over
groups (Gumbel noise; Jang et al. 2017, arXiv 1611.01144). Padding takes part in nothing; an item without tokens has an all-False mask.
The paper has no positions here: the features carry their own.

Shape letters: W inner width, G groups, N segments; otherwise as everywhere.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import nn
from torch.nn import functional

from mmcore.config import InputProjectorSpec
from mmcore.projectors.base import StandardisedProjector
from mmcore.projectors.gumbel import gumbel_noise, item_seeds

_RATIO = 4
"""Hidden width of an MLP over channels, in widths."""
_STD = 0.02
"""Initial values of group tokens and weights."""


def _mlp(into: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, hidden), nn.GELU(), nn.Linear(hidden, out))


def _attend(query_BTW: torch.Tensor, key_BNW: torch.Tensor, value_BNW: torch.Tensor, heads: int, mask_BN: torch.Tensor) -> torch.Tensor:
    """Multi-head attention to the real tokens only; a row without any gives an arbitrary finite value."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_BTW, key_BNW, value_BNW))
    bias_B11N = torch.zeros_like(mask_BN, dtype=query_BTW.dtype).masked_fill(~mask_BN, torch.finfo(query_BTW.dtype).min)[:, None, None]
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias_B11N).transpose(1, 2).flatten(2)


class _Layer(nn.Module):
    """Pre-norm transformer layer; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = _mlp(width, _RATIO * width, width)

    def forward(self, x_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm(x_BTW)).chunk(3, -1)
        x_BTW = x_BTW + self.out(_attend(query, key, value, self.heads, mask_BT))
        return x_BTW + self.mlp(self.norm_mlp(x_BTW))


class _Mixer(nn.Module):
    """An MLP over the group axis (MLP-Mixer): groups_BGW -> groups_BHW."""

    def __init__(self, width: int, num_in: int, num_out: int):
        super().__init__()
        self.mlp = _mlp(num_in, width // 2, num_out)

    def forward(self, groups_BGW: torch.Tensor) -> torch.Tensor:
        return self.mlp(groups_BGW.transpose(1, 2)).transpose(1, 2)


class _Grouping(nn.Module):
    """The grouping block: segments_BNW and group tokens -> G new segments."""

    def __init__(self, width: int, heads: int, num_groups: int):
        super().__init__()
        self.heads = heads
        self.norm_groups, self.norm_segments = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer, self.norm_mixed = _Mixer(width, num_groups, num_groups), nn.LayerNorm(width)
        self.look = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "out")})
        self.norm_look, self.mlp_look, self.norm_looked = nn.LayerNorm(width), _mlp(width, _RATIO * width, width), nn.LayerNorm(width)
        self.assign = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "out")})
        self.norm_new, self.mlp_new = nn.LayerNorm(width), _mlp(width, _RATIO * width, width)

    def forward(self, segments_BNW: torch.Tensor, groups_BGW: torch.Tensor, mask_BN: torch.Tensor, noise_BGN: torch.Tensor | None) -> torch.Tensor:
        segments_BNW = self.norm_segments(segments_BNW)
        groups_BGW = self.norm_mixed(self.mixer(self.norm_groups(groups_BGW)))
        look, assign = self.look, self.assign
        seen_BGW = _attend(look["query"](groups_BGW), look["key"](segments_BNW), look["value"](segments_BNW), self.heads, mask_BN)
        groups_BGW = groups_BGW + look["out"](seen_BGW)
        groups_BGW = self.norm_looked(groups_BGW + self.mlp_look(self.norm_look(groups_BGW)))
        logits_BGN = assign["query"](groups_BGW) @ assign["key"](segments_BNW).transpose(1, 2) / math.sqrt(segments_BNW.shape[-1])
        weights_BGN = assignment(logits_BGN if noise_BGN is None else logits_BGN + noise_BGN) * mask_BN[:, None]
        count_BG1 = weights_BGN.sum(-1, keepdim=True)
        means_BGW = weights_BGN @ assign["value"](segments_BNW) / torch.where(count_BG1 > 0.5, count_BG1, 1.0)
        new_BGW = groups_BGW + assign["out"](means_BGW)
        return new_BGW + self.mlp_new(self.norm_new(new_BGW))


def assignment(logits_BGN: torch.Tensor) -> torch.Tensor:
    """1 where a segment's largest logit is, else 0; the gradient is that of the softmax over groups (straight-through)."""
    soft_BGN = logits_BGN.softmax(1)
    hard_BGN = torch.zeros_like(soft_BGN).scatter(1, logits_BGN.argmax(1, keepdim=True), 1.0)
    return soft_BGN + (hard_BGN - soft_BGN).detach()


class _Stage(nn.Module):
    """Group tokens join the segments, layers, grouping. num_groups 0: layers only; num_before: group tokens of the stage before (0: none)."""

    def __init__(self, width: int, heads: int, depth: int, num_groups: int, num_before: int):
        super().__init__()
        self.num_groups = num_groups
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(depth))
        self.grouping = _Grouping(width, heads, num_groups) if num_groups else None
        self.groups_GW = nn.Parameter(_STD * torch.randn(num_groups, width)) if num_groups else None
        self.handed = nn.Sequential(nn.LayerNorm(width), _Mixer(width, num_before, num_groups)) if num_groups and num_before else None

    def forward(
        self, x_BNW: torch.Tensor, before_BHW: torch.Tensor | None, mask_BN: torch.Tensor, seeds_B: torch.Tensor | None, place: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(segments, group tokens, mask of the segments) for the next stage."""
        if self.groups_GW is None or self.grouping is None:
            for layer in self.layers:
                x_BNW = layer(x_BNW, mask_BN)
            return x_BNW, None, mask_BN
        groups_BGW = self.groups_GW.expand(len(x_BNW), -1, -1)
        if self.handed is not None and before_BHW is not None:
            groups_BGW = groups_BGW + self.handed(before_BHW)
        real_BG = torch.ones(groups_BGW.shape[:2], dtype=torch.bool, device=x_BNW.device)
        both, mask_both = torch.cat([groups_BGW, x_BNW], 1), torch.cat([real_BG, mask_BN], 1)
        for layer in self.layers:
            both = layer(both, mask_both)
        groups_BGW, x_BNW = both[:, : self.num_groups], both[:, self.num_groups :]
        noise = None if seeds_B is None else gumbel_noise(seeds_B, place, self.num_groups, x_BNW.shape[1])
        return self.grouping(x_BNW, groups_BGW, mask_BN, noise), groups_BGW, real_BG


class GroupProjector(StandardisedProjector):
    """in_width: E; out_width: D; spec: inner width, heads, layers of each stage, groups of each stage but the last; K is the last of them."""

    def __init__(self, in_width: int, out_width: int, spec: InputProjectorSpec):
        """Raises ValueError for a spec whose parts do not fit each other."""
        super().__init__(in_width)
        if len(spec.depths) != len(spec.groups) + 1 or not spec.groups or min(spec.groups) < 1:
            raise ValueError(f"a group projector has one stage more than groups, but depths are {spec.depths} and groups {spec.groups}")
        if spec.width % spec.heads:
            raise ValueError(f"the group projector's width {spec.width} is not a multiple of its {spec.heads} heads")
        self.into = nn.Linear(in_width, spec.width)
        counts = (0, *spec.groups, 0)
        self.stages = nn.ModuleList(
            _Stage(spec.width, spec.heads, depth, counts[i + 1], counts[i] if counts[i + 1] else 0) for i, depth in enumerate(spec.depths)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.out = nn.Linear(spec.width, out_width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.into.weight, std=in_width**-0.5)
        nn.init.normal_(self.out.weight, std=spec.init_std / spec.width**0.5)

    @classmethod
    def build(cls, spec: InputProjectorSpec, in_width: int, out_width: int) -> Self:
        """E=in_width -> D=out_width, as the spec says."""
        return cls(in_width, out_width, spec)

    def forward(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features_BNE, lengths_B -> embeds_BKD (float32), mask_BK (True for every token of an item that has features)."""
        x_BNE, mask_BN = self.standardised(features_BNE, lengths_B)
        seeds_B = None if self.draw is None else item_seeds(features_BNE, mask_BN, self.draw)
        x_BNW = self.into(torch.where(mask_BN[..., None], x_BNE, 0.0))
        groups: torch.Tensor | None = None
        real_BN = mask_BN
        for place, stage in enumerate(self.stages):
            x_BNW, groups, real_BN = stage(x_BNW, groups, real_BN, seeds_B, place)
        return self.out(self.norm(x_BNW)), mask_BN.any(1, keepdim=True).expand(-1, x_BNW.shape[1])
