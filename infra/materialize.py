"""Materialize: turn a Step into its Artifact, exactly once.

The record on storage decides what is done. Two processes asked for the same step: one works, the other waits and reads.
A killed step continues from its work directory. Nothing is visible before it is complete.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from infra.artifact import ARTIFACT_RECORD, ArtifactRecord, Provenance, artifact_dir, as_artifact, read_record, verify
from infra.fingerprint import canonical_json, fingerprint
from infra.lock import exclusive
from infra.plan import identity, pinned_record
from infra.step import AnyloomError, Artifact, Progress, Resources, Step, StepContext, no_progress
from infra.storage import Remote, digest_tree, new_staging, publish_dir, tree_bytes, write_atomic

EXECUTED, REUSED, SAME_BYTES = "executed", "reused", "same bytes"

Caller = Callable[[Step, StepContext[Any]], Mapping[str, object]]
"""Runs a step's function somewhere (in process, as a Ray task) and returns its values."""


def call_in_process(step: Step, context: StepContext[Any]) -> Mapping[str, object]:
    """The Caller that runs the function here and now."""
    return step.load()(context)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What materialize did."""

    artifact: Artifact
    status: str
    """executed, reused, or same bytes (forced, and nothing changed)."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where artifacts live. `remote`: finished artifacts and the store entries they pin are mirrored there."""

    root: Path
    remote: Remote | None = None


def materialize(
    step: Step,
    inputs: Mapping[str, Artifact],
    place: Place,
    *,
    resources: Resources = Resources(),
    force: bool = False,
    call: Caller = call_in_process,
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """The artifact of `step`, made if it does not exist.

    inputs: artifacts of step.inputs by name. force: run even if it exists; equal bytes keep the old record, other bytes replace it (said
    through `say`) and so make what is downstream run again. Raises AnyloomError for what the user can mend.
    """
    started = time.monotonic()
    if set(inputs) != set(step.inputs):
        raise ValueError(f"step {step.name} needs the inputs {sorted(step.inputs)}, got {sorted(inputs)}")
    if step.pinned:
        return Outcome(artifact=as_artifact(*pinned_record(step, place.root)), status=REUSED, seconds=time.monotonic() - started)
    payload = identity(step, {name: inputs[name].digest for name in step.inputs})
    mark = fingerprint(payload)
    final = artifact_dir(place.root, step.name, mark)
    with exclusive(place.root / "locks" / f"{step.name}-{mark[:12]}.lock", lambda who: say(f"{step.name}: waiting for {who}")):
        existing = read_record(final)
        if existing is None and place.remote is not None:
            existing = _pull(place, final)
        if existing is not None and not force:
            return Outcome(artifact=as_artifact(final, existing), status=REUSED, seconds=time.monotonic() - started)
        work = place.root / "work" / step.name / mark[:12]
        staging = new_staging(final)
        try:
            work.mkdir(parents=True, exist_ok=True)
            write_atomic(work.with_suffix(".json"), canonical_json(payload))
            context = StepContext(
                name=step.name,
                config=step.config,
                inputs=dict(inputs),
                sources=dict(step.sources),
                output=staging,
                work=work,
                stores=place.root / "stores",
                resources=resources,
                progress=progress,
            )
            result = call(step, context)
            record = _record(step, inputs, payload, mark, staging, dict(result), time.monotonic() - started, resources.threads)
            outcome = _publish(place, final, staging, record, existing, say)
        finally:
            if staging.exists():
                shutil.rmtree(staging)
        shutil.rmtree(work, ignore_errors=True)
        work.with_suffix(".json").unlink(missing_ok=True)
    return replace(outcome, seconds=time.monotonic() - started)


def _record(step: Step, inputs: Mapping[str, Artifact], payload: dict, mark: str, staging: Path, result: dict, seconds: float, threads: int) -> ArtifactRecord:
    return ArtifactRecord(
        name=step.name,
        fingerprint=mark,
        payload=json.loads(canonical_json(payload)),
        inputs={name: f"{a.name}/{a.fingerprint[:12]}" for name, a in sorted(inputs.items())},
        digest=digest_tree(staging),
        bytes=tree_bytes(staging),
        result=json.loads(canonical_json(result)),
        provenance=provenance(seconds, threads),
    )


def _publish(place: Place, final: Path, staging: Path, record: ArtifactRecord, existing: ArtifactRecord | None, say: Callable[[str], None]) -> Outcome:
    if existing is not None and existing.digest == record.digest:
        verify(final, existing)
        return Outcome(artifact=as_artifact(final, existing), status=SAME_BYTES, seconds=0)
    if existing is not None:
        say(f"{record.name}: the forced run gave other bytes ({existing.digest[:12]} -> {record.digest[:12]}): what follows runs again")
        final.rename(final.with_name(f".superseded-{final.name}-{existing.digest[:12]}-{time.time_ns()}"))
    write_atomic(staging / ARTIFACT_RECORD, record.model_dump_json(indent=1))
    if final.exists() and read_record(final) is None:
        shutil.rmtree(final)  # a directory without a record is nobody's
    publish_dir(staging, final)
    if place.remote is not None:
        _push(place, final)
    return Outcome(artifact=as_artifact(final, record), status=EXECUTED, seconds=0)


def _push(place: Place, final: Path) -> None:
    """Mirror an artifact and the store entries its generation pins, entries first."""
    assert place.remote is not None
    for entry in _pinned(final):
        if not place.remote.exists(f"stores/{entry}", "record.json"):
            place.remote.push(place.root / "stores" / entry, f"stores/{entry}", "record.json")
    place.remote.push(final, final.relative_to(place.root).as_posix(), ARTIFACT_RECORD)


def _pull(place: Place, final: Path) -> ArtifactRecord | None:
    """Fetch an artifact that another machine finished, and the entries it pins. The remote's cache directory is the root itself."""
    assert place.remote is not None
    relative = final.relative_to(place.root).as_posix()
    if not place.remote.exists(relative, ARTIFACT_RECORD):
        return None
    place.remote.pull(relative, ARTIFACT_RECORD)
    for entry in _pinned(final):
        place.remote.pull(f"stores/{entry}", "record.json")
    record = read_record(final)
    if record is not None:
        verify(final, record)
    return record


def _pinned(directory: Path) -> list[str]:
    path = directory / "generation.json"
    return [entry["path"] for entry in json.loads(path.read_text())["entries"]] if path.exists() else []


@cache
def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):  # not a checkout, or no git: provenance says so
        return "unknown"


def provenance(seconds: float, threads: int) -> Provenance:
    """Commit, package versions, device class and time of this moment."""
    packages = {}
    for name in ("torch", "transformers", "peft", "timm", "ray", "prefect", "lmms-eval", "duckdb", "av", "pillow", "numpy"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "absent"
    return Provenance(
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        commit=_commit(),
        packages=packages,
        device=f"{'cuda' if Path('/proc/driver/nvidia/version').exists() else 'cpu'} host, {platform.machine()}",
        threads=threads,
    )


def load_inputs(step: Step, root: Path, digests: Mapping[str, tuple[Path, ArtifactRecord]]) -> dict[str, Artifact]:
    """Artifacts of step.inputs from already read records (step name -> path, record). Raises AnyloomError when one is missing."""
    found = {}
    for name, source in step.inputs.items():
        if source.name not in digests:
            raise AnyloomError(f"step {step.name} needs {source.name}, which is not complete below {root}: run it first")
        found[name] = as_artifact(*digests[source.name])
    return found
