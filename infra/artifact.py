"""Artifact records: what exists and what it was made from.

A record (`artifact.json`) is written last into `{root}/artifacts/{step}/{fingerprint[:12]}/`; its presence means complete.
It holds the identity payload, the digest of the bytes, result values, provenance and a checksum of itself. Complete artifacts never change.
Input: a root or a directory; output: records. Raises AnyloomError naming the record or the directory that is damaged, with the remedy; what looks at many
records (`look`) names the damaged ones beside the others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.fingerprint import fingerprint
from infra.step import AnyloomError, Artifact
from infra.storage import digest_files, digest_of, read_json, sha256_file, sha256_known, write_atomic

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
    checksum: str = ""
    """Hash of every other field; empty in records of earlier versions."""


def artifact_dir(root: Path, name: str, identity: str) -> Path:
    """Where the artifact of a step with this fingerprint lives."""
    return root / "artifacts" / name / identity[:12]


def _checksum(record: ArtifactRecord) -> str:
    return fingerprint(record.model_dump(exclude={"checksum"}))


def write_record(directory: Path, record: ArtifactRecord) -> None:
    """Write artifact.json, with its checksum, into a directory that is there."""
    sealed = record.model_copy(update={"checksum": _checksum(record)})
    write_atomic(directory / ARTIFACT_RECORD, sealed.model_dump_json(indent=1), make_parent=False)


def read_record(directory: Path) -> ArtifactRecord | None:
    """The record of a complete artifact, None when there is none.

    Raises AnyloomError naming the file when it is damaged, has unknown keys, or its identity does not hash to its fingerprint.
    """
    path = directory / ARTIFACT_RECORD
    try:
        record = ArtifactRecord.model_validate(read_json(path))
        if datetime.fromisoformat(record.provenance.finished).tzinfo is None:
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except AnyloomError as error:
        raise AnyloomError(f"{str(error).partition(': remove its directory')[0]}; {remedy(directory)}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the record"
        raise AnyloomError(f"{path}: {field}: {problem['msg']}; {remedy(directory)}") from None
    except ValueError:
        raise AnyloomError(f"{path}: provenance.finished is no date with its time zone; {remedy(directory)}") from None
    try:
        belongs = fingerprint(record.payload) == record.fingerprint and record.fingerprint.startswith(directory.name.split(".")[0])
        whole = record.checksum in ("", _checksum(record))
    except TypeError as error:
        raise AnyloomError(f"{path} is damaged ({error}); {remedy(directory)}") from None
    if not belongs:
        raise AnyloomError(f"{path}: the fingerprint does not belong to the recorded identity; {remedy(directory)}")
    if not whole:
        raise AnyloomError(f"{path} was changed or damaged: it does not have its own checksum; {remedy(directory)}")
    return record


def remedy(directory: Path) -> str:
    """What to do about a damaged artifact."""
    return f"run {directory.parent.name} again with --force {directory.parent.name}, or remove {directory} and run again"


def verify(directory: Path, record: ArtifactRecord, once: bool = False) -> None:
    """Raises AnyloomError when the bytes on disk are not those of the record. once: a file is read once per process as long as it stays as it is."""
    try:
        found = digest_of(digest_files(directory, sha256=sha256_known if once else sha256_file))
    except OSError as error:
        raise AnyloomError(f"{error.filename or directory} cannot be read ({error.strerror}); {remedy(directory)}") from error
    if found != record.digest:
        raise AnyloomError(f"{directory}: digest {found[:12]} but the record says {record.digest[:12]}: the files were changed or damaged; {remedy(directory)}")


def verify_input(artifact: Artifact) -> None:
    """Look at what a step is about to read. Raises AnyloomError when the artifact was removed, or its files or its record are not what was written.

    Says nothing of a directory that is no artifact of a root.
    """
    if artifact.path.parent.parent.name != "artifacts":
        return
    record = read_record(artifact.path)
    if record is None:
        raise AnyloomError(f"{artifact.path} was removed while it was needed: run the same command again")
    if record.digest != artifact.digest:
        raise AnyloomError(f"{artifact.path} was made anew while it was needed: run the same command again")
    verify(artifact.path, record, once=True)


def refuse_damaged(directory: Path) -> None:
    """Raises AnyloomError when a directory with an artifact's record, where it was made or copied elsewhere, does not hold the bytes that it says. Says
    nothing of one without a record."""
    if (directory / ARTIFACT_RECORD).exists():
        record = read_json(directory / ARTIFACT_RECORD)
        if not isinstance(record, dict) or record.get("digest") != digest_of(digest_files(directory, sha256=sha256_known)):
            raise AnyloomError(f"{directory}: the files were changed or damaged: they are not those of its {ARTIFACT_RECORD}; {remedy(directory)}")


def as_artifact(directory: Path, record: ArtifactRecord) -> Artifact:
    """The record as what steps see."""
    return Artifact(name=record.name, path=directory, fingerprint=record.fingerprint, digest=record.digest, result=record.result)


def look(root: Path) -> tuple[list[tuple[Path, ArtifactRecord]], list[tuple[Path, str]]]:
    """(every complete artifact below `root`, sorted by name, oldest first; every artifact whose record is damaged, with what is wrong and the remedy)."""
    found, damaged = [], []
    for path in sorted((root / "artifacts").glob(f"*/*/{ARTIFACT_RECORD}")):
        if not path.parent.name.startswith("."):
            try:
                record = read_record(path.parent)
            except AnyloomError as error:
                damaged.append((path.parent, str(error)))
                continue
            if record is not None:
                found.append((path.parent, record))
    return sorted(found, key=lambda item: (item[1].name, item[1].provenance.finished, item[0].name)), damaged


def all_records(root: Path) -> list[tuple[Path, ArtifactRecord]]:
    """Every complete artifact below `root` whose record is whole, sorted by name, oldest first."""
    return look(root)[0]


def find(root: Path, name: str) -> tuple[Path, ArtifactRecord]:
    """The newest artifact called `step` or `step/fingerprint-prefix`. Raises AnyloomError listing what exists, or saying that its record is damaged."""
    step, _, prefix = name.partition("/")
    records, damaged = look(root)
    matches = [item for item in records if item[1].name == step and item[1].fingerprint.startswith(prefix)]
    if not matches:
        for path, problem in damaged:
            if path.parent.name == step and path.name.startswith(prefix[:12]):
                raise AnyloomError(problem)
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
        below, found, state = root / "artifacts" / reference, None, "was removed"
        try:
            found = read_record(below)
        except AnyloomError as error:
            state = f"has a damaged record ({error})"
        children.append(lineage(root, below, found) | {"input": name} if found else {"label": f"{name}: {reference} {state}", "children": []})
    for name, digest in sorted(record.payload.get("sources", {}).items()):
        children.append({"label": f"source file {name} sha256 {digest[:12]}", "children": []})
    return {"label": f"{record.name}/{directory.name}", "record": record, "path": directory, "children": children}
