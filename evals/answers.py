"""Answers: what a model said, kept while an evaluation runs.

Owns an append-only JSON-lines file that survives a kill. Input: replies by key. Output: the same replies after a restart. Refuses to know
what a key stands for and how a reply is scored.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One persisted answer."""

    text: str
    caption: str
    num_input_tokens: int
    num_tokens: int


class AnswerFile:
    """Append-only JSON lines of answers, one flushed and synced write per chunk; a torn last line of a killed run is cut off.

    path None keeps the answers in memory only.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.replies: dict[str, Reply] = {}
        if path is not None and path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(path, len(whole))
            for line in whole.splitlines():
                row = json.loads(line)
                key = row.pop("key")
                self.replies[key] = Reply(**row)

    def add(self, rows: dict[str, Reply]) -> None:
        """Persist a chunk."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps({"key": key, **asdict(reply)}, sort_keys=True) + "\n" for key, reply in rows.items())
            with open(self.path, "ab") as handle:
                handle.write(lines.encode())
                handle.flush()
                os.fsync(handle.fileno())
        self.replies |= rows
