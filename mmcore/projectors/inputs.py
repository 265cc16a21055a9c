"""Input projectors: encoder space -> LM space.

Owns the registry (kind -> class, and how many tokens the kind makes of N feature tokens). A projector maps
(features_BNE, lengths_B) -> (embeds_BKD, mask_BK) and may be fitted to the training features before its first step.
A new kind is one file with a StandardisedProjector and one line here; the sizes it needs are fields of InputProjectorSpec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mmcore.config import InputProjectorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch


class InputProjector(Protocol):
    """What AnyModel needs of a projector (a torch module)."""

    draw: int | None

    def __call__(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def fit(self, chunks: Iterable[np.ndarray]) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One registry entry."""

    target: str
    """`module:class` of the projector; imported only when it is built."""
    tokens: Callable[[InputProjectorSpec, int], int]
    """(spec, N) -> K for an item of N >= 1 feature tokens."""


KINDS = {
    "linear": Kind("mmcore.projectors.linear:LinearProjector", lambda spec, num: num),
    "mlp": Kind("mmcore.projectors.mlp:MLPProjector", lambda spec, num: num),
    "group": Kind("mmcore.projectors.group:GroupProjector", lambda spec, num: spec.groups[-1]),
}
"""kind -> entry."""


def _kind(spec: InputProjectorSpec) -> Kind:
    if spec.kind not in KINDS:
        raise ValueError(f"input projector kind {spec.kind!r} is unknown; there are: {', '.join(sorted(KINDS))}")
    return KINDS[spec.kind]


def num_projected(spec: InputProjectorSpec, num_features: int) -> int:
    """K, tokens that `num_features` feature tokens become; none become none. Raises ValueError for an unknown kind."""
    kind = _kind(spec)
    return kind.tokens(spec, num_features) if num_features else 0


def build_input_projector(spec: InputProjectorSpec, in_width: int, out_width: int, seed: int) -> torch.nn.Module:
    """A seeded projector E=in_width -> D=out_width. Raises ValueError for an unknown kind."""
    import importlib

    from mmcore.runtime.seeding import seeded

    module, _, name = _kind(spec).target.partition(":")
    with seeded(seed):
        projector: torch.nn.Module = getattr(importlib.import_module(module), name).build(spec, in_width, out_width)
    return projector
