"""Plan: which steps are done, and why the others are not. Runs nothing, imports no step.

Walks the DAG from sources to results. A step's fingerprint is known only when the digests of all its inputs are, so
a step behind unfinished work is "waiting". The reason is the field-level difference to the artifact it would replace.
A damaged record is the state of its own step, with the remedy as the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.artifact import ArtifactRecord, all_records, artifact_dir, read_record
from infra.fingerprint import differences, fingerprint, to_plain
from infra.step import AnyloomError, Step
from infra.storage import sha256_file

DONE, PARTIAL, MISSING, STALE, WAITING, DAMAGED = "done", "partial", "missing", "stale", "waiting", "damaged"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One step's state. `record` is set when done; `fingerprint` when all inputs are known."""

    step: Step
    status: str
    reason: str
    fingerprint: str = ""
    record: ArtifactRecord | None = None
    path: Path | None = None


def topological(steps: Iterable[Step]) -> list[Step]:
    """All steps reachable from `steps`, inputs first, in a stable order. Raises ValueError when two steps share a name."""
    order: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.name in order:
            if order[step.name] is not step:
                raise ValueError(f"two steps are called {step.name}")
            return
        for name in step.inputs:
            visit(step.inputs[name])
        order[step.name] = step

    for step in steps:
        visit(step)
    return list(order.values())


def check_files(steps: Iterable[Step]) -> None:
    """Raises AnyloomError when a step below `steps` needs files that are not given, naming all of them."""
    lacking = list(dict.fromkeys(step.needs for step in topological(steps) if step.needs))
    if lacking:
        raise AnyloomError(f"this takes files of your own and downloads none; it lacks {', '.join(lacking)}")


def identity(step: Step, input_digests: Mapping[str, str], source_hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The identity payload of a step whose inputs have these digests; its fingerprint is the hash of this.

    Raises AnyloomError when a source is missing or no file that can be read.
    """
    if source_hashes is None:
        source_hashes = {name: _source_sha256(step, name, path) for name, path in step.sources.items()}
    return {
        "name": step.name,
        "revision": step.revision,
        "config": to_plain(step.config, f"{step.name}.config"),
        "inputs": dict(input_digests),
        "sources": dict(source_hashes),
    }


def _source_sha256(step: Step, name: str, path: Path) -> str:
    try:
        if path.is_file():
            return sha256_file(path)
        problem = "no file" if path.exists() else "missing"
    except OSError as error:  # also a name that no file system takes
        problem = f"not readable ({error.strerror})"
    raise AnyloomError(f"step {step.name}: the source file {path} ({name}) is {problem}; check its path in the recipe, --list, --data, --suite or --weights")


def plan(steps: Iterable[Step], root: Path) -> list[PlanRow]:
    """The state of every step below `steps`, inputs first."""
    rows: dict[str, PlanRow] = {}
    older = all_records(root) if (root / "artifacts").exists() else []
    for step in topological(steps):
        rows[step.name] = _row(step, rows, root, older)
    return list(rows.values())


def pinned_record(step: Step, root: Path) -> tuple[Path, ArtifactRecord]:
    """The artifact that a pinned step stands for. Raises AnyloomError when it is gone."""
    path = artifact_dir(root, step.name, step.pinned)
    record = read_record(path)
    if record is None:
        raise AnyloomError(f"{step.name} is pinned to {path}, which no longer exists; pin another (see `anyloom artifacts`)")
    return path, record


def _row(step: Step, rows: Mapping[str, PlanRow], root: Path, older: list[tuple[Path, ArtifactRecord]]) -> PlanRow:
    if step.pinned:
        path, record = pinned_record(step, root)
        return PlanRow(step=step, status=DONE, reason="pinned", fingerprint=step.pinned, record=record, path=path)
    if step.needs:
        return PlanRow(step=step, status=WAITING, reason=f"needs {step.needs}")
    previous = [record for _, record in older if record.name == step.name]
    waiting = [rows[s.name] for s in step.inputs.values() if rows[s.name].record is None]
    if waiting:
        reason = "for " + ", ".join(dict.fromkeys(row.step.name for row in waiting))
        if previous:  # what is already known to differ is worth saying
            known = differences(previous[-1].payload["config"], to_plain(step.config))
            reason += f"; also {'; '.join(known)}" if known else ""
        return PlanRow(step=step, status=WAITING, reason=reason)
    payload = identity(step, {name: rows[s.name].record.digest for name, s in step.inputs.items()})  # type: ignore[union-attr]
    mark = fingerprint(payload)
    path = artifact_dir(root, step.name, mark)
    try:
        done = read_record(path)
    except AnyloomError as error:
        return PlanRow(step=step, status=DAMAGED, reason=str(error), fingerprint=mark, path=path)
    if done is not None:
        return PlanRow(step=step, status=DONE, reason="", fingerprint=mark, record=done, path=path)
    work = root / "work" / step.name / mark[:12]
    if work.exists() and any(work.iterdir()):
        return PlanRow(step=step, status=PARTIAL, reason="was interrupted; continues from its last checkpoint", fingerprint=mark, path=path)
    if not previous:
        return PlanRow(step=step, status=MISSING, reason="never run", fingerprint=mark, path=path)
    closest = min(reversed(previous), key=lambda r: len(differences(r.payload, payload)))
    reason = "; ".join(differences(closest.payload, payload)[:4])
    return PlanRow(step=step, status=STALE, reason=reason, fingerprint=mark, path=path)
