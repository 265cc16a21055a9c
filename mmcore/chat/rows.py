"""Rows: token rows as they are put together, segment by segment.

Owns where targets, weights and groups stand. Input: token ids. Output: a TokenRow, and the Turns of a conversation. Raises ValueError for a target that nothing
predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcore.types import IGNORE, Said, TokenRow


class RowBuilder:
    """Appends tokens to a row. Targets stand at the position that predicts them."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._targets: list[int] = []
        self._weights: list[float] = []
        self._segments: list[int] = []
        self._positions: list[int] = []
        self._groups: list[int] = []
        self._ends: dict[int, int] = {}  # segment -> index of its last token
        self._prefix = 0

    def add(self, ids: Sequence[int], segment: int, weight: float | None = None, group: int = 0) -> None:
        """Append tokens to a segment; with a weight they are targets. Raises ValueError for a target at a segment's first token."""
        for token in ids:
            before = self._ends.get(segment)
            if weight is not None:
                if before is None:
                    raise ValueError("the first token of a segment cannot be a target")
                self._targets[before], self._weights[before], self._groups[before] = token, weight, group
            position = self._prefix if before is None else self._positions[before] + 1
            self._ends[segment] = len(self._ids)
            self._ids.append(token)
            self._targets.append(IGNORE)
            self._weights.append(0.0)
            self._segments.append(segment)
            self._positions.append(position)
            self._groups.append(0)
            if segment == 0:
                self._prefix += 1

    def expect(self, token: int, segment: int, weight: float, group: int = 0) -> None:
        """A target after a segment's last token that is no token of the row: what follows there, if anything does, is no answer."""
        before = self._ends[segment]
        self._targets[before], self._weights[before], self._groups[before] = token, weight, group

    def row(self) -> TokenRow:
        """The finished row."""
        return TokenRow(
            ids=np.array(self._ids, np.int64),
            targets=np.array(self._targets, np.int64),
            weights=np.array(self._weights, np.float32),
            segments=np.array(self._segments, np.int64),
            positions=np.array(self._positions, np.int64),
            groups=np.array(self._groups, np.int64),
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer, as a segment."""

    question: Said
    answer: Said
    weight: float = 1.0
    """Weight of every target token of the answer."""
    group: int = 0
    """Loss part the answer is logged under."""
