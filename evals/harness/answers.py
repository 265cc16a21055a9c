"""Answers: what a model said, kept while an evaluation runs.

Owns an append-only JSON-lines file that survives a kill. Input: replies by key. Output: the same replies after a restart, and how often
each batch was begun. Refuses to know what a key stands for and how a reply is scored.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.fingerprint import fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One persisted answer."""

    text: str
    caption: str
    num_input_tokens: int
    num_tokens: int


class AnswerFile:
    """Append-only JSON lines: one that names a batch before it is computed, then its answers in one flushed and synced write. A torn last line of a killed
    run is cut off, and a batch that lost answers to it is computed again as a whole.

    path None keeps the answers in memory only.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.replies: dict[str, Reply] = {}
        self.begun: Counter[str] = Counter()
        """Batch -> how often it was begun, over all runs: more than once only after a kill."""
        if path is not None and path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(path, len(whole))
            for line in whole.splitlines():
                row = json.loads(line)
                if "begun" in row:
                    self.begun[row["begun"]] += 1
                else:
                    key = row.pop("key")
                    self.replies[key] = Reply(**row)

    def begin(self, keys: Sequence[str]) -> None:
        """Note that the batch with these keys is being computed now."""
        batch = fingerprint(list(keys))[:16]
        self.begun[batch] += 1
        self._append(json.dumps({"begun": batch, "answers": len(keys)}) + "\n", sync=False)

    def add(self, rows: dict[str, Reply]) -> None:
        """Persist a batch."""
        self._append("".join(json.dumps({"key": key, **asdict(reply)}, sort_keys=True) + "\n" for key, reply in rows.items()), sync=True)
        self.replies |= rows

    def _append(self, lines: str, sync: bool) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as handle:
            handle.write(lines.encode())
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
