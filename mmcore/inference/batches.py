"""Batches: which questions the model reads together, and the features of their media.

Input: Questions, features. Output: batches of rows of questions that share a medium and its prefix, and collated features. Raises ValueError for features of a
modality that there is none of.

Shape letters: B media, N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256

import numpy as np
import torch

from mmcore.chat.chat import independent
from mmcore.chat.special_tokens import MEDIA
from mmcore.types import Answer, MediaBatch, Question, Said

ROWS = 24
"""Media whose questions are answered together."""
QUESTIONS = 16
"""Questions per row; more about one medium take further rows."""
TEXTS = 96
"""Questions about no medium that are answered together: a row each, as they have no prefix to share."""
Feature = tuple[str, np.ndarray]
"""(modality, features_NE)."""


def batches(items: Sequence[Question], apart: Collection[int] = ()) -> list[list[list[int]]]:
    """Batches of rows of numbers of the items. Those about equal media (one key and modality, equal features; without a key each has its own) share a row, at
    most QUESTIONS of them, in order of first appearance, but for those `apart`, which have no prefix in common with any; those about none have rows and batches
    of their own: beside the long rows of media theirs would be padding for the most part."""
    texts = [number for number, item in enumerate(items) if item.features_NE is None]
    by_key: dict[tuple[str, str | None, int], list[int]] = {}
    for number, item in enumerate(items):
        if item.features_NE is None:
            continue
        alone = number in apart or not item.media_key
        key, version = (item.media_key, item.modality), number if alone else -1
        while not alone and (*key, version) in by_key and not _equal(items[by_key[*key, version][0]].features_NE, item.features_NE):
            version -= 1
        by_key.setdefault((*key, version), []).append(number)
    shared = [numbers[start : start + QUESTIONS] for numbers in by_key.values() for start in range(0, len(numbers), QUESTIONS)]
    found = [[[number] for number in texts[start : start + TEXTS]] for start in range(0, len(texts), TEXTS)]
    return found + [shared[start : start + ROWS] for start in range(0, len(shared), ROWS)]


def _equal(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is second or (first is not None and second is not None and np.array_equal(first, second))


def unread_answer(count: int) -> Answer:
    """The answer to a question of so many tokens that the model does not read."""
    return Answer(text="", caption=None, token_ids=(), num_input_tokens=count, finish="too_long")


def drawn_as(text: str, features: Sequence[Feature]) -> int:
    """Number of the draws of an answer: of what is asked about which features, wherever it stands among others."""
    digest = sha256(text.encode("utf-8", "surrogatepass"))
    for modality, features_NE in features:
        array = np.ascontiguousarray(features_NE, np.float32)
        digest.update(f"\0{modality} {array.shape}".encode())
        digest.update(array.tobytes())
    return int.from_bytes(digest.digest()[:7], "big")


def feature_of(item: Question) -> Feature | None:
    """A question's medium; None without one. Raises ValueError for a modality that there is none of."""
    if item.features_NE is None:
        return None
    if item.modality not in MEDIA:
        raise ValueError(f"question {item.text[:60]!r} has features of the modality {item.modality!r}: use {', '.join(MEDIA)}")
    return item.modality, item.features_NE


def shared_media(features: Sequence[Feature | None], said: Sequence[Said]) -> tuple[list[Feature | None], list[Feature | None]]:
    """(media that stand in their rows' prefixes, media that stand among the words of the only question of their rows); said: a question of each row."""
    before_them = [independent([turn]) for turn in said]
    pairs = list(zip(features, before_them, strict=True))
    return [feature if first else None for feature, first in pairs], [None if first else feature for feature, first in pairs]


def media_batches(rows: Sequence[Feature | list[Feature] | None]) -> dict[str, MediaBatch]:
    """Features of packed rows (none, one or several each), by modality, in row order."""
    flat = [(b, *feature) for b, row in enumerate(rows) if row is not None for feature in (row if isinstance(row, list) else [row])]
    found = {}
    for modality in MEDIA:
        own = [(b, array) for b, other, array in flat if other == modality]
        if not own:
            continue
        features_BNE = torch.zeros(len(own), max(len(array) for _, array in own), own[0][1].shape[1])
        for i, (_, array) in enumerate(own):
            features_BNE[i, : len(array)] = torch.from_numpy(np.asarray(array, np.float32))
        found[modality] = MediaBatch(
            features_BNE=features_BNE,
            lengths_B=torch.tensor([len(array) for _, array in own]),
            rows_B=torch.tensor([b for b, _ in own]),
        )
    return found
