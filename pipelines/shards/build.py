"""Build of one shard: some manifest rows -> a store entry with shard.tar, index, ledger and quarantine.

Owns the bytes of a shard, which depend on the rows, the media and the config alone: members in row order, fixed header fields, no times.
Every row ends in the ledger: written, quarantined (bytes kept in quarantine/) or failed (no bytes). The original bytes of media are never touched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.entries import commit_entry, read_entry
from infra.fingerprint import canonical_json
from infra.secrets import shown_address, without_secrets
from infra.step import AnyloomError, about
from infra.storage import write_parquet
from mmcore.chat.records import says_nothing
from mmcore.media.decode import MediaError, Probe, probe
from mmcore.stores.shards import INDEX_SCHEMA, LEDGER_SCHEMA, content_sha256
from pipelines.shards.address_book import whole_address
from pipelines.shards.download import FetchPolicy
from pipelines.shards.errors import FetchError, as_detail
from pipelines.shards.fetch import fetch_counted
from pipelines.shards.manifest import refusal
from pipelines.shards.tries import EarlierTry

OVERHEAD_BYTES = 4096
"""Room per sample for headers, texts and tables, on the safe side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to build; plain values, so that it can travel to another process."""

    source: str
    number: int
    shard_id: str
    rows: list[dict[str, Any]]
    """Manifest rows."""
    marks: list[list[str]]
    """Per row and input medium: sha256 as planned, or "" when it was not known (remote) or not readable."""
    base: Path
    """Relative uris start here."""
    first: Path
    """Entry of the shard's first try."""
    entry: Path
    """Where the entry is published."""
    staging: Path
    """Scratch directory of this shard on the same file system."""
    policy: FetchPolicy
    earlier: Path | None = None
    """The try before this one, whose written rows are not fetched again."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Address as the manifest shows it -> the whole one, of those with credentials."""
    need_bytes: int
    """Estimate of the entry's size, for the message when the disk is full."""


@dataclass(slots=True)
class _Medium:
    data: bytes
    sha256: str
    found: Probe


@dataclass(slots=True)
class _Sample:
    """What became of a row so far."""

    attempts: int = 0
    media: list[_Medium] = field(default_factory=list)
    status: str = "written"
    reason: str = ""
    detail: str = ""
    bad: bytes | None = None


class TarWriter:
    """Plain ustar with fixed header fields; tells the offset of every member's bytes."""

    def __init__(self, path: Path):
        self._file = open(path, "wb")
        self._at = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its first byte."""
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.mtime = len(data), 0o644, 0
        offset = self._at + self._write(header.tobuf(tarfile.USTAR_FORMAT))
        self._at = offset + self._write(data) + self._write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, data: bytes) -> int:
        return self._file.write(data)

    def finish(self) -> None:
        """End-of-archive blocks, then everything to the disk."""
        self._write(b"\0" * (-(self._at + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file, finished or not."""
        self._file.close()


def build_shard(task: ShardTask) -> str:
    """Make and commit one shard; returns its digest, "" for another try that got no more than the earlier one.
    Raises AnyloomError when the disk is full or a medium changed meanwhile."""
    shutil.rmtree(task.staging, ignore_errors=True)
    try:
        task.staging.mkdir(parents=True)
        counts = _write_shard(task)
        if task.earlier is not None and counts["written"] == (read_entry(task.earlier) or {}).get("written"):
            return ""
        return commit_entry(task.entry, task.staging, {"source": task.source, "number": task.number, **counts})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise full_disk(task.shard_id, task.need_bytes, task.staging) from error
    finally:
        shutil.rmtree(task.staging, ignore_errors=True)


def full_disk(what: str, need_bytes: int, place: Path) -> AnyloomError:
    """The one line for a disk without room."""
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return AnyloomError(
        f"no space left for {what}: about {need_bytes / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free on the disk of {place}; "
        "free some space or choose another --root, then run the same command again (finished shards are kept)"
    )


def _write_shard(task: ShardTask) -> dict[str, int]:
    tar, earlier = TarWriter(task.staging / "shard.tar"), EarlierTry(task.earlier)
    index: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    try:
        for row, marks in zip(task.rows, task.marks, strict=True):
            with about(row["key"]):
                sample = _prepare(row, marks, task, earlier.media(row["key"]))
            if sample.status == "written":
                index.append(_add_sample(tar, row, sample, f"shards/{task.source}/{task.shard_id}/shard.tar"))
            elif sample.bad is not None:
                (task.staging / "quarantine").mkdir(exist_ok=True)
                (task.staging / "quarantine" / row["key"]).write_bytes(sample.bad)
            ledger.append(
                {"key": row["key"], "status": sample.status, "reason": sample.reason, "detail": as_detail(sample.detail), "attempts": sample.attempts}
            )
        tar.finish()
    finally:
        tar.close()
        earlier.close()
    write_parquet(pa.Table.from_pylist(index, INDEX_SCHEMA), task.staging / "index.parquet")
    write_parquet(pa.Table.from_pylist(ledger, LEDGER_SCHEMA), task.staging / "ledger.parquet")
    counts = {status: sum(line["status"] == status for line in ledger) for status in ("written", "quarantined", "failed")}
    if len(task.rows) != sum(counts.values()) or len(index) != counts["written"]:
        raise RuntimeError(f"shard {task.shard_id} lost rows: {len(task.rows)} came, {counts} went")
    return {"rows": len(task.rows), **counts}


