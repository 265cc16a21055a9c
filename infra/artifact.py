"""Artifact records: what exists and what it was made from.

A record (`artifact.json`) is written last into `{root}/artifacts/{step}/{fingerprint[:12]}/`; its presence means complete.
It holds the identity payload, the digest of the bytes, result values and provenance. Complete artifacts never change.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.fingerprint import fingerprint
from infra.step import AnyloomError, Artifact
from infra.storage import digest_tree, read_json

ARTIFACT_RECORD = "artifact.json"


class Provenance(BaseModel):
    """How an artifact came to be; never identity."""

    model_config = ConfigDict(extra="forbid")

    finished: str
    seconds: float
    commit: str
    packages: dict[str, str]
    device: str
    threads: int


class ArtifactRecord(BaseModel):
    """The content of artifact.json; unknown or missing keys are refused."""

    model_config = ConfigDict(extra="forbid")

    name: str
    fingerprint: str
    payload: dict[str, Any]
    """Identity: name, revision, config, inputs (name -> digest), sources (name -> sha256)."""
    inputs: dict[str, str]
    """Input name -> `step/fingerprint12` of the artifact that was read."""
    digest: str
    bytes: int
    result: dict[str, Any]
    provenance: Provenance


def artifact_dir(root: Path, name: str, identity: str) -> Path:
    """Where the artifact of a step with this fingerprint lives."""
    return root / "artifacts" / name / identity[:12]


def read_record(directory: Path) -> ArtifactRecord | None:
    """The record of a complete artifact, None when there is none.

    Raises AnyloomError naming the file when it is damaged, has unknown keys, or its identity does not hash to its fingerprint.
    """
    path = directory / ARTIFACT_RECORD
    try:
        record = ArtifactRecord.model_validate(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the record"
        raise AnyloomError(f"{path}: {field}: {problem['msg']}; remove {directory} and run again") from None
    if fingerprint(record.payload) != record.fingerprint or not record.fingerprint.startswith(directory.name.split(".")[0]):
        raise AnyloomError(f"{path}: the fingerprint does not belong to the recorded identity; remove {directory} and run again")
    return record


def verify(directory: Path, record: ArtifactRecord) -> None:
    """Raises AnyloomError when the bytes on disk are not those of the record."""
    found = digest_tree(directory)
    if found != record.digest:
        raise AnyloomError(
            f"{directory}: digest {found[:12]} but the record says {record.digest[:12]}: the files were changed or damaged; remove {directory} and run again"
        )


def as_artifact(directory: Path, record: ArtifactRecord) -> Artifact:
    """The record as what steps see."""
    return Artifact(name=record.name, path=directory, fingerprint=record.fingerprint, digest=record.digest, result=record.result)


def all_records(root: Path) -> list[tuple[Path, ArtifactRecord]]:
    """Every complete artifact below `root`, sorted by name, oldest first."""
    found = []
    for path in sorted((root / "artifacts").glob(f"*/*/{ARTIFACT_RECORD}")):
        if not path.parent.name.startswith("."):
            record = read_record(path.parent)
            if record is not None:
                found.append((path.parent, record))
    return sorted(found, key=lambda item: (item[1].name, item[1].provenance.finished, item[0].name))


def find(root: Path, name: str) -> tuple[Path, ArtifactRecord]:
    """The newest artifact called `step` or `step/fingerprint-prefix`. Raises AnyloomError listing what exists."""
    step, _, prefix = name.partition("/")
    records = all_records(root)
    matches = [item for item in records if item[1].name == step and item[1].fingerprint.startswith(prefix)]
    if not matches:
        known = ", ".join(sorted({record.name for _, record in records})) or "none yet"
        raise AnyloomError(f"no artifact called {name} below {root}; there are: {known}")
    return matches[-1]


def age(record: ArtifactRecord) -> str:
    """Time since the artifact was finished, for people."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(record.provenance.finished)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def lineage(root: Path, directory: Path, record: ArtifactRecord) -> dict[str, Any]:
    """The tree of artifacts a record was made from, down to source files: {label, children}."""
    children = []
    for name, reference in sorted(record.inputs.items()):
        step, identity = reference.split("/")
        below = root / "artifacts" / step / identity
        found = read_record(below)
        label = f"{name}: {reference} was removed"
        children.append(lineage(root, below, found) | {"input": name} if found else {"label": label, "children": []})
    for name, digest in sorted(record.payload.get("sources", {}).items()):
        children.append({"label": f"source file {name} sha256 {digest[:12]}", "children": []})
    return {"label": f"{record.name}/{directory.name}", "record": record, "path": directory, "children": children}
