"""AdamW over one flat float32 buffer.

The trained parameters become views of one vector, and their gradients views of another: one optimizer kernel, one all-reduce and
one norm per step, and a state that is two vectors. Parameters may have a share of the learning rate of their own. Input: named
parameters. Output: the parameters in place. Raises ValueError for a type that is not float32 and a gradient that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Protocol

import torch


class AdamConfig(Protocol):
    """What AdamW needs to know: a StageConfig or a FitConfig."""

    @property
    def lr(self) -> float: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def clip(self) -> float:
        """Global gradient norm."""
        ...


def learning_rate(lr: float, step: int, *, warmup: int, span: int, schedule: str, final: float | None) -> float:
    """Linear warm-up to `lr`, then decay over `span` steps: along a line, or half a cosine wave (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5, one
    period). step counts from 0; schedule: `linear` or `cosine`; final: share of the peak that is left behind the span, None for nothing at all."""
    if step < warmup:
        return lr * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, span))
    wave = math.cos(math.pi * done)
    if final is None:  # not final 0.0: the two round differently, and both kinds of training have artifacts
        return lr * (1 - done if schedule == "linear" else 0.5 * (1 + wave))
    return lr * (1 - (1 - final) * (done if schedule == "linear" else (1 - wave) / 2))


class FlatAdamW:
    """torch's AdamW on a flat view of named parameters (float32, in the mapping's order).

    shares: name -> factor of the learning rate of that parameter, for those that have another rate than the others. Each factor is a parameter group of
    torch's, whose members are stretches of the flat vector.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], config: AdamConfig, shares: Mapping[str, float] | None = None):
        wrong = [name for name, parameter in parameters.items() if parameter.dtype != torch.float32]
        if wrong:
            raise ValueError(f"trained parameters must be float32, {wrong[0]} is not")
        self.parameters, self.clip = dict(parameters), config.clip
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters.values()])
        self.gradient = torch.zeros_like(self.flat)
        """The flat gradient; backward passes add to it."""
        self._stretches: list[torch.nn.Parameter] = []
        groups: dict[float, list[torch.nn.Parameter]] = {}
        end = 0
        for share, names in groupby(self.parameters, lambda name: (shares or {}).get(name, 1.0)):
            start = end
            for parameter in (self.parameters[name] for name in names):
                place = slice(end, end := end + parameter.numel())
                parameter.data, parameter.grad = self.flat[place].view(parameter.shape), self.gradient[place].view(parameter.shape)
            stretch = torch.nn.Parameter(self.flat[start:end])
            stretch.grad = self.gradient[start:end]
            self._stretches.append(stretch)
            groups.setdefault(share, []).append(stretch)
        members = [{"params": stretches, "share": share} for share, stretches in groups.items()]
        self._inner = torch.optim.AdamW(members, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)

    def step(self, lr: float, divisor: float) -> float:
        """Divide the gradient, clip its norm, update, and clear it. Returns the norm before clipping. Raises ValueError when it is not finite."""
        self.gradient.div_(divisor)
        norm = float(torch.linalg.vector_norm(self.gradient))
        if not norm < float("inf"):
            raise ValueError(f"the gradient is not finite ({self._not_finite()})")
        if self.clip and norm > self.clip:
            self.gradient.mul_(self.clip / norm)
        for group in self._inner.param_groups:
            group["lr"] = lr * group["share"]
        self._inner.step()
        self.gradient.zero_()
        return norm

    def _not_finite(self) -> str:
        """Which parameters have a gradient that is not finite."""
        names = [name for name, one in self.parameters.items() if one.grad is not None and not torch.isfinite(one.grad).all()]
        return f"of {len(names)} of {len(self.parameters)} parameters, {names[0]} first" if names else "its norm"

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs beside the parameters: the number of steps, and each moment as one flat vector."""
        states = [self._inner.state[stretch] for stretch in self._stretches]
        return {name: value.detach().clone() if value.ndim == 0 else torch.cat([state[name] for state in states]) for name, value in states[0].items()}

    def load(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a checkpoint: parameters by name, and `state()`."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[name])
        start = 0
        for stretch in self._stretches:
            place = slice(start, start := start + stretch.numel())
            self._inner.state[stretch] = {name: (value if value.ndim == 0 else value[place]).to(self.flat.device, copy=True) for name, value in state.items()}
