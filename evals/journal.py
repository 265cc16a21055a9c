"""Journal: what a killed run has finished, so that the next one goes on behind it.

Owns files of JSON lines that survive a kill, and one use of them: the results of a fixed list of rows in its order, one line per batch. Input: records
as they come. Output: the whole ones after a restart. Raises OSError where the disk does. What a record means is its writer's business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


class Lines:
    """An append-only file of JSON lines; a torn last line of a killed run is cut off when it is read. path None keeps nothing."""

    def __init__(self, path: Path | None):
        self.path = path

    def read(self) -> list[Any]:
        """Every whole record, oldest first."""
        if self.path is None or not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def append(self, records: Sequence[Any], durable: bool = True) -> None:
        """One line per record, in one write. durable: on the disk when this returns."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as handle:
            handle.write("".join(json.dumps(record) + "\n" for record in records).encode())
            handle.flush()
            if durable:
                os.fsync(handle.fileno())


class Journal:
    """path: a file in a step's work directory. rows: the results so far."""

    def __init__(self, path: Path):
        self._lines = Lines(path)
        self.rows: list[dict[str, Any]] = [row for batch in self._lines.read() for row in batch]

    def missing(self, rows: Sequence[Row], batch: int) -> Iterator[Sequence[Row]]:
        """The batches that have no results yet, always cut at the same places."""
        for start in range(len(self.rows), len(rows), batch):
            yield rows[start : start + batch]

    def add(self, results: list[dict[str, Any]]) -> None:
        """Append the results of one batch, durably."""
        self._lines.append([results])
        self.rows += results
