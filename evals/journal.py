"""Journal: what a killed run has finished, so that the next one goes on behind it.

Owns one file of JSON lines: the results of a fixed list of rows in its order, one line per batch; a torn last line of a killed run is cut off. Refuses to
know what a result means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


class Journal:
    """path: a file in a step's work directory. rows: the results so far."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            os.truncate(path, len(whole))
            self.rows = [row for line in whole.splitlines() for row in json.loads(line)]

    def missing(self, rows: Sequence[Row], batch: int) -> Iterator[Sequence[Row]]:
        """The batches that have no results yet, always cut at the same places."""
        for start in range(len(self.rows), len(rows), batch):
            yield rows[start : start + batch]

    def add(self, results: list[dict[str, Any]]) -> None:
        """Append the results of one batch, durably."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as handle:
            handle.write((json.dumps(results) + "\n").encode())
            handle.flush()
            os.fsync(handle.fileno())
        self.rows += results
