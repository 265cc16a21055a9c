"""The two-tower model: stored features of media and texts -> unit vectors in one space, trained with InfoNCE.

Owns the towers, the learnable temperature, the loss with its masks and the gather over ranks. Input: features of frozen encoders. Output: vectors
whose cosine says how well a medium and a text go together.

CLIP: Radford et al. 2021 (arXiv 2103.00020, section 2.3 and figure 3); InfoNCE: van den Oord et al. 2018 (arXiv 1807.03748, equation 4).
Shape letters: B rows of the global batch, b rows of this rank, N feature tokens, E encoder width, W width of the shared space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from mmcore.config import TowerShape, TwoTowerSpec, two_tower_spec_from_json
from mmcore.projectors.linear import LinearProjector
from mmcore.runtime.seeding import seeded

MAX_LOG_SCALE = math.log(100.0)
"""CLIP keeps the logits' scale at 100 or below."""
POOLINGS = ("mean", "attention")
Sum = Callable[[torch.Tensor], None]
"""Adds up a tensor over all ranks, in place."""


class Tower(LinearProjector):
    """features_BNE -> unit vectors_BW: W2 gelu(W1 pool((x - mean) / std)), or one linear map without a hidden layer."""

    def __init__(self, in_width: int, shape: TowerShape, pooling: str):
        super().__init__(in_width, shape.hidden or shape.width, init_std=1.0)
        self.query_E = nn.Parameter(torch.zeros(in_width)) if pooling == "attention" else None
        self.out = nn.Linear(shape.hidden, shape.width) if shape.hidden else None

    def forward(self, features_BNE: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Unit vectors [B, W] float32. Raises ValueError for features of another width."""
        if features_BNE.shape[-1] != self.proj.in_features:
            raise ValueError(f"features have {features_BNE.shape[-1]} channels, the tower takes {self.proj.in_features}")
        x_BNE = (features_BNE.float() - self.mean_E) / self.std_E
        real_BN = torch.arange(x_BNE.shape[1], device=x_BNE.device)[None] < lengths_B[:, None]
        scores_BN = torch.zeros(x_BNE.shape[:2], device=x_BNE.device) if self.query_E is None else x_BNE @ self.query_E / len(self.query_E) ** 0.5
        weights_BN = scores_BN.masked_fill(~real_BN, -torch.inf).softmax(-1)
        vectors_BW = self.proj((weights_BN[..., None] * x_BNE).sum(1))
        if self.out is not None:
            vectors_BW = self.out(functional.gelu(vectors_BW))
        return functional.normalize(vectors_BW, dim=-1)


class TwoTower(nn.Module):
    """One tower per modality, one for texts, and the log of the logits' scale."""

    def __init__(self, spec: TwoTowerSpec):
        """Raises ValueError for an unknown pooling or a temperature outside 0.01..1."""
        super().__init__()
        shape = spec.shape
        if shape.pooling not in POOLINGS:
            raise ValueError(f"pooling {shape.pooling!r} is unknown; there are: {', '.join(POOLINGS)}")
        if not 0.01 <= shape.temperature <= 1:
            raise ValueError(f"the temperature {shape.temperature} must lie within 0.01..1")
        self.spec = spec
        with seeded(shape.seed):
            self.media = nn.ModuleDict({modality: Tower(encoder.width, shape, shape.pooling) for modality, encoder in spec.encoders})
            self.text = Tower(spec.text.width, shape, "mean")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(shape.temperature)))

    def tower(self, modality: str) -> Tower:
        """The tower of a modality, `text` included. Raises ValueError for one the model does not have."""
        if modality == "text":
            return self.text
        if modality not in self.media:
            raise ValueError(f"the two-tower model has no tower for {modality}; it has: {', '.join(self.media)}, text")
        found = self.media[modality]
        assert isinstance(found, Tower)
        return found

    def scale(self) -> torch.Tensor:
        """What cosines are multiplied with. The parameter itself is clamped first, as in CLIP's training loop, so it can always come back."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, MAX_LOG_SCALE)
        return self.log_scale.exp()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_scale.device

    @torch.inference_mode()
    def vectors(self, modality: str, features_BNE: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Unit vectors [B, W] float32 of stored features."""
        return self.tower(modality)(torch.from_numpy(features_BNE).to(self.device), torch.from_numpy(lengths_B).to(self.device)).cpu().numpy()


def load_two_tower(directory: Path) -> TwoTower:
    """The trained model of a two_tower artifact. Raises ValueError when its files do not fit each other."""
    model = TwoTower(two_tower_spec_from_json(json.loads((directory / "stage.json").read_text())["model"]))
    try:
        model.load_state_dict(load_file(directory / "tensors.safetensors"))
    except RuntimeError as error:
        raise ValueError(f"{directory}: the tensors are not those of the model: {' '.join(str(error).split())}") from error
    return model.eval().requires_grad_(False)


class _Gather(torch.autograd.Function):
    """Rows of every rank, in the global order, with gradient: forward adds up disjoint rows, backward adds up what every rank's loss says about them.

    Rows may be split unevenly. Adding zeros is exact, so the values are those of one rank holding them all.
    """

    @staticmethod
    def forward(ctx: Any, own_bX: torch.Tensor, first: int, total: int, sum_: Sum) -> torch.Tensor:
        ctx.own, ctx.sum_ = slice(first, first + len(own_bX)), sum_
        all_BX = own_bX.new_zeros(total, *own_bX.shape[1:])
        all_BX[ctx.own] = own_bX
        sum_(all_BX)
        return all_BX

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient_BX = gradients[0].contiguous().clone()
        ctx.sum_(gradient_BX)
        return gradient_BX[ctx.own], None, None, None


def gather_rows(own_bX: torch.Tensor, first: int, total: int, sum_: Sum) -> torch.Tensor:
    """[B, ...] rows of all ranks from this rank's [b, ...], which start at row `first` of `total`. Every rank must call it, even with no rows."""
    gathered: torch.Tensor = _Gather.apply(own_bX, first, total, sum_)
    return gathered


def same_pairs(media_B: torch.Tensor, texts_B: torch.Tensor, modalities_B: torch.Tensor, *, across: bool = False) -> torch.Tensor:
    """[B, B] bool: True where row j is no negative of row i: the same medium or the same text, or (unless `across`) another modality.

    media_B, texts_B, modalities_B: int64 names of each row's medium, text and modality. The diagonal is True.
    """
    same_BB = (media_B[:, None] == media_B) | (texts_B[:, None] == texts_B)
    return same_BB if across else same_BB | (modalities_B[:, None] != modalities_B)


def info_nce(own: slice, media_BW: torch.Tensor, texts_BW: torch.Tensor, same_BB: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of the rows `own` of a batch, [b]: mean of the cross-entropies of its caption among the captions and of its medium among the media.

    media_BW, texts_BW: unit vectors of the whole batch; same_BB: pairs that are not negatives. A row without negatives costs 0.
    """
    blocked_bB = same_BB[own].clone()
    rows_b = torch.arange(len(media_BW), device=media_BW.device)[own]
    blocked_bB[torch.arange(len(rows_b), device=rows_b.device), rows_b] = False
    to_text_bB = (scale * media_BW[own] @ texts_BW.T).masked_fill(blocked_bB, -torch.inf)
    to_media_bB = (scale * texts_BW[own] @ media_BW.T).masked_fill(blocked_bB, -torch.inf)
    return (functional.cross_entropy(to_text_bB, rows_b, reduction="none") + functional.cross_entropy(to_media_bB, rows_b, reduction="none")) / 2
