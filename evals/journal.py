"""Journal: what a killed run has finished, so that the next one goes on behind it.

Owns files of JSON lines that survive a kill, and one use of them: the results of a fixed list of rows in its order, one line per batch. Input: records
as they come. Output: the whole ones after a restart. Raises OSError where the disk does. What a record means is its writer's business.

A line is JSON, a tab and the CRC-32 of the JSON in hex: what a bit has flipped in is not read, nor what comes behind it.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


class Lines:
    """An append-only file of JSON lines; it is cut off where it is damaged or torn by a kill when it is read. path None keeps nothing."""

    def __init__(self, path: Path | None):
        self.path = path

    def read(self) -> list[Any]:
        """Every whole record, oldest first."""
        if self.path is None or not self.path.exists():
            return []
        records, size = [], 0
        data = self.path.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                records.append(_parsed(line))
            except ValueError as error:
                if line.endswith(b"\n"):
                    logging.getLogger(__name__).warning("%s is damaged behind byte %d (%s): what stood there is made again", self.path, size, error)
                os.truncate(self.path, size)
                break
            size += len(line)
        return records

    def append(self, records: Sequence[Any], durable: bool = True) -> None:
        """One line per record, in one write. durable: on the disk when this returns."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as handle:
            handle.write(b"".join(_line(json.dumps(record).encode()) for record in records))
            handle.flush()
            if durable:
                os.fsync(handle.fileno())


def _line(text: bytes) -> bytes:
    return b"%s\t%08x\n" % (text, zlib.crc32(text))


def _parsed(line: bytes) -> Any:
    """The record of a line; one of earlier versions has no CRC. Raises ValueError for a line that is not what was written."""
    text, tab, _ = line.partition(b"\t")
    if not line.endswith(b"\n") or (tab and line != _line(text)):
        raise ValueError("it is not what was written")
    return json.loads(line if not tab else text)


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
