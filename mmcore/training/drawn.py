"""Drawn: samples in their place of a training step, and the features of their media.

Input: stored features by modality, and (modality, key) of rows. Output: padded arrays with lengths, and the rows they belong to. Raises ValueError for a
modality without features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mmcore.types import Sample


class FeatureSource(Protocol):
    """Stored features of one modality (mmcore.stores.embeddings.EmbeddingSet)."""

    def gather(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(features_BNE float32 zero-padded, lengths_B)."""
        ...

    def length(self, key: str) -> int:
        """N of one sample."""
        ...

    def __contains__(self, key: object) -> bool: ...


def media_of(features: Mapping[str, FeatureSource], items: Sequence[tuple[str, str]]) -> dict[str, tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """modality -> (features_BNE, lengths_B, their rows) of rows' (modality, sample key)s; rows of text have none.

    Raises ValueError for a modality without features.
    """
    found = {}
    for modality in sorted({modality for modality, _ in items} - {"text"}):
        rows = [i for i, (other, _) in enumerate(items) if other == modality]
        if modality not in features:
            raise ValueError(f"sample {items[rows[0]][1]} has {modality} input but this step has no {modality} features: give it embed_{modality}")
        taken, lengths = features[modality].gather([items[i][1] for i in rows])
        found[modality] = (torch.from_numpy(np.ascontiguousarray(taken)), torch.from_numpy(np.asarray(lengths, np.int64)), rows)
    return found


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample in its place of a step."""

    sample: Sample
    visit: int
    """How often it was drawn before."""
    number: int
    """Place in the step's global batch."""
