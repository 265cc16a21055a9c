"""Materialize: turn a Step into its Artifact, exactly once.

The record on storage decides what is done. Two processes asked for the same step: one works, the other waits and reads.
A killed step continues from its work directory. Nothing is visible before it is complete, and nothing is made from damaged bytes: what a step reads is
compared with its record first.
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

from infra.artifact import ArtifactRecord, Provenance, artifact_dir, as_artifact, read_record, verify, verify_input, write_record
from infra.fingerprint import canonical_json, fingerprint
from infra.garbage import beginning
from infra.lock import exclusive
from infra.plan import identity, pinned_record
from infra.remote import Remote, pull_artifact, push_artifact
from infra.step import AnyloomError, Artifact, Progress, Resources, Step, StepContext, no_progress
from infra.storage import digest_files, digest_of, new_staging, publish_dir, set_aside, sha256_known, tree_bytes, write_atomic

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
    used: Callable[[Path], None] = lambda _: None,
) -> Outcome:
    """The artifact of `step`, made if it does not exist.

    inputs: artifacts of step.inputs by name. force: run even if it exists; equal bytes keep the old record, other bytes replace it (said
    through `say`) and so make what is downstream run again; what is damaged is replaced. used: told of the artifact while nothing can collect it.
    Raises AnyloomError for what the user can mend.
    """
    started = time.monotonic()
    if set(inputs) != set(step.inputs):
        raise ValueError(f"step {step.name} needs the inputs {sorted(step.inputs)}, got {sorted(inputs)}")
    if step.pinned:
        with beginning(place.root):
            path, record = pinned_record(step, place.root)
            used(path)
        return Outcome(artifact=as_artifact(path, record), status=REUSED, seconds=time.monotonic() - started)
    payload = identity(step, {name: inputs[name].digest for name in step.inputs})
    mark = fingerprint(payload)
    context = StepContext(
        name=step.name,
        config=step.config,
        inputs=dict(inputs),
        sources=dict(step.sources),
        output=artifact_dir(place.root, step.name, mark),
        work=place.root / "work" / step.name / mark[:12],
        stores=place.root / "stores",
        resources=resources,
        progress=progress,
        force=force,
    )
    with exclusive(place.root / "locks" / f"{step.name}-{mark[:12]}.lock", lambda who: say(f"{step.name}: waiting for {who}")):
        outcome = _made(step, context, payload, place, call, say)
        used(context.output)
        if place.remote is not None:
            push_artifact(place.remote, place.root, context.output, say, anew=force)
    return replace(outcome, seconds=time.monotonic() - started)


def _made(step: Step, context: StepContext[Any], payload: dict[str, Any], place: Place, call: Caller, say: Callable[[str], None]) -> Outcome:
    """The artifact `context.output`: what is there, what another machine has made, or what the step makes now. Call with the step's lock held."""
    final, work = context.output, context.work
    with beginning(place.root):
        existing = _existing(final, context.force, say)
        if existing is not None and not context.force:
            return Outcome(artifact=as_artifact(final, existing), status=REUSED, seconds=0)
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work.with_suffix(".json"), canonical_json(payload))
    pulled = pull_artifact(place.remote, place.root, final, fingerprint(payload)) if place.remote is not None and not context.force else None
    if pulled is not None:
        outcome = Outcome(artifact=as_artifact(final, pulled), status=REUSED, seconds=0)
    else:
        outcome = _execute(step, context, payload, call, existing, say)
    shutil.rmtree(work, ignore_errors=True)
    work.with_suffix(".json").unlink(missing_ok=True)
    return outcome


def _execute(
    step: Step, context: StepContext[Any], payload: dict[str, Any], call: Caller, existing: ArtifactRecord | None, say: Callable[[str], None]
) -> Outcome:
    """Run the step into a staging directory and publish it as `context.output`."""
    started = time.monotonic()
    for artifact in context.inputs.values():
        verify_input(artifact)
    staging = new_staging(context.output)
    try:
        result = call(step, replace(context, output=staging))
        seconds = time.monotonic() - started
        record = made_record(step.name, payload, staging, dict(result), context.inputs, seconds, context.resources.threads)
        return _publish(context.output, staging, record, existing, say)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _existing(final: Path, force: bool, say: Callable[[str], None]) -> ArtifactRecord | None:
    """The record of what is there. A damaged one is an error, unless the step is to be made again anyway."""
    try:
        return read_record(final)
    except AnyloomError as error:
        if not force:
            raise
        say(f"{final.parent.name}: {str(error).partition(';')[0]}; it is made again")
        return None


def made_record(
    name: str, payload: dict[str, Any], directory: Path, result: dict[str, Any], inputs: Mapping[str, Artifact], seconds: float, threads: int
) -> ArtifactRecord:
    """The record of the artifact in `directory`. payload: its identity. Raises AnyloomError when the directory went away."""
    return ArtifactRecord(
        name=name,
        fingerprint=fingerprint(payload),
        payload=json.loads(canonical_json(payload)),
        inputs={key: f"{a.name}/{a.fingerprint[:12]}" for key, a in sorted(inputs.items())},
        digest=digest_of(digest_files(directory, sha256=sha256_known)),
        bytes=tree_bytes(directory),
        result=json.loads(canonical_json(result)),
        provenance=provenance(seconds, threads),
    )


def _publish(final: Path, staging: Path, record: ArtifactRecord, existing: ArtifactRecord | None, say: Callable[[str], None]) -> Outcome:
    if existing is not None and existing.digest == record.digest:
        try:
            verify(final, existing)
        except AnyloomError as error:
            say(f"{record.name}: {str(error).partition(';')[0]}; what was made now takes its place")
        else:
            return Outcome(artifact=as_artifact(final, existing), status=SAME_BYTES, seconds=0)
    elif existing is not None:
        say(f"{record.name}: the forced run gave other bytes ({existing.digest[:12]} -> {record.digest[:12]}): what follows runs again")
        final.rename(final.with_name(f".superseded-{final.name}-{existing.digest[:12]}-{time.time_ns()}"))
    write_record(staging, record)
    if final.exists():
        set_aside(final)  # a directory without a whole record is nobody's
    publish_dir(staging, final)
    return Outcome(artifact=as_artifact(final, record), status=EXECUTED, seconds=0)


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
