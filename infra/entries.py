"""Entries: the immutable pieces that stores grow by, and the list of them that a generation pins.

Owns how an entry is committed, what its record says, and the check of its bytes. Input: a staging directory; output: a directory with record.json, which
holds the sha256 of every file, the digest of them all and a checksum of itself. Raises AnyloomError naming the file that is damaged, missing or outside
the stores.

A reader asks `intact` for every file that it opens: its bytes are compared with the record once per process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from infra.fingerprint import fingerprint
from infra.step import AnyloomError
from infra.storage import RECORD, digest_files, digest_of, publish_dir, read_json, set_aside, sha256_known, write_atomic

GENERATION = "generation.json"
"""In an artifact: the store entries that it pins."""
REMEDY = "run the step that makes it again with --force (`anyloom artifacts verify` says which)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One line of a generation."""

    path: str
    """The entry's directory, relative to the stores."""
    digest: str


def commit_entry(final: Path, staging: Path, record: Mapping[str, Any]) -> str:
    """Publish a store entry: `record` plus the digests of its files, then the directory, atomically. Returns the digest.

    An entry that is already committed is kept, and must hold the same bytes: entries are immutable. One whose bytes are damaged is replaced.
    Raises AnyloomError for other bytes, and when there is nothing to commit: the staging directory is empty or went away.
    """
    files = digest_files(staging)
    if not files:
        raise AnyloomError(f"{staging} is empty: its files went away while they were written; run the same command again")
    body = {**record, "digest": digest_of(files), "files": files}
    write_atomic(staging / RECORD, json.dumps({**body, "checksum": fingerprint(body)}, sort_keys=True, indent=1), make_parent=False)
    if final.exists() and _replaceable(final, body["digest"]):
        set_aside(final)
    publish_dir(staging, final)
    existing = read_entry(final)
    if existing is None or existing["digest"] != body["digest"]:
        raise AnyloomError(
            f"{final} already holds other bytes than this run made: the work is not reproducible here; remove that directory to use the new bytes"
        )
    return body["digest"]


def _replaceable(final: Path, digest: str) -> bool:
    """True for what makes way for an entry with this digest: a directory without a record is nobody's, and damaged bytes are no entry."""
    try:
        existing = read_entry(final)
    except AnyloomError:  # its record is damaged: what is committed now says what it should have been
        return True
    return existing is None or (existing["digest"] == digest and bool(damage(final)))


def read_entry(path: Path) -> dict[str, Any] | None:
    """The record of a committed store entry, or None when it has none (then it does not exist for a reader). Raises AnyloomError for a damaged record."""
    try:
        record = read_json(path / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except AnyloomError as error:
        raise AnyloomError(f"{str(error).partition(': remove its directory')[0]}: {REMEDY}") from error
    if not isinstance(record, dict) or not isinstance(record.get("digest"), str):
        raise AnyloomError(f"{path / RECORD} has no digest: {REMEDY}")
    if not _whole(record):
        raise AnyloomError(f"{path / RECORD} is damaged (it does not have its own checksum): {REMEDY}")
    return record


def _whole(record: Mapping[str, Any]) -> bool:
    """False when a record is not what was written. Records of earlier versions have no checksum."""
    if "checksum" not in record:
        return "files" not in record
    body = {name: value for name, value in record.items() if name != "checksum"}
    try:
        return bool(record["checksum"] == fingerprint(body) and record["digest"] == digest_of(record["files"]))
    except (TypeError, KeyError, AttributeError):
        return False


def damage(path: Path, digest: str = "") -> str:
    """Why an entry is not what was committed, "" when every byte is. digest: what a generation pins. Reads all of it."""
    try:
        record = read_entry(path)
        if record is None:
            return f"{path} is missing or was never committed"
        if digest and record["digest"] != digest:
            return f"{path} holds other bytes ({record['digest'][:12]}) than are pinned ({digest[:12]})"
        found = digest_files(path)
    except (AnyloomError, OSError) as error:
        return str(error).partition(f": {REMEDY}")[0]
    if digest_of(found) == record["digest"]:
        return ""
    wanted: dict[str, str] = record.get("files", {})
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)) if wanted else []
    return f"{path}: {', '.join(wrong[:3]) or 'a file'} was changed or damaged"


