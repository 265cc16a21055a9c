"""Batching: which samples a step sees, and how rows become tensors.

Everything is a pure function of (seed, step): the order of a dataset is a seeded permutation per epoch, the mixture assigns every
sample slot of the run to a dataset, and an image's questions are dealt from a seeded permutation of their own. Rows (packs) are formed
in the global order and only then split over ranks, so the world size changes nothing but rounding.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from mmcore.chat.places import spelled
from mmcore.types import IGNORE, PADDING, Batch, MediaBatch, Said, Sample, TokenRow

T = TypeVar("T")
_GOLDEN = 0.6180339887498949
YES_NO = ("yes", "no")


def _generator(*parts: object) -> np.random.Generator:
    """A generator seeded by the text of its parts: stable over processes and versions of Python."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[:16], np.uint32))


def epoch_order(num: int, seed: int, epoch: int, name: str = "") -> np.ndarray:
    """The seeded order [num] in which a dataset's samples are visited in an epoch."""
    return _generator("order", name, seed, epoch).permutation(num)


def deal(items: Sequence[T], count: int, seed: int, key: str, visit: int) -> list[T]:
    """The `count` items a sample shows on its visit-th visit (from 0): dealt round and round in one seeded order. So all come up equally often, none twice
    before all the others have come up, and none on two visits in a row where there are enough others.

    Fewer than `count` items: all of them.
    """
    if len(items) <= count:
        return list(items)
    order = _generator("deal", key, seed, 0).permutation(len(items))
    return [items[int(order[place % len(items)])] for place in range(visit * count, (visit + 1) * count)]


def deal_questions(pairs: Sequence[tuple[Said, Said]], count: int, seed: int, key: str, visit: int) -> list[tuple[Said, Said]]:
    """The (question, answer)s a sample shows on a visit: `count` of its distinct questions; one with several answers takes them in turn."""
    answers: dict[Said, dict[Said, None]] = {}
    for question, answer in pairs:
        answers.setdefault(question, {})[answer] = None
    if len(answers) == len(pairs):
        return deal(pairs, count, seed, key, visit)
    shown = deal(list(answers), count, seed, key, visit)
    times = [(visit * count + place) // len(answers) if len(answers) > count else visit for place in range(len(shown))]  # it has come up before
    return [(question, list(answers[question])[time % len(answers[question])]) for question, time in zip(shown, times, strict=True)]


def coin(share: float, seed: int, key: str, visit: int) -> bool:
    """True for a seeded `share` of all (sample, visit)."""
    return share > 0 and bool(_generator("coin", key, seed, visit).random() < share)


@dataclass(frozen=True, slots=True)
class Slot:
    """One sample of the run."""

    dataset: str
    index: int
    """Row of the dataset."""
    visit: int
    """Epoch of the dataset: how often each of its samples has been visited before."""


class Schedule:
    """Assigns the run's sample slots to datasets and rows.

    sizes: dataset -> samples; mixture: (dataset, weight). Slots follow a golden-ratio sequence, so that any stretch of the run holds
    each dataset in its share. Raises ValueError for a dataset that is unknown or empty, or weights that are not positive.
    """

    def __init__(self, sizes: Mapping[str, int], mixture: Sequence[tuple[str, float]], num_slots: int, seed: int):
        if not mixture:
            raise ValueError("the mixture is empty: name at least one dataset and its weight")
        for name, weight in mixture:
            if not weight > 0:
                raise ValueError(f"the mixture gives {name} the weight {weight}: it must be positive")
            if not sizes.get(name):
                raise ValueError(f"the mixture names {name}, which has no samples here; datasets: {', '.join(sorted(sizes)) or 'none'}")
        self._names = [name for name, _ in mixture]
        self._sizes, self._seed = {name: sizes[name] for name in self._names}, seed
        edges = np.cumsum([weight for _, weight in mixture])
        points = (np.arange(num_slots) * _GOLDEN + _generator("mixture", seed).random()) % 1.0
        self._dataset = np.minimum(np.searchsorted(edges / edges[-1], points, side="right"), len(mixture) - 1)
        self._ordinal = np.zeros(num_slots, np.int64)
        for number in range(len(mixture)):
            mine = self._dataset == number
            self._ordinal[mine] = np.arange(int(mine.sum()))
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def slot(self, number: int) -> Slot:
        """The number-th sample of the run."""
        name = self._names[int(self._dataset[number])]
        epoch, place = divmod(int(self._ordinal[number]), self._sizes[name])
        if (name, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != name}
            self._orders[name, epoch] = epoch_order(self._sizes[name], self._seed, epoch, name)
        return Slot(name, int(self._orders[name, epoch][place]), epoch)

    def seen(self, number: int) -> dict[str, int]:
        """Samples drawn of each dataset before slot `number`: the data cursor of a checkpoint."""
        counts = Counter(self._dataset[:number].tolist())
        return {name: counts[i] for i, name in enumerate(self._names)}

    def keys(self, samples: Mapping[str, Sequence[Sample]], numbers: range) -> list[str]:
        """The keys of the samples in these slots."""
        return [samples[slot.dataset][slot.index].key for slot in map(self.slot, numbers)]


def share(num: int, rank: int, world: int) -> range:
    """The contiguous part of `num` ordered rows that a rank takes; sizes differ by one at most."""
    return range(num * rank // world, num * (rank + 1) // world)


def answer_weights(samples: Sequence[Sample]) -> dict[tuple[str, str], float]:
    """(question, yes or no) -> 0.5 / P(answer | question) over the samples' yes/no pairs; anything else weighs 1.

    It takes away what can be answered from the question's wording alone.
    """
    pairs = Counter((spelled(human), gpt) for sample in samples for human, gpt in sample.conversations if isinstance(gpt, str) and says_yes_no(gpt))
    totals: Counter[str] = Counter()
    for (question, _), count in pairs.items():
        totals[question] += count
    return {(question, gpt): 0.5 * totals[question] / count for (question, gpt), count in pairs.items()}


def says_yes_no(answer: Said) -> bool:
    """Whether an answer is yes or no."""
    return isinstance(answer, str) and answer.lower() in YES_NO


def collate(rows: Sequence[TokenRow], media: Mapping[str, tuple[torch.Tensor, torch.Tensor, Sequence[int]]], numbers: Sequence[int] | None = None) -> Batch:
    """Right-pad rows to one batch. media: modality -> (features_BNE, lengths_B, row of each item); numbers: places in the step's global batch."""
    longest = max(len(row.ids) for row in rows)

    def padded(name: str, fill: float, dtype: torch.dtype) -> torch.Tensor:
        table = np.full((len(rows), longest), fill, getattr(rows[0], name).dtype)
        for line, row in zip(table, rows, strict=True):
            line[: len(row.ids)] = getattr(row, name)
        return torch.from_numpy(table).to(dtype)

    return Batch(
        ids_BT=padded("ids", 0, torch.int64),
        targets_BT=padded("targets", IGNORE, torch.int64),
        weights_BT=padded("weights", 0.0, torch.float32),
        segments_BT=padded("segments", PADDING, torch.int64),
        positions_BT=padded("positions", 0, torch.int64),
        groups_BT=padded("groups", 0, torch.int64),
        numbers_B=None if numbers is None else torch.tensor(list(numbers), dtype=torch.int64),
        media={
            modality: MediaBatch(features_BNE=features, lengths_B=lengths, rows_B=torch.tensor(list(numbers), dtype=torch.int64))
            for modality, (features, lengths, numbers) in media.items()
            if len(numbers)
        },
    )
