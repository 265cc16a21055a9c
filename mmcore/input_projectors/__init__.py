"""Input projectors: encoder space -> LM space.

Owns the registry (kind -> class) and how many tokens a kind makes of N feature tokens. A projector maps
(features_BNE, lengths_B) -> (embeds_BKD, mask_BK) and may be fitted to the training features before its first step.
Refuses to know where the embeddings go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from mmcore.config import InputProjectorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch


class InputProjector(Protocol):
    """What AnyModel needs of a projector (a torch module)."""

    def __call__(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def fit(self, chunks: Iterable[np.ndarray]) -> None: ...


KINDS = {"linear": "mmcore.input_projectors.linear:LinearProjector"}
"""kind -> class; imported only when it is built."""


def num_projected(spec: InputProjectorSpec, num_features: int) -> int:
    """K, tokens that `num_features` feature tokens become."""
    if spec.kind not in KINDS:
        raise ValueError(f"input projector kind {spec.kind!r} is unknown; there are: {', '.join(sorted(KINDS))}")
    return num_features  # linear keeps every token


def build_input_projector(spec: InputProjectorSpec, in_width: int, out_width: int, seed: int) -> torch.nn.Module:
    """A seeded projector E=in_width -> D=out_width. Raises ValueError for an unknown kind."""
    import importlib

    from mmcore.seeding import seeded

    if spec.kind not in KINDS:
        raise ValueError(f"input projector kind {spec.kind!r} is unknown; there are: {', '.join(sorted(KINDS))}")
    module, _, name = KINDS[spec.kind].partition(":")
    with seeded(seed):
        projector: torch.nn.Module = getattr(importlib.import_module(module), name)(in_width, out_width, spec.init_std)
    return projector
