"""Rot: which bytes below a root are not those that were written.

Owns the round through everything that says what its bytes are: artifacts, the store entries they pin and those that nothing pins, and checkpoints of
unfinished steps. Input: a root. Output: one Looked for each, as it is read to its last byte. Nothing is repaired, and what is damaged stops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.artifact import ARTIFACT_RECORD, read_record, verify
from infra.entries import below, damage, pins, read_entry
from infra.garbage import ENTRIES
from infra.step import AnyloomError
from infra.storage import RECORD, read_json

ARTIFACT, ENTRY, CHECKPOINT = "artifact", "store entry", "checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """One directory that was read."""

    kind: str
    path: Path
    problem: str
    """What is wrong with it; "" when every byte is what was written."""
    artifacts: tuple[Path, ...] = ()
    """Directories of the artifacts whose steps make it again: the artifact itself, or those that pin the entry, finished or still to come."""


def look_at_all(root: Path, name: str | None = None) -> Iterator[Looked]:
    """Artifacts, entries and checkpoints in this order. name: only those of `step` or `step/fingerprint-prefix`, with what they pin."""
    step, _, mark = (name or "").partition("/")
    users: dict[Path, list[tuple[Path, str]]] = {}
    for path in sorted(path.parent for path in (root / "artifacts").glob(f"*/*/{ARTIFACT_RECORD}")):
        if path.name.startswith(".") or (name and (path.parent.name != step or not path.name.startswith(mark[:12]))):
            continue
        problem = _artifact(path)
        try:
            for pin in pins(path):
                users.setdefault(below(root / "stores", pin.path, path), []).append((path, pin.digest))
        except AnyloomError as error:
            problem = problem or str(error)
        yield Looked(kind=ARTIFACT, path=path, problem=problem, artifacts=(path,))
    for path in sorted((root / "work").glob(f"{step or '*'}/*/{ENTRIES}")):
        noted = [below(root / "stores", entry, path) for entry in read_json(path)]
        for entry in (entry for entry in noted if (entry / RECORD).exists()):
            users.setdefault(entry, []).append((root / "artifacts" / path.parent.parent.name / path.parent.name, ""))
    committed = {path.parent for path in (root / "stores").glob(f"**/{RECORD}")} if not name else set()
    for path in sorted(committed | users.keys()):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield _entry(path, users.get(path, []))
    for path in sorted(path.parent for path in (root / "work").glob(f"{step or '*'}/*/**/{RECORD}")):
        if not path.name.startswith("."):
            yield Looked(kind=CHECKPOINT, path=path, problem=damage(path))


def _artifact(path: Path) -> str:
    try:
        record = read_record(path)
        if record is not None:
            verify(path, record)
    except AnyloomError as error:
        return str(error).partition("; run ")[0]
    return ""


def _entry(path: Path, users: list[tuple[Path, str]]) -> Looked:
    """users: the artifacts that pin it, each with the digest it pins ("": whatever it is)."""
    problem = damage(path)
    if problem:
        return Looked(kind=ENTRY, path=path, problem=problem, artifacts=tuple(artifact for artifact, _ in users))
    record = read_entry(path) or {}
    others = tuple(artifact for artifact, digest in users if digest not in ("", record.get("digest")))
    pinned = "" if not others else f"{path} holds other bytes than {others[0].parent.name}/{others[0].name} pins"
    return Looked(kind=ENTRY, path=path, problem=pinned, artifacts=others or tuple(artifact for artifact, _ in users))