def usable_entry(path: Path, thorough: bool = False) -> dict[str, Any] | None:
    """The record of an entry that need not be made again. thorough: every byte is looked at first, and None is returned for one that is damaged.

    Raises AnyloomError as `read_entry` does, unless thorough.
    """
    return None if thorough and damage(path) else read_entry(path)


def intact(directory: Path, name: str) -> Path:
    """`directory / name`, after its bytes were compared with the entry's record: a file is read for it once per process as long as it stays as it is.

    Raises AnyloomError when it is not what was committed, or the entry has no record.
    """
    path, record = directory / name, read_entry(directory)
    if record is None:
        raise AnyloomError(f"{directory} is missing or was never committed: {REMEDY}")
    try:
        if "files" not in record:  # of an earlier version, which knows the digest of them all
            same = digest_of(digest_files(directory, sha256=sha256_known)) == record["digest"]
        else:
            same = sha256_known(path) == record["files"].get(name)
    except OSError as error:
        raise AnyloomError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error
    if not same:
        raise AnyloomError(f"{path} was changed or damaged: {REMEDY}")
    return path


def pins(artifact_dir: Path) -> list[Pin]:
    """The store entries that an artifact pins, in its order; none for an artifact without a generation.

    Raises AnyloomError for a damaged generation, and for one that names something outside the stores.
    """
    try:
        generation = read_json(artifact_dir / GENERATION)
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = generation.get("entries") if isinstance(generation, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("path"), str) and isinstance(entry.get("digest"), str) for entry in entries
    ):
        raise AnyloomError(f"{artifact_dir / GENERATION} is damaged (no list of entries): {_again(artifact_dir)}")
    return [Pin(path=inside(entry["path"], artifact_dir / GENERATION), digest=entry["digest"]) for entry in entries]


def _again(artifact_dir: Path) -> str:
    step = artifact_dir.parent.name
    return f"run {step} again with --force {step}"


def inside(relative: str, named_by: Path | str) -> str:
    """A relative path with `/` between plain names. Raises AnyloomError for any other: absolute, with `..` or with empty names."""
    parts = PurePosixPath(relative).parts
    if not parts or "/".join(parts) != relative or ".." in parts or "\0" in relative:
        raise AnyloomError(f"{named_by} names {relative!r}, which is no place below its directory: it is refused")
    return relative


def below(base: Path, relative: str, named_by: Path | str) -> Path:
    """`base / relative`, which no symbolic link below `base` leads out of. Raises AnyloomError as `inside` does, and for such a link."""
    path = base / inside(relative, named_by)
    if not path.resolve().is_relative_to(base.resolve()):
        raise AnyloomError(f"{named_by} names {relative}, which a symbolic link leads out of {base}: it is refused")
    return path


def pinned_entries(artifact_dir: Path, stores: Path) -> list[str]:
    """Paths (relative to the stores) of the entries an artifact pins. Raises AnyloomError when one is absent, has a damaged record or other bytes."""
    again = _again(artifact_dir) if artifact_dir.parent.parent.name == "artifacts" else REMEDY
    paths = []
    for pin in pins(artifact_dir):
        entry = below(stores, pin.path, artifact_dir / GENERATION)
        record = read_entry(entry)
        if record is None:
            raise AnyloomError(f"{entry} is missing or was never committed: {again}")
        if record["digest"] != pin.digest:
            raise AnyloomError(f"{entry} holds other bytes ({record['digest'][:12]}) than {artifact_dir} pins ({pin.digest[:12]}): {again}")
        paths.append(pin.path)
    return paths
