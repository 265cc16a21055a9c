"""ShardSet: reads one generation of the shard store by key, without unpacking a tar.

Owns the schemas of index and ledger and random access to tars by offset. Input: a generation directory (generation.json, index.parquet)
and the stores directory its entries live in; output: media bytes and the key.json of samples.
An entry without a committed record, or with another digest than the generation pins, is an error.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import read_entry, read_json

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("modality", pa.string()),
        ("shard", pa.string()),
        ("media_member", pa.string()),
        ("media_offset", pa.int64()),
        ("media_bytes", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_bytes", pa.int64()),
        ("media_sha256", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration_s", pa.float64()),
        ("content_sha256", pa.string()),
        ("duplicate_of", pa.string()),
    ]
)
"""shard: the tar's path relative to the stores. Offsets and sizes in bytes inside the tar. start_s, end_s: span of the
medium, null for all of it. width, height: pixels, 0 without an image. duration_s: of the whole file.
content_sha256: hash of media, texts and conversations. duplicate_of: the lower key with the same content, or ""."""

LEDGER_SCHEMA = pa.schema([("key", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("attempts", pa.int32())])
"""status: written, quarantined (its bytes, if any were fetched, are kept beside the tar) or failed (no bytes). reason: "" or one of REASONS."""

REASONS = (
    "missing_file",
    "empty_file",
    "not_media",
    "truncated",
    "decode",
    "too_large",
    "empty_text",
    "http_4xx",
    "http_5xx",
    "timeout",
    "dns",
    "forbidden_address",
    "bad_uri",
    "bad_record",
    "placeholder_count",
    "turn_order",
    "begins_with_answer",
    "ends_with_question",
)


def pinned_entries(generation_dir: Path, stores: Path) -> list[str]:
    """Paths (relative to the stores) of the entries a generation pins. Raises ValueError when one is absent or has other bytes."""
    paths = []
    for entry in read_json(generation_dir / "generation.json")["entries"]:
        record = read_entry(stores / entry["path"])
        if record is None:
            raise ValueError(f"{stores / entry['path']} is missing or was never committed: run the step that makes {generation_dir} again with --force")
        if record["digest"] != entry["digest"]:
            raise ValueError(f"{stores / entry['path']} holds other bytes ({record['digest'][:12]}) than {generation_dir} pins ({entry['digest'][:12]})")
        paths.append(entry["path"])
    return paths


class ShardSet:
    """All written samples of one generation."""

    def __init__(self, generation_dir: Path, stores: Path):
        """Raises ValueError when an entry is missing, uncommitted or not the one that was pinned."""
        self.stores = Path(stores)
        allowed = set(pinned_entries(Path(generation_dir), self.stores))
        self.index: pa.Table = pq.read_table(Path(generation_dir) / "index.parquet", schema=INDEX_SCHEMA)
        shards = self.index.column("shard").combine_chunks().dictionary_encode()
        foreign = {os.path.dirname(name) for name in shards.dictionary.to_pylist()} - allowed
        if foreign:
            raise ValueError(f"the index of {generation_dir} names shards that its generation does not pin: {sorted(foreign)[:3]}")
        self._descriptors: dict[str, int] = {}
        self._opening = threading.Lock()
        self._metas: dict[str, dict[str, Any]] = {}

    @cached_property
    def _row(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self.index.column("key").to_pylist())}

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        names = ("source", "split", "shard", "media_offset", "media_bytes", "json_offset", "json_bytes", "media_sha256", "duplicate_of")
        return {name: self.index.column(name).to_pylist() for name in names}

    def keys(self, source: str | None = None, split: str | None = None, *, duplicates: bool = False) -> list[str]:
        """Keys in the order of the manifest, flagged duplicates left out unless asked for."""
        c = self._columns
        return [
            key
            for key, i in self._row.items()
            if (source is None or c["source"][i] == source) and (split is None or c["split"][i] == split) and (duplicates or not c["duplicate_of"][i])
        ]

    def meta(self, key: str) -> dict[str, Any]:
        """The sample's key.json: key, source, split, modality, texts, conversations, licence, media."""
        if key not in self._metas:
            i = self._at(key)
            self._metas[key] = json.loads(self._read(self._columns["shard"][i], self._columns["json_offset"][i], self._columns["json_bytes"][i]))
        return self._metas[key]

    def metas(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """meta of many keys, in their order; read in the order of the tars."""
        wanted = list(keys)
        for key in sorted(wanted, key=self._at):
            self.meta(key)
        return [self._metas[key] for key in wanted]

    def media(self, key: str) -> bytes:
        """The original bytes of the sample's (first) input medium. Raises ValueError when it has none."""
        i = self._at(key)
        if not self._columns["media_sha256"][i]:
            raise ValueError(f"sample {key} has no input medium")
        return self._read(self._columns["shard"][i], self._columns["media_offset"][i], self._columns["media_bytes"][i])

    def media_sha(self, key: str) -> str:
        """Hex sha256 of media(key); "" for a sample without input media."""
        return str(self._columns["media_sha256"][self._at(key)])

    def __len__(self) -> int:
        return self.index.num_rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def _at(self, key: str) -> int:
        try:
            return self._row[key]
        except KeyError:
            raise ValueError(f"no sample '{key}' in this generation (was it quarantined? see ledger.parquet)") from None

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        with self._opening:  # several threads may decode from one ShardSet
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self.stores / shard, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._descriptors[shard], size, offset)
        if len(data) != size:
            raise ValueError(f"{self.stores / shard} ends before byte {offset + size}: the shard is damaged; remove its directory and run again")
        return data

    def close(self) -> None:
        """Close the tars; they are opened again when needed."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a ShardSet holds open files: send the generation's directory instead")