def _prepare(row: dict[str, Any], marks: list[str], task: ShardTask, kept: list[bytes] | None) -> _Sample:
    """Fetch and check the input media and the text of one row. Of a record that does not fit nothing is fetched.

    kept: the media, of a row that an earlier try has written.
    """
    sample = _Sample()
    refused = refusal(row["conversations"])
    if refused is not None:
        sample.status, (sample.reason, sample.detail) = "quarantined", refused
        return sample
    inputs = [medium for medium in row["media"] if medium["role"] == "input"]
    for position, (medium, mark) in enumerate(zip(inputs, marks, strict=True)):
        try:
            data, attempts = (kept[position], 1) if kept is not None else fetch_counted(whole_address(medium["uri"], task.addresses), task.base, task.policy)
        except FetchError as error:
            sample.status, sample.reason, sample.detail = "failed", error.reason, without_secrets(error.detail)
            sample.attempts = max(sample.attempts, error.attempts)
            return sample
        sample.attempts = max(sample.attempts, attempts)
        digest = hashlib.sha256(data).hexdigest()
        if mark and mark != digest:
            raise AnyloomError(f"{shown_address(medium['uri'])} (sample {row['key']}) changed while shards were built: run the same command again")
        try:
            found = probe(data, medium["modality"])
            if (medium["start_s"] or 0.0) >= found.duration_s > 0:
                raise MediaError("decode", f"the span starts at {medium['start_s']:g} s, the file lasts {found.duration_s:g} s")
            sample.media.append(_Medium(data, digest, found))
        except MediaError as error:
            sample.status, sample.reason, sample.detail, sample.bad = "quarantined", error.reason, error.detail, data
            return sample
    if all(says_nothing(text) for text in row["texts"]) and row["conversations"] == "[]":
        sample.status, sample.reason, sample.detail = "quarantined", "empty_text", "neither a text nor a conversation"
        sample.bad = sample.media[0].data if sample.media else None
    return sample


def _add_sample(tar: TarWriter, row: dict[str, Any], sample: _Sample, shard: str) -> dict[str, Any]:
    """Write the members of one sample, side by side; returns its index row."""
    key = row["key"]
    described: list[dict[str, Any]] = []
    names: list[str] = []
    at = iter(sample.media)
    for medium in row["media"]:
        entry = {name: value for name, value in medium.items() if value is not None}
        if medium["role"] == "input":
            stored = next(at)
            names.append(f"{key}.{stored.found.ext}" if not names else f"{key}.{len(names)}.{stored.found.ext}")
            entry |= {
                "member": names[-1],
                "sha256": stored.sha256,
                "bytes": len(stored.data),
                "width": stored.found.width,
                "height": stored.found.height,
                "duration_s": stored.found.duration_s,
            }
        described.append(entry)
    meta = {name: row[name] for name in ("key", "source", "split", "modality", "texts", "licence")}
    conversations = json.loads(row["conversations"])
    text = canonical_json({**meta, "conversations": conversations, "media": described}).encode()
    members = {f"{key}.json": text, f"{key}.txt": "\n".join(row["texts"]).encode(), **{n: m.data for n, m in zip(names, sample.media, strict=True)}}
    offsets = {name: tar.add(name, members[name]) for name in sorted(members)}
    first = sample.media[0] if sample.media else None
    return {
        **{name: row[name] for name in ("key", "source", "split", "modality")},
        "shard": shard,
        "media_member": names[0] if names else "",
        "media_offset": offsets[names[0]] if names else 0,
        "media_bytes": len(first.data) if first else 0,
        "json_offset": offsets[f"{key}.json"],
        "json_bytes": len(text),
        "media_sha256": first.sha256 if first else "",
        **_span(row),
        "width": first.found.width if first else 0,
        "height": first.found.height if first else 0,
        "duration_s": first.found.duration_s if first else 0.0,
        "content_sha256": content_sha256(described, row["texts"], conversations),
        "duplicate_of": "",
    }


def _span(row: dict[str, Any]) -> dict[str, float | None]:
    first: dict[str, Any] = next((medium for medium in row["media"] if medium["role"] == "input"), {})
    return {name: first.get(name) for name in ("start_s", "end_s")}
