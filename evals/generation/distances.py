"""Distances between two sets of media, from an encoder's features: Fréchet (the formula of FID and FAD) and kernel (that of KID).

Owns how torchmetrics is handed features that are already there. Input: features of two sets; output: a number.

Fréchet: Heusel et al. 2017 (arXiv 1706.08500), for audio clips Kilgour et al. 2019 (arXiv 1812.08466). It grows when samples are few (Chong & Forsyth 2020,
arXiv 1911.07023), so it is read beside its value between two halves of real media of the same number. Kernel: Binkowski et al. 2018 (arXiv 1801.01401),
unbiased at any number, and below 0 by chance.

Shape letters: N, M items, E encoder width, R rank of all rows together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mmcore.runtime.seeding import seeded


class _Given(nn.Module):
    """Stands where torchmetrics wants an extractor: what it is given are features already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features_NE: torch.Tensor) -> torch.Tensor:
        """Returns them."""
        return features_NE


def in_span(made_NE: np.ndarray, real_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in an orthonormal basis of all their rows, float64 [N, R] and [M, R] with R <= N + M.

    Every inner product stays what it is, and so do both distances; with few wide features they cost a fraction.
    """
    rows = np.concatenate([made_NE, real_ME]).astype(np.float64)
    if rows.shape[1] <= len(rows):
        return rows[: len(made_NE)], rows[len(made_NE) :]
    basis_ER, _ = np.linalg.qr(rows.T)
    rows = rows @ basis_ER
    return rows[: len(made_NE)], rows[len(made_NE) :]


def frechet_distance(made_NE: np.ndarray, real_ME: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features, by torchmetrics. Raises ValueError for fewer than 2 on a side."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check(made_NE, real_ME)
    made, real = (torch.from_numpy(np.ascontiguousarray(rows, np.float64)) for rows in (made_NE, real_ME))
    metric = FrechetInceptionDistance(feature=_Given(made.shape[1]))
    metric.update(real, real=True)
    metric.update(made, real=False)
    return float(metric.compute())


def kernel_distance(made_NE: np.ndarray, real_ME: np.ndarray, width: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x y / width + 1)^3, by torchmetrics.

    width: of the features before they were put into another basis (0: as they are). torchmetrics compares as many of one side as of the other: of the larger
    set the first rows count, so hand it over in a drawn order. Raises ValueError for fewer than 2 on a side.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _check(made_NE, real_ME)
    size = min(len(made_NE), len(real_ME))
    metric = KernelInceptionDistance(feature=_Given(made_NE.shape[1]), subsets=1, subset_size=size, gamma=1.0 / (width or made_NE.shape[1]))
    for rows, real in ((made_NE, False), (real_ME, True)):
        metric.update(torch.from_numpy(np.ascontiguousarray(rows[:size], np.float64)), real=real)
    with seeded(0):  # torchmetrics draws the order of the rows, and the sum's rounding follows it
        return float(metric.compute()[0])


def _check(made_NE: np.ndarray, real_ME: np.ndarray) -> None:
    if min(len(made_NE), len(real_ME)) < 2 or made_NE.shape[1] != real_ME.shape[1]:
        raise ValueError(f"a distance needs two features or more of one width on both sides, not {made_NE.shape} and {real_ME.shape}")
