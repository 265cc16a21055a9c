"""Garbage: what nothing needs any more, by one notion of what is pinned.

Owns the rules of what stays. Input: a root, the artifacts that its caller keeps, and the notes of builds about the store entries they count on. Output: the
directories that may go, with their sizes. Raises AnyloomError for a damaged record.

Pinned are:
- the complete artifacts to keep and everything they were made from, with the store entries that their generation.json lists;
- unfinished builds (`work/<step>/<fingerprint>`): the work, what it reads, and the store entries it has noted (entries.json);
- running steps, whose lock is held on this machine or was freshly noted by another one: as unfinished builds, and their artifact and staging too;
- the history, and whatever stands in the stores without a record of its own.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infra.artifact import all_records
from infra.lock import in_use
from infra.storage import RECORD, read_json, tree_bytes, write_atomic

ENTRIES = "entries.json"
"""In a work directory: the store entries that its build counts on, committed or still to come, as paths below the stores."""
HISTORY = "history"
"""Directory of the stores that is never collected."""
_STEP_LOCK = re.compile(r"(?P<step>.+)-(?P<mark>[0-9a-f]{12})\.lock")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """What stays below a root."""

    artifacts: frozenset[Path]
    """Directories of artifacts."""
    entries: frozenset[Path]
    """Directories of store entries."""
    running: frozenset[tuple[str, str]]
    """(step, first 12 digits of the fingerprint) of what runs now."""


def note_entries(work: Path, stores: Path, entries: Iterable[Path]) -> None:
    """Say in a work directory which store entries its build counts on, so that they stay when it is interrupted."""
    write_atomic(work / ENTRIES, json.dumps(sorted({path.relative_to(stores).as_posix() for path in entries})))


def running_steps(root: Path) -> frozenset[tuple[str, str]]:
    """(step, first 12 digits of the fingerprint) of every step that a process works on."""
    locks = [(path, _STEP_LOCK.fullmatch(path.name)) for path in (root / "locks").glob("*.lock")]
    return frozenset((match["step"], match["mark"]) for path, match in locks if match and in_use(path))


def pinned(root: Path, keep: Iterable[Path], unfinished: bool = True) -> Pinned:
    """What stays. keep: directories of artifacts; unfinished: False gives up builds that were interrupted and could continue, but not those that run."""
    records = dict(all_records(root))
    running = running_steps(root)
    builds = [path for path in (root / "work").glob("*/*") if path.is_dir() and (unfinished or (path.parent.name, path.name) in running)]
    by_digest: dict[str, list[Path]] = {}
    for path, record in records.items():
        by_digest.setdefault(record.digest, []).append(path)
    queue = [*keep, *(root / "artifacts" / step / mark for step, mark in running)]
    for build in builds:
        identity = build.with_suffix(".json")
        queue += [path for digest in (read_json(identity)["inputs"].values() if identity.exists() else ()) for path in by_digest.get(digest, [])]
    kept: set[Path] = set()
    while queue:
        path = queue.pop()
        if path in records and path not in kept:
            kept.add(path)
            queue += [root / "artifacts" / reference for reference in records[path].inputs.values()]
    listed = [entry["path"] for path in kept if (path / "generation.json").exists() for entry in read_json(path / "generation.json")["entries"]]
    listed += [entry for build in builds if (build / ENTRIES).exists() for entry in read_json(build / ENTRIES)]
    return Pinned(artifacts=frozenset(kept), entries=frozenset(root / "stores" / entry for entry in listed), running=running)


def garbage(root: Path, keep: Iterable[Path], unfinished: bool = True) -> list[tuple[Path, int]]:
    """What nothing pins: artifacts, committed store entries, and what killed processes left beside them. Returns (path, bytes), sorted.

    keep, unfinished: as in `pinned`. Work directories are never among it.
    """
    stays, stores = pinned(root, keep, unfinished), root / "stores"
    doomed = [path for path in (root / "artifacts").glob("*/*") if path.is_dir() and path not in stays.artifacts and not _belongs(path, stays.running)]
    committed = [path.parent for path in stores.glob(f"**/{RECORD}")]
    doomed += [path for path in committed if path not in stays.entries and path.relative_to(stores).parts[0] != HISTORY]
    if not stays.running:  # a running step may be fetching entries from the remote store
        doomed += [path for path in stores.glob("**/.staging-*") if path.is_dir()]
    return sorted((path, tree_bytes(path)) for path in set(doomed))


def _belongs(path: Path, running: frozenset[tuple[str, str]]) -> bool:
    """True for the artifact of a running step, and for the staging directory where it is being made."""
    return any(path.parent.name == step and (path.name == mark or path.name.startswith(f".staging-{mark}-")) for step, mark in running)


def remove(path: Path) -> None:
    """Delete a directory so that no reader sees half of it: rename first, then remove."""
    aside = path.with_name(f".removed-{path.name}")
    path.rename(aside)
    shutil.rmtree(aside)
