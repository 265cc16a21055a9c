"""ImageBind: six modalities in one space, from the published architecture, loading the released `imagebind_huge` layout strictly.

Owns the layers and their names (those of the released file) and the forward pass. Input: preprocessed tensors (mmcore.encoders.imagebind.inputs);
output: pooled vectors [B, out] and token states. Trunks that are not asked for are neither built nor loaded.

Source: Girdhar et al. 2023 (arXiv 2305.05665). The weights are CC-BY-NC-SA 4.0: research only.

Shape letters: B batch, S clips of one item, N tokens (the first is CLS, but for text), E trunk width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6
"""Of the layer norms in blocks, before the trunk and in heads; stems have torch's 1e-5."""
MAX_SCALE = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkSpec:
    """One modality's half: stem, transformer and head."""

    width: int
    blocks: int
    heads: int
    patch: tuple[int, ...]
    """Kernel of the stem: (time, height, width) for vision, (height, width) for spectrograms and maps, (time,) for IMU, () for text."""
    stride: tuple[int, ...]
    size: tuple[int, ...]
    """What the stem sees: (channels, …) of one item; text: (vocabulary, context)."""
    stem: str = "rgbt_stem"
    bias_kv: bool = True
    """One learned key and value behind those of the tokens."""
    scale: float = 0.0
    """Factor of the unit vectors at the end; 0: none."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the trunk, CLS included."""
        if not self.patch:
            return self.size[1]
        cells = 1
        for side, kernel, step in zip(self.size[1:][-len(self.patch) :], self.patch, self.stride, strict=True):
            cells *= (side - kernel) // step + 1
        return cells + 1


HUGE: Mapping[str, TrunkSpec] = {
    "vision": TrunkSpec(width=1280, blocks=32, heads=16, patch=(2, 14, 14), stride=(2, 14, 14), size=(3, 2, 224, 224), bias_kv=False),
    "text": TrunkSpec(width=1024, blocks=24, heads=16, patch=(), stride=(), size=(49408, 77), bias_kv=False, scale=1 / 0.07),
    "audio": TrunkSpec(width=768, blocks=12, heads=12, patch=(16, 16), stride=(10, 10), size=(1, 128, 204), scale=20.0),
    "depth": TrunkSpec(width=384, blocks=12, heads=8, patch=(16, 16), stride=(16, 16), size=(1, 224, 224), stem="depth_stem", scale=5.0),
    "thermal": TrunkSpec(width=768, blocks=12, heads=12, patch=(16, 16), stride=(16, 16), size=(1, 224, 224), scale=10.0),
    "imu": TrunkSpec(width=512, blocks=6, heads=8, patch=(8,), stride=(8,), size=(6, 2000), stem="imu_stem", scale=5.0),
}
"""imagebind_huge: 1,200.8 M parameters."""
HUGE_OUT = 1024


def toy(specs: Mapping[str, TrunkSpec] = HUGE, *, width: int = 32, blocks: int = 2, heads: int = 2, vocabulary: int = 512) -> dict[str, TrunkSpec]:
    """The same layout at toy size: other widths and depths, every stem and pooling rule as it is."""
    small = {name: replace(spec, width=width, blocks=blocks, heads=heads) for name, spec in specs.items()}
    return {name: replace(spec, size=(vocabulary, spec.size[1])) if not spec.patch else spec for name, spec in small.items()}


# ---- layers, named as in the released file --------------------------------------------------------------------------


