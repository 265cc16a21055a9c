"""Targets: carried out of mmcore/training/states.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmcore.training.drawn import FeatureSource
from mmcore.training.losses import alignment
from mmcore.training.signals import target_key

DENOISING = "denoising"

CHUNK = 256


def padded_targets(source: FeatureSource, captions: Sequence[str], num_queries: int) -> torch.Tensor:
    """Targets [B, Q, C] of captions: cut to Q tokens, zero beyond a caption's own tokens."""
    features, lengths = source.gather([target_key(caption) for caption in captions])
    target_BQC = torch.zeros(len(captions), num_queries, features.shape[-1])
    for row, length in enumerate(np.minimum(lengths, num_queries).tolist()):
        target_BQC[row, :length] = torch.from_numpy(np.ascontiguousarray(features[row, :length]))
    return target_BQC


def fit_targets(source: FeatureSource, captions: Sequence[str], num_queries: int) -> tuple[torch.Tensor, float, float]:
    """(mean_QC, standard deviation around it, mean alignment distance of the mean predictor) over distinct captions, in sorted order."""
    distinct = sorted(set(captions))
    chunks = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
    mean_QC = torch.stack([padded_targets(source, chunk, num_queries).double().sum(0) for chunk in chunks]).sum(0) / len(distinct)
    squares, distances = 0.0, 0.0
    for chunk in chunks:
        target_BQC = padded_targets(source, chunk, num_queries).double()
        squares += float(((target_BQC - mean_QC) ** 2).mean(dim=(1, 2)).sum())
        distances += float(alignment(mean_QC.expand_as(target_BQC), target_BQC).sum())
    return mean_QC.float(), (squares / len(distinct)) ** 0.5, distances / len(distinct)
