"""The arithmetic of LoRA layers: one or several adapters on a frozen linear layer, each token through its own.

Owns the forward and backward of an adapted layer and the routing that all layers of one model share during a forward pass. Input: the
layer's input; 0/1 routes of the pass. A shared adapter takes every token. Adapters per modality take the tokens that the routes name: all
of them are computed for all tokens, and the routes multiply the low-rank activations (which is the same as multiplying the adapters'
outputs, since B has no bias), so every adapter has a gradient in every step, whatever media the batch holds.
Plain linear layers compute y = x W' + b + (x A') B' s in the base's dtype with float32 parameters, which on a CPU with bfloat16 saves
the float32 copies of every input that peft's own forward makes (a seventh of a training step). Any other layer (quantised, Conv1D) computes
its own output, and the adapters run in float32 beside it.

Dropout leaves out inputs of the adapters alone, as peft does (Hu et al. 2021, arXiv 2106.09685); which ones is a hash of (sample's place in the global
batch, token's place in its row, draw, layer, channel).

Shape letters: P tokens of the pass (rows times positions, flat), I and O inputs and outputs of a layer, A adapters, R rank, AR = A * R.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from mmcore.runtime.noise import mix, mixed, uniform

SHARED_ADAPTER = "default"
"""Name of the one adapter that takes every token (peft's own default name)."""
_ATTRIBUTE = "lora_routing"


class Routing:
    """What the adapted layers of one model share. adapters: their names in order; rank: R of each; dropout: share of their inputs left out in training;
    settings: PEFT's, of each adapter."""

    def __init__(self, adapters: tuple[str, ...], rank: int, dropout: float = 0.0, settings: Mapping[str, Any] | None = None):
        self.adapters, self.rank, self.dropout, self.settings = adapters, rank, dropout, dict(settings or {})
        self.draw: int | None = None
        """Number of the dropout of the passes to come; None leaves nothing out."""
        self.seeds_P: torch.Tensor | None = None
        """int64 seeds of the running pass's tokens; None outside a pass and without dropout."""
        self.mask_PAR: torch.Tensor | None = None
        """Routes of the running pass, repeated R times per adapter; None outside a pass and with the shared adapter."""

    @property
    def shared(self) -> bool:
        """True when there is one adapter, which takes every token."""
        return self.adapters == (SHARED_ADAPTER,)

    def token_seeds(self, ids_BT: torch.Tensor, numbers_B: torch.Tensor | None = None) -> torch.Tensor | None:
        """seeds_BT of the tokens of a training pass, from the number of their row, their places in it and the draw; None where nothing is left out.

        numbers: of the rows' samples in the step's global batch (None: in this one), so that rows of equal text differ, and neither the other rows of a
        microbatch, nor the number of ranks, nor padding change anything.
        """
        if self.draw is None or not self.dropout:
            return None
        numbers_B = torch.arange(len(ids_BT), device=ids_BT.device) if numbers_B is None else numbers_B
        rows_B = mix(mix(numbers_B) ^ mixed(self.draw))
        return mix(rows_B[:, None] ^ torch.arange(ids_BT.shape[1], device=ids_BT.device))

    def kept(self, place: int, width: int) -> torch.Tensor | None:
        """0 or 1 / (1 - dropout) for every input [P, I] of the adapters of layer `place` in the running pass; None where nothing is left out."""
        if self.seeds_P is None:
            return None
        channels_I = mix(torch.arange(width, device=self.seeds_P.device) + (place << 40))
        return (uniform(self.seeds_P[:, None] ^ channels_I) >= self.dropout).float() / (1 - self.dropout)


def routing_of(base: Any) -> Routing | None:
    """The routing of a model with adapters; None when it has none."""
    return getattr(base, _ATTRIBUTE, None)


@contextmanager
def routed(base: Any, routes_BTA: torch.Tensor | None, seeds_BT: torch.Tensor | None = None) -> Iterator[None]:
    """Run the body's forward pass of `base` with these 0/1 routes, and the seeds of its dropout. Without adapters, or with the shared one, routes are not
    looked at.

    Raises ValueError when the adapters are per modality and routes are missing or name another number of adapters.
    """
    routing = routing_of(base)
    if routing is None:
        yield
        return
    routing.seeds_P = None if seeds_BT is None else seeds_BT.reshape(-1)
    try:
        with _masked(routing, routes_BTA):
            yield
    finally:
        routing.seeds_P = None


@contextmanager
def _masked(routing: Routing, routes_BTA: torch.Tensor | None) -> Iterator[None]:
    if routing.shared:
        yield
        return
    if routes_BTA is None or routes_BTA.shape[-1] != len(routing.adapters):
        given = "none" if routes_BTA is None else f"routes of {routes_BTA.shape[-1]}"
        raise ValueError(f"the LoRA adapters are per modality ({', '.join(routing.adapters)}): the pass needs routes of {len(routing.adapters)}, {given} given")
    routing.mask_PAR = routes_BTA.reshape(-1, len(routing.adapters)).repeat_interleave(routing.rank, 1)
    try:
        yield
    finally:
        routing.mask_PAR = None


class _LoraProduct(torch.autograd.Function):
    """x [.., I], W [O, I], bias [O], A [AR, I], B [O, AR], mask [P, AR], kept [P, I] -> x W' + bias + s (((x * kept) A') * mask) B'.

    W and bias get no gradient. mask, kept: None for ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        mask: torch.Tensor | None,
        kept: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        flat, low_a, low_b = x.reshape(-1, x.shape[-1]), lora_a.to(x.dtype), (lora_b * scaling).to(x.dtype)
        kept = None if kept is None else kept.to(x.dtype)
        inner = (flat if kept is None else flat * kept) @ low_a.T
        mask = None if mask is None else mask.to(x.dtype)
        if mask is not None:
            inner = inner * mask
        ctx.save_for_backward(flat, weight, low_a, low_b, inner, mask, kept)
        ctx.scaling, ctx.shape = scaling, x.shape
        whole = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        return torch.addmm(whole, inner, low_b.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, low_a, low_b, inner, mask, kept = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        through = gradient @ low_b
        if mask is not None:
            through = through * mask
        for_b = (gradient.T @ inner).float() * ctx.scaling
        if kept is None:
            for_x = torch.addmm(gradient @ weight, through, low_a).view(ctx.shape) if ctx.needs_input_grad[0] else None
            return for_x, None, None, (through.T @ flat).float(), for_b, None, None, None
        for_x = (gradient @ weight + (through @ low_a) * kept).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return for_x, None, None, (through.T @ (flat * kept)).float(), for_b, None, None, None


def _stacked(layer: Any, routing: Routing) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A [AR, I] and B [O, AR] of all adapters of a layer, and their common scaling."""
    first = routing.adapters[0]
    if len(routing.adapters) == 1:
        return layer.lora_A[first].weight, layer.lora_B[first].weight, layer.scaling[first]
    lora_a = torch.cat([layer.lora_A[name].weight for name in routing.adapters])
    return lora_a, torch.cat([layer.lora_B[name].weight for name in routing.adapters], 1), layer.scaling[first]


def _forward_plain(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward of an adapted nn.Linear."""
    routing = layer.lora_routing
    lora_a, lora_b, scaling = _stacked(layer, routing)
    inner, kept = layer.base_layer, routing.kept(layer.lora_place, x.shape[-1])
    product: torch.Tensor = _LoraProduct.apply(x, inner.weight, inner.bias, lora_a, lora_b, routing.mask_PAR, kept, scaling)
    return product


def _forward_any(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward of any other adapted layer: its own output, and the adapters' in float32 beside it."""
    routing = layer.lora_routing
    lora_a, lora_b, scaling = _stacked(layer, routing)
    kept = routing.kept(layer.lora_place, x.shape[-1])
    inner = (x.float() if kept is None else x.float() * kept.view(x.shape)) @ lora_a.T
    if routing.mask_PAR is not None:
        inner = inner * routing.mask_PAR.view(inner.shape)
    whole: torch.Tensor = layer.base_layer(x)
    return whole + (inner @ lora_b.T * scaling).to(whole.dtype)


def bind(base: Any, routing: Routing) -> None:
    """Give every adapted layer of `base` our forward and the routing, in place."""
    setattr(base, _ATTRIBUTE, routing)
    adapted = [layer for layer in base.modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")]
    for place, layer in enumerate(adapted):
        layer.lora_routing, layer.lora_place = routing, place
        plain = type(layer.base_layer) is torch.nn.Linear
        layer.forward = MethodType(_forward_plain if plain else _forward_any, layer)
