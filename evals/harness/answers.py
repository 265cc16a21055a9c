"""Answers: what a model said, kept while an evaluation runs.

Owns the records of an answers file (evals.journal keeps them). Input: replies by key. Output: the same replies after a restart, and how often each batch
was begun. Raises TypeError for a record that is no reply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.journal import Lines
from infra.fingerprint import fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One persisted answer."""

    text: str
    caption: str
    num_input_tokens: int
    num_tokens: int
    unread: bool = False
    """There is no answer to judge (mmcore.types.Answer.unread); of a line of earlier versions it is not known."""


class AnswerFile:
    """A journal of batches: a line that names a batch before it is computed, then its answers in one durable write. A batch that lost answers to a kill is
    computed again as a whole.

    path None keeps the answers in memory only.
    """

    def __init__(self, path: Path | None):
        self._lines = Lines(path)
        self.replies: dict[str, Reply] = {}
        self.begun: Counter[str] = Counter()
        """Batch -> how often it was begun, over all runs: more than once only after a kill."""
        for row in self._lines.read():
            if "begun" in row:
                self.begun[row["begun"]] += 1
            else:
                key = row.pop("key")
                self.replies[key] = Reply(**row)

    def begin(self, keys: Sequence[str]) -> None:
        """Note that the batch with these keys is being computed now."""
        batch = fingerprint(list(keys))[:16]
        self.begun[batch] += 1
        self._lines.append([{"begun": batch, "answers": len(keys)}], durable=False)

    def add(self, rows: dict[str, Reply]) -> None:
        """Persist a batch."""
        self._lines.append([dict(sorted({"key": key, **asdict(reply)}.items())) for key, reply in rows.items()])
        self.replies |= rows
