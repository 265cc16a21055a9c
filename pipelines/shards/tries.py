"""Tries: what a forced shards step downloads again, and what it keeps of the try before.

Owns the names of a shard's tries and the reading of an earlier one. A failed download is no lasting truth: when the step is forced, a shard with rows whose
download failed, or brought something that is no medium, is built anew under the name `<shard id>-<try>`, from the bytes it has and from new downloads of these
rows. The earlier shard stays as it is, for whoever pins it. Input: store entries; output: entries and bytes. Raises AnyloomError for a damaged ledger.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from infra.entries import intact, read_entry
from mmcore.stores.shards import LEDGER_SCHEMA
from pipelines.shards.fetch import is_remote

DAMAGED = ("empty_file", "not_media", "truncated", "decode")
"""Reasons of a medium that may come whole another time: a server that is busy may answer 200 with a page that says so, or with half a file."""


def latest_try(entry: Path) -> Path:
    """The last committed try of a shard whose first one is `entry`; `entry` itself when there is none."""
    tries = {1: entry}
    for path in entry.parent.glob(f"{entry.name}-*"):
        number = re.fullmatch(r"-([0-9]+)", path.name[len(entry.name) :])
        if number and (path / "record.json").exists():
            tries[int(number[1])] = path
    return tries[max(tries)]


def next_try(first: Path, latest: Path) -> Path:
    """The entry of the try after `latest`."""
    number = 1 if latest == first else int(latest.name[len(first.name) + 1 :])
    return first.with_name(f"{first.name}-{number + 1}")


def ledger_of(entry: Path) -> list[dict[str, Any]]:
    """The ledger rows of a shard. Raises AnyloomError when it is damaged."""
    return pq.read_table(intact(entry, "ledger.parquet"), schema=LEDGER_SCHEMA).to_pylist()


def may_be_had(entry: Path, rows: Iterable[Mapping[str, Any]]) -> bool:
    """True for a committed shard with a row whose media lie elsewhere and did not come, or came as something that is no medium."""
    if read_entry(entry) is None:
        return False
    lost = {line["key"] for line in ledger_of(entry) if line["status"] == "failed" or line["reason"] in DAMAGED}
    return any(row["key"] in lost and any(medium["role"] == "input" and is_remote(medium["uri"]) for medium in row["media"]) for row in rows)


class EarlierTry:
    """The media of a shard's written rows."""

    def __init__(self, entry: Path | None):
        """entry: a committed shard, None for the first try."""
        self._tar = None if entry is None else tarfile.open(entry / "shard.tar")
        self._members = {} if self._tar is None else {member.name: member for member in self._tar}

    def media(self, key: str) -> list[bytes] | None:
        """The bytes of a row's input media, in order; None for a row that was not written."""
        if f"{key}.json" not in self._members:
            return None
        return [self._read(medium["member"]) for medium in json.loads(self._read(f"{key}.json"))["media"] if medium["role"] == "input"]

    def _read(self, name: str) -> bytes:
        file = None if self._tar is None else self._tar.extractfile(self._members[name])
        if file is None:
            raise FileNotFoundError(name)
        with file:
            return file.read()

    def close(self) -> None:
        """Release the file."""
        if self._tar is not None:
            self._tar.close()