class Stem(nn.Module):
    """Patches -> tokens: a bias-free projection, with a layer norm behind it but for vision."""

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        if len(spec.patch) == 3:
            kernel, stride = ((sides[0], sides[1], sides[2]) for sides in (spec.patch, spec.stride))
            convolution = nn.Conv3d(spec.size[0], spec.width, kernel, stride, bias=False)
            self.proj: nn.Module = nn.Sequential(nn.Identity(), convolution)  # the released file counts the repetition in time as layer 0
        elif len(spec.patch) == 2:
            self.proj = nn.Conv2d(spec.size[0], spec.width, (spec.patch[0], spec.patch[1]), (spec.stride[0], spec.stride[1]), bias=False)
        else:
            self.proj = nn.Linear(spec.size[0] * spec.patch[0], spec.width, bias=False)
        self.norm_layer: nn.Module | None = nn.LayerNorm(spec.width) if len(spec.patch) < 3 else None

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[B, channels, …] (IMU: [B, N, channels * kernel]) -> [B, N, E]."""
        tokens = self.proj(patches)
        if tokens.ndim > 3:
            tokens = tokens.flatten(2).transpose(1, 2)
        return tokens if self.norm_layer is None else self.norm_layer(tokens)


class _Position(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)


class Preprocessor(nn.Module):
    """Stem, CLS token and learned positions of a modality that has patches."""

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        self.spec = spec
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        setattr(self, spec.stem, Stem(spec))
        if len(spec.patch) == 1:
            self.pos_embed = nn.Parameter(torch.randn(1, spec.num_tokens, spec.width) * 0.02)
        else:
            self.pos_embedding_helper = _Position(spec.num_tokens, spec.width)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """One tensor per item -> tokens [B, N, E]. Raises ValueError when the items have another size."""
        spec = self.spec
        if len(spec.patch) == 3 and items.ndim == 4:  # an image: the same frame for the whole kernel
            items = items[:, :, None].expand(-1, -1, spec.size[1], -1, -1)
        if tuple(items.shape[1:]) != spec.size:
            raise ValueError(f"ImageBind's {spec.stem} takes items of shape {spec.size}, got {tuple(items.shape[1:])}")
        if len(spec.patch) == 1:  # [B, channels, time] -> [B, N, channels * kernel]
            items = items.unfold(-1, spec.patch[0], spec.stride[0]).transpose(1, 2).flatten(2)
        tokens = getattr(self, spec.stem)(items)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        positions: torch.Tensor = self.pos_embed if len(spec.patch) == 1 else self.pos_embedding_helper.pos_embed
        return tokens + positions


class TextPreprocessor(nn.Module):
    """Token ids [B, context] -> [B, context, E]."""

    mask: torch.Tensor

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        vocabulary, context = spec.size
        self.pos_embed = nn.Parameter(torch.randn(1, context, spec.width) * 0.01)
        self.token_embedding = nn.Embedding(vocabulary, spec.width)
        self.register_buffer("mask", torch.full((context, context), float("-inf")).triu(1))

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """See the class."""
        tokens: torch.Tensor = self.token_embedding(ids_BT) + self.pos_embed
        return tokens


class _Linear(nn.Module):
    """Weight and bias under the names nn.Linear gives them."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(width))


class Attention(nn.Module):
    """Multi-head self-attention with the parameters of torch's nn.MultiheadAttention, through the fused kernel."""

    def __init__(self, width: int, heads: int, bias_kv: bool):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = _Linear(width)
        self.bias_k = nn.Parameter(torch.randn(1, 1, width) * 0.02) if bias_kv else None
        self.bias_v = nn.Parameter(torch.randn(1, 1, width) * 0.02) if bias_kv else None

    def forward(self, states_BNE: torch.Tensor, causal: bool) -> torch.Tensor:
        """Same shape out."""
        query, key, value = functional.linear(states_BNE, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat([key, self.bias_k.expand(len(key), -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.expand(len(value), -1, -1)], dim=1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states_BNE: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.fc2(functional.gelu(self.fc1(states_BNE)))
        return hidden


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(spec.width, eps=EPS), nn.LayerNorm(spec.width, eps=EPS)
        self.attn, self.mlp = Attention(spec.width, spec.heads, spec.bias_kv), _Mlp(spec.width)

    def forward(self, states_BNE: torch.Tensor, causal: bool) -> torch.Tensor:
        """Same shape out."""
        states_BNE = states_BNE + self.attn(self.norm_1(states_BNE), causal)
        return states_BNE + self.mlp(self.norm_2(states_BNE))


class Trunk(nn.Module):
    """The transformer of one modality."""

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        self.causal = not spec.patch
        if len(spec.patch) == 3:
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(spec.width, eps=EPS))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.blocks))

    def forward(self, states_BNE: torch.Tensor) -> torch.Tensor:
        """Same shape out."""
        if hasattr(self, "pre_transformer_layer"):
            states_BNE = self.pre_transformer_layer(states_BNE)
        for block in self.blocks:
            states_BNE = block(states_BNE, self.causal)
        return states_BNE


class TextHead(nn.Module):
    """State of the end-of-text token (the highest id) -> output."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=EPS), nn.Linear(width, out, bias=False))

    def forward(self, states_BNE: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        """[B, out]."""
        picked: torch.Tensor = self.proj(states_BNE[torch.arange(len(states_BNE)), ids_BT.argmax(dim=-1)])
        return picked


class _First(nn.Module):
    def forward(self, states_BNE: torch.Tensor) -> torch.Tensor:
        return states_BNE[:, 0]


class _Unit(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, dim=-1)


class Scale(nn.Module):
    """Multiplies by exp(log_logit_scale), at most MAX_SCALE. A parameter for text, a constant elsewhere."""

    def __init__(self, start: float, learnable: bool):
        super().__init__()
        value = torch.tensor(start).log()
        if learnable:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Same shape out."""
        return vectors * self.log_logit_scale.exp().clip(max=MAX_SCALE)


