"""Targets: what the output projectors aim at, as tensors.

Owns the padding of targets, the statistics that their loss is scaled by, and which samples have targets (and latents). Input: stored caption features.
Output: [B, Q, C] tensors, mean, spread and the error of the mean. Raises ValueError for a caption without features.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from mmcore.stores.left_out import CUT, LEFT_OUT, NO_FEATURES, LeftOut
from mmcore.training.drawn import FeatureSource
from mmcore.training.losses import alignment
from mmcore.training.signals import target_key
from mmcore.types import Sample

DENOISING = "denoising"

CHUNK = 256


def with_targets(
    samples: Mapping[str, Sequence[Sample]],
    modalities: Mapping[str, str],
    targets: Mapping[str, FeatureSource],
    latents: Mapping[str, Container[str]],
) -> tuple[dict[str, list[Sample]], list[LeftOut]]:
    """dataset -> its samples with the captions that have targets, of media that have latents; and what became of the others.

    modalities: dataset -> the modality that its captions ask for; other datasets stay as they are. latents: modality -> those of the media, where there is a
    denoising loss.
    """
    kept: dict[str, list[Sample]] = {}
    lost = []
    for name, rows in samples.items():
        modality = modalities.get(name, "")
        kept[name] = []
        for sample in rows:
            texts, problem = sample.texts, ""
            if modality in targets:
                texts = tuple(text for text in sample.texts if target_key(text) in targets[modality])
                problem = "its captions have no targets: the text encoder cannot take them" if texts != sample.texts else ""
            if modality in targets and modality in latents and sample.key not in latents[modality]:
                texts, problem = (), f"this step has no {modality} latents of it: its decoder's autoencoder cannot take it"
            if problem:
                lost.append(LeftOut(key=sample.key, source=name, status=CUT if texts else LEFT_OUT, reason=NO_FEATURES, detail=problem))
            kept[name] += [] if problem and not texts else [replace(sample, texts=texts) if problem else sample]
    return kept, lost


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
