"""ShardSet: reads one generation of the shard store by key, without unpacking a tar.

Owns the schemas of index and ledger and random access to tars by offset. Input: a generation directory (generation.json, index.parquet)
and the stores directory its entries live in; output: media bytes and the key.json of samples. Raises AnyloomError for an entry without a committed record or
with another digest than the generation pins, and for bytes that are not the indexed ones: a medium is compared by its sha256, a key.json by what it says.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.entries import pinned_entries
from infra.step import AnyloomError

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
    "http_other",
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


def content_sha256(media: Sequence[Mapping[str, Any]], texts: Sequence[str], conversations: Sequence[Mapping[str, str]]) -> str:
    """Identity of what a sample says: its media (inputs by `sha256`, outputs by `uri`), spans, texts and conversations."""
    named = [
        [medium["role"], medium["modality"], medium["sha256" if medium["role"] == "input" else "uri"], medium.get("start_s"), medium.get("end_s")]
        for medium in media
    ]
    turns = json.dumps(conversations, sort_keys=True, ensure_ascii=False)
    said = json.dumps([named, list(texts), turns], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()


class ShardSet:
    """All written samples of one generation."""

    def __init__(self, generation_dir: Path, stores: Path):
        """Raises AnyloomError when an entry is missing, uncommitted or not the one that was pinned."""
        self.stores, self._made_by = Path(stores), Path(generation_dir).parent.name
        allowed = set(pinned_entries(Path(generation_dir), self.stores))
        self.index: pa.Table = pq.read_table(Path(generation_dir) / "index.parquet", schema=INDEX_SCHEMA)
        shards = self.index.column("shard").combine_chunks().dictionary_encode()
        foreign = {os.path.dirname(name) for name in shards.dictionary.to_pylist()} - allowed
        if foreign:
            raise AnyloomError(f"the index of {generation_dir} names shards that its generation does not pin: {sorted(foreign)[:3]}; {self._again()}")
        self._descriptors: dict[str, int] = {}
        self._opening = threading.Lock()
        self._metas: dict[str, dict[str, Any]] = {}

    @cached_property
    def _row(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self.index.column("key").to_pylist())}

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        names = (
            *("source", "split", "modality", "shard", "media_offset", "media_bytes", "json_offset", "json_bytes"),
            *("media_sha256", "content_sha256", "duplicate_of"),
        )
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
        """The sample's key.json: key, source, split, modality, texts, conversations, licence, media. Raises AnyloomError when it is not what was indexed."""
        if key not in self._metas:
            i = self._at(key)
            data = self._read(self._columns["shard"][i], self._columns["json_offset"][i], self._columns["json_bytes"][i])
            try:
                meta = json.loads(data)
                same = all(meta[name] == self._columns[name][i] for name in ("source", "split", "modality")) and meta["key"] == key
                same = same and content_sha256(meta["media"], meta["texts"], meta["conversations"]) == self._columns["content_sha256"][i]
            except (ValueError, KeyError, TypeError, AttributeError):
                same = False
            if not same:
                raise self._damaged(i, f"{key}.json")
            self._metas[key] = meta
        return self._metas[key]

    def metas(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """meta of many keys, in their order; read in the order of the tars."""
        wanted = list(keys)
        for key in sorted(wanted, key=self._at):
            self.meta(key)
        return [self._metas[key] for key in wanted]

    def media(self, key: str) -> bytes:
        """The original bytes of the sample's (first) input medium. Raises ValueError when it has none, AnyloomError when they are not what was indexed."""
        i = self._at(key)
        if not self._columns["media_sha256"][i]:
            raise ValueError(f"sample {key} has no input medium")
        data = self._read(self._columns["shard"][i], self._columns["media_offset"][i], self._columns["media_bytes"][i])
        if hashlib.sha256(data).hexdigest() != self._columns["media_sha256"][i]:
            raise self._damaged(i, f"the medium of {key}")
        return data

    def _damaged(self, row: int, what: str) -> AnyloomError:
        return AnyloomError(f"{self.stores / self._columns['shard'][row]}: {what} was changed or damaged; {self._again()}")

    def _again(self) -> str:
        return f"run {self._made_by} again with --force {self._made_by}, then the same command"

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
            try:
                if shard not in self._descriptors:
                    self._descriptors[shard] = os.open(self.stores / shard, os.O_RDONLY | os.O_CLOEXEC)
                data = os.pread(self._descriptors[shard], size, offset)
            except OSError as error:
                raise AnyloomError(f"{self.stores / shard} cannot be read ({error.strerror}); {self._again()}") from error
        if len(data) != size:
            raise AnyloomError(f"{self.stores / shard} ends before byte {offset + size}: the shard is damaged; {self._again()}")
        return data

    def close(self) -> None:
        """Close the tars; they are opened again when needed."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a ShardSet holds open files: send the generation's directory instead")
