"""Garbage: what nothing needs any more, by one notion of what is pinned.

Owns the rules of what stays. Input: a root, the artifacts that its caller keeps, and the notes of builds about the store entries they count on. Output: the
directories that may go, with their sizes. Raises AnyloomError for an artifact that stays and does not say which entries it pins: nothing is guessed.

Pinned are:
- the complete artifacts to keep and everything they were made from, with the store entries that their generation.json lists;
- artifacts whose record is damaged: whoever mends them wants to look at them first;
- unfinished builds (`work/<step>/<fingerprint>`): the work, what it reads, and the store entries it has noted (entries.json);
- running steps, whose lock is held on this machine or was freshly noted by another one: as unfinished builds, and their artifact and staging too;
- live runs: every artifact that one of them has made or met so far;
- staging directories of processes that live;
- the history, and whatever else stands in the stores without a record of its own.

`collecting` keeps steps from beginning, and `beginning` keeps the collector out, while either of them looks at what is there.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from infra.artifact import look
from infra.entries import Pin, inside, pins
from infra.lock import FRESH_S, exclusive, in_use, shared
from infra.step import AnyloomError
from infra.storage import RECORD, read_json, set_aside, tree_bytes, write_atomic

ENTRIES = "entries.json"
"""In a work directory: the store entries that its build counts on, committed or still to come, as paths below the stores."""
HISTORY = "history"
"""Directory of the stores that is never collected."""
RUNS = "runs"
"""Directory of the locks with one lock and one list of artifacts per live run."""
SLOW_REMOVAL_S = 3600.0
"""What was put aside for removal so long ago, nobody is removing any more."""
_STEP_LOCK = re.compile(r"(?P<step>.+)-(?P<mark>[0-9a-f]{12})\.lock")
_STAGING = re.compile(r"\.staging-.+-(?P<pid>\d+)-[0-9a-f]+(?:@(?P<host>.+))?")
_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """What stays below a root."""

    artifacts: frozenset[Path]
    """Directories of artifacts."""
    entries: frozenset[Path]
    """Directories of store entries."""
    running: frozenset[tuple[str, str]]
    """(step, first 12 digits of the fingerprint) of what runs now."""


def collecting(root: Path) -> AbstractContextManager[bool]:
    """Held while garbage is looked for and removed: no step begins meanwhile."""
    return exclusive(root / "locks" / "collecting.lock")


def beginning(root: Path) -> AbstractContextManager[bool]:
    """Held while a step that has its lock says what it counts on: nothing is collected meanwhile. Any number of steps may begin."""
    return shared(root / "locks" / "collecting.lock")


@contextmanager
def live_run(root: Path) -> Iterator[Callable[[Path], None]]:
    """While the body runs, every artifact that it names through the function it gets is pinned: a later step of the run will read it."""
    folder, name, used = root / "locks" / RUNS, uuid.uuid4().hex, set[str]()

    def use(artifact: Path) -> None:
        used.add(artifact.relative_to(root / "artifacts").as_posix())
        write_atomic(folder / f"{name}.json", json.dumps(sorted(used)))

    try:
        with exclusive(folder / f"{name}.lock"):
            yield use
    finally:
        for suffix in (".json", ".lock"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)


def note_entries(work: Path, stores: Path, entries: Iterable[Path]) -> None:
    """Say in a work directory which store entries its build counts on, so that they stay when it is interrupted."""
    write_atomic(work / ENTRIES, json.dumps(sorted({path.relative_to(stores).as_posix() for path in entries})))


def running_steps(root: Path) -> frozenset[tuple[str, str]]:
    """(step, first 12 digits of the fingerprint) of every step that a process works on."""
    locks = [(path, _STEP_LOCK.fullmatch(path.name)) for path in (root / "locks").glob("*.lock")]
    return frozenset((match["step"], match["mark"]) for path, match in locks if match and in_use(path))


def _of_live_runs(root: Path) -> set[Path]:
    """Artifacts that live runs count on."""
    folder = root / "locks" / RUNS
    lists = [path.with_suffix(".json") for path in folder.glob("*.lock") if in_use(path)]
    return {root / "artifacts" / inside(reference, path) for path in lists if path.exists() for reference in read_json(path)}


def pinned(root: Path, keep: Iterable[Path], unfinished: bool = True) -> Pinned:
    """What stays. keep: directories of artifacts; unfinished: False gives up builds that were interrupted and could continue, but not those that run.

    Raises AnyloomError for an artifact that stays and whose generation is damaged.
    """
    found, damaged = look(root)
    records, running = dict(found), running_steps(root)
    builds = [path for path in (root / "work").glob("*/*") if path.is_dir() and (unfinished or (path.parent.name, path.name) in running)]
    by_digest: dict[str, list[Path]] = {}
    for path, record in records.items():
        by_digest.setdefault(record.digest, []).append(path)
    queue = [*keep, *(root / "artifacts" / step / mark for step, mark in running), *_of_live_runs(root)]
    for build in builds:
        identity = build.with_suffix(".json")
        queue += [path for digest in (read_json(identity)["inputs"].values() if identity.exists() else ()) for path in by_digest.get(digest, [])]
    kept: set[Path] = {path for path, _ in damaged}
    while queue:
        path = queue.pop()
        if path in records and path not in kept:
            kept.add(path)
            queue += [root / "artifacts" / reference for reference in records[path].inputs.values()]
    listed = [pin.path for path in kept for pin in _pins(path)]
    listed += [inside(entry, build / ENTRIES) for build in builds if (build / ENTRIES).exists() for entry in read_json(build / ENTRIES)]
    return Pinned(artifacts=frozenset(kept), entries=frozenset(root / "stores" / entry for entry in listed), running=running)


def _pins(path: Path) -> list[Pin]:
    try:
        return pins(path)
    except AnyloomError as error:
        raise AnyloomError(f"nothing is collected, because it is not known what an artifact still needs: {error}") from error


def garbage(root: Path, keep: Iterable[Path], unfinished: bool = True) -> list[tuple[Path, int]]:
    """What nothing pins: artifacts, committed store entries, and what killed processes left beside them. Returns (path, bytes), sorted.

    keep, unfinished: as in `pinned`. Work directories are never among it, but what a killed process left in them is.
    """
    stays, stores = pinned(root, keep, unfinished), root / "stores"
    doomed = [path for path in (root / "artifacts").glob("*/*") if path.is_dir() and path not in stays.artifacts and not _belongs(path, stays.running)]
    committed = [path.parent for path in _below(stores, RECORD)]
    doomed += [path for path in committed if path not in stays.entries and path.relative_to(stores).parts[0] != HISTORY]
    doomed += [path for place in (stores, root / "work", root / "artifacts") for path in _left_behind(place)]
    all_of_them = set(doomed)
    outermost = [path for path in all_of_them if all_of_them.isdisjoint(path.parents)]
    return sorted((path, tree_bytes(path) if path.is_dir() else path.stat().st_size) for path in outermost)


def remove(root: Path, chosen: Iterable[Path], keep: Iterable[Path], unfinished: bool = True) -> int:
    """Remove those of `chosen` that are still garbage, while no step begins. Returns their bytes. keep, unfinished: as in `pinned`."""
    wanted, removed = set(chosen), 0
    with collecting(root):
        for path, size in garbage(root, keep, unfinished):
            if path in wanted:
                set_aside(path)
                removed += size
    return removed


def _left_behind(place: Path) -> Iterator[Path]:
    """Staging directories and temporary files below `place` whose process is gone, and what a removal that was killed has put aside."""
    for path in _below(place, ".removed-*", ".staging-*", ".*.tmp"):
        staging, temporary = _STAGING.fullmatch(path.name), _TEMPORARY.fullmatch(path.name)
        try:
            if path.name.startswith(".removed-"):
                left = path.is_dir() and time.time() - path.stat().st_ctime > SLOW_REMOVAL_S
            elif staging:
                left = path.is_dir() and _dead(path, int(staging["pid"]), staging["host"] or socket.gethostname())
            else:
                left = temporary is not None and path.is_file() and _dead(path, int(temporary["pid"]), socket.gethostname())
        except FileNotFoundError:  # its process has finished with it meanwhile
            continue
        if left:
            yield path


def _below(place: Path, *patterns: str) -> Iterator[Path]:
    """Files and directories at any depth whose names match; what goes away meanwhile is passed over."""
    for folder, folders, files in os.walk(place):
        yield from (Path(folder, name) for name in (*folders, *files) if any(fnmatchcase(name, pattern) for pattern in patterns))


def _dead(path: Path, pid: int, host: str) -> bool:
    """Whether the process that makes this is gone. Of another machine nobody can be asked: there, what was not written to for long is nobody's."""
    written = path.stat().st_mtime
    if host != socket.gethostname():
        return time.time() - written > FRESH_S
    try:
        return psutil.Process(pid).create_time() > written  # another one got its number
    except psutil.NoSuchProcess:
        return True


def _belongs(path: Path, running: frozenset[tuple[str, str]]) -> bool:
    """True for the artifact of a running step, and for the staging directory where it is being made."""
    return any(path.parent.name == step and (path.name == mark or path.name.startswith(f".staging-{mark}-")) for step, mark in running)