def _head(name: str, spec: TrunkSpec, out: int) -> nn.Module:
    if not spec.patch:
        return TextHead(spec.width, out)
    dropout: list[nn.Module] = [nn.Dropout(0.5)] if name == "imu" else []  # off while frozen; it moves the Linear to index 3
    return nn.Sequential(nn.LayerNorm(spec.width, eps=EPS), _First(), *dropout, nn.Linear(spec.width, out, bias=False))


# ---- the model ------------------------------------------------------------------------------------------------------


class ImageBind(nn.Module):
    """Trunks of the modalities in `specs` (names of HUGE)."""

    def __init__(self, specs: Mapping[str, TrunkSpec] = HUGE, out: int = HUGE_OUT):
        super().__init__()
        self.specs = dict(specs)
        self.modality_preprocessors = nn.ModuleDict({n: Preprocessor(s) if s.patch else TextPreprocessor(s) for n, s in specs.items()})
        self.modality_trunks = nn.ModuleDict({n: Trunk(s) for n, s in specs.items()})
        self.modality_heads = nn.ModuleDict({n: _head(n, s, out) for n, s in specs.items()})
        self.modality_postprocessors = nn.ModuleDict(
            {n: nn.Sequential(_Unit(), Scale(s.scale, learnable=not s.patch)) if s.scale else _Unit() for n, s in specs.items()}
        )

    def forward(self, modality: str, items: torch.Tensor) -> torch.Tensor:
        """Vectors [B, out]. items: [B, …] of the trunk's size, or [B, S, …]: S clips of one item, whose vectors are averaged at the very end."""
        items_, clips = self._flat(modality, items)
        vectors = self._pool(modality, self.tokens(modality, items_), items_)
        return vectors if clips is None else vectors.unflatten(0, (-1, clips)).mean(dim=1)

    def tokens(self, modality: str, items: torch.Tensor) -> torch.Tensor:
        """States behind the trunk [B, N, E], CLS first (text: none), without head and normalisation. items: [B, …] of the trunk's size."""
        states: torch.Tensor = self.modality_trunks[modality](self.modality_preprocessors[modality](items))
        return states

    def _pool(self, modality: str, states_BNE: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        head = self.modality_heads[modality]
        vectors: torch.Tensor = self.modality_postprocessors[modality](head(states_BNE, items) if isinstance(head, TextHead) else head(states_BNE))
        return vectors

    def unscaled(self, modality: str, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors of `forward` without the modality's logit scale."""
        layers: Any = self.modality_postprocessors[modality]
        return vectors / layers[1].log_logit_scale.exp().clip(max=MAX_SCALE) if self.specs[modality].scale else vectors

    def normed(self, modality: str, states_BNE: torch.Tensor) -> torch.Tensor:
        """States behind the head's layer norm, which the released code applies before it picks a token."""
        head: Any = self.modality_heads[modality]
        states: torch.Tensor = (head.proj if isinstance(head, TextHead) else head)[0](states_BNE)
        return states

    def _flat(self, modality: str, items: torch.Tensor) -> tuple[torch.Tensor, int | None]:
        spec = self.specs[modality]
        single = len(spec.size) + 1 if spec.patch else 2
        return (items.flatten(0, 1), items.shape[1]) if items.ndim == single + 1 else (items, None)


def modality_of(name: str) -> str:
    """The modality a tensor of the released file belongs to: `modality_trunks.audio.blocks.0…` -> audio."""
    return name.split(".")[1] if name.startswith("modality_") and name.count(".") > 1 else ""


def load_imagebind(state: Mapping[str, torch.Tensor], specs: Mapping[str, TrunkSpec] = HUGE, out: int = HUGE_OUT) -> ImageBind:
    """The frozen model of `specs`, from a state dict in the released layout; tensors of other modalities are ignored.

    The model is built without storage and takes the given tensors as they are. Raises ValueError naming what is missing, extra or misshapen.
    """
    with torch.device("meta"):
        model = ImageBind(specs, out)
    wanted: dict[str, Any] = model.state_dict()
    given = {name: value for name, value in state.items() if modality_of(name) in specs or not modality_of(name)}
    for problem, names in (("lacks", wanted.keys() - given.keys()), ("has the unknown", given.keys() - wanted.keys())):
        if names:
            raise ValueError(f"the ImageBind file {problem} {sorted(names)[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            raise ValueError(f"the ImageBind file has {name} of shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}")
    model.load_state_dict(given, assign=True)
    return model.eval().requires_grad_(False)
