"""Files of lmms-eval: one task of a results file with its samples, checked field by field.

Owns which fields are read and what they may hold. Input: a parsed results file, and the samples files beside it. Output: Task and Sample. Raises AnyloomError
naming file, line and field of what is not as lmms-eval writes it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.history.foreign import Place, as_json, as_text, kind_of, mapping, number, printable, read_lines, whole
from evals.history.tables import better
from evals.statistics.intervals import Z95
from evals.suites.catalogue import NOT_OF_THE_MODEL
from infra.step import AnyloomError

_STDERR = re.compile(r"_stderr(_clt|_clustered)?$")
_NO_NUMBER = ("N/A", "")
"""What lmms-eval writes where it has no number."""
_SAMPLE = ("doc_id", "input", "target", "filtered_resps")
"""Fields that every sample has."""

MAX_TASK_BYTES = 150
"""Longest name of a task; a file of the history is called by it, with more before and behind."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is taken of one line of a samples file."""

    doc_id: int | str
    question: str
    target: Any
    prediction: str | None
    score: float | None
    index: int | None
    """MMBench's: rotations of one question have the same rest by a million."""
    num_tokens: int | None

    @property
    def key(self) -> str:
        """Its name as text; no two samples of a task share it."""
        return str(self.doc_id)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a results file."""

    name: str
    place: Place
    config: Mapping[str, Any]
    metrics: tuple[dict[str, Any], ...]
    """Rows of `metric` without what they have in common."""
    samples: tuple[Sample, ...]


def read_task(path: Path, results: Mapping[str, Any], task: str, digests: dict[str, str]) -> Task:
    """One task with its samples; the digest of its samples file goes to `digests`."""
    place = Place(path, f"task {task}")
    if not as_text(task, place) or "/" in task or "\0" in task:
        raise place.wrong("this is no name of a task")
    if len(task.encode()) > MAX_TASK_BYTES:
        raise place.wrong(f"its name has {len(task.encode())} bytes; that of a task may have {MAX_TASK_BYTES}")
    values, config = (mapping(results[group], task, Place(path, group)) for group in ("results", "configs"))
    counted = mapping(mapping(results, "n-samples", Place(path)), task, Place(path, "n-samples"))
    effective = whole(counted, "effective", place.at("n-samples"))
    directions = mapping(mapping(results, "higher_is_better", Place(path)), task, Place(path, "higher_is_better"))
    metrics = _metric_rows(values, directions, place)
    file = path.with_name(path.name.replace("_results.json", f"_samples_{task}.jsonl"))
    samples: list[Sample] = []
    if os.path.lexists(file):
        digest = hashlib.sha256()
        samples = _samples(file, digest, [row["metric"] for row in metrics])
        digests[file.name] = digest.hexdigest()
        if effective is not None and len(samples) != effective:
            raise AnyloomError(f"{path} says {effective} samples of {printable(task)}, its samples file has {len(samples)} lines: it is incomplete")
    for row in metrics:
        row["n"] = effective if effective is not None else len(samples) or None
    return Task(task, place, config, tuple(metrics), tuple(samples))


def _samples(file: Path, digest: Any, metrics: Sequence[str]) -> list[Sample]:
    """The samples in the order of their documents. Raises AnyloomError for a document that comes twice."""
    found: dict[str, Sample] = {}
    lines: dict[str, str] = {}
    for place, row in read_lines(file, digest):
        sample = _sample(row, place, metrics)
        if sample.key in found:
            raise place.wrong(f"doc_id {sample.key} is that of {lines[sample.key]} too")
        found[sample.key], lines[sample.key] = sample, place.where
    return sorted(found.values(), key=lambda sample: sample.key.zfill(12))


def _sample(row: Mapping[str, Any], place: Place, metrics: Sequence[str]) -> Sample:
    for key in _SAMPLE:
        if key not in row:
            raise place.wrong(f"it has no {key}")
    name = row["doc_id"]
    if not isinstance(name, (int, str)) or isinstance(name, bool) or (isinstance(name, int) and name.bit_length() > 63):
        raise place.wrong(f"doc_id is {kind_of(name)}, neither a number nor a text")
    said = row["filtered_resps"]
    said = said[0] if isinstance(said, list) and said else said
    scored, at = next(((row[metric], place.at(metric)) for metric in metrics if metric in row), (None, place))
    index = scored.get("index") if isinstance(scored, dict) else None
    return Sample(
        doc_id=name if isinstance(name, int) else as_text(name, place.at("doc_id")),
        question=as_text(row["input"], place.at("input")),
        target=row["target"],
        prediction=None if said is None else as_json(said, place.at("filtered_resps")),
        score=number(scored.get("score"), at.at("score")) if isinstance(scored, dict) else number(scored, at),
        index=index if isinstance(index, int) and not isinstance(index, bool) else None,
        num_tokens=_tokens(row, place),
    )


def _tokens(row: Mapping[str, Any], place: Place) -> int | None:
    counts = row.get("token_counts")
    if counts is not None and not isinstance(counts, list):
        raise place.wrong(f"token_counts is {kind_of(counts)}, not a list")
    for count in counts or []:
        if count is not None and not isinstance(count, dict):
            raise place.wrong(f"token_counts holds {kind_of(count)}, not objects")
    return next((whole(count, "output_tokens", place.at("token_counts")) for count in counts or [] if count is not None), None)


def _metric_rows(values: Mapping[str, Any], directions: Mapping[str, Any], place: Place) -> list[dict[str, Any]]:
    """Rows of `metric`: every `name,filter` but for submissions; its standard error where the harness has one, with the normal interval around it."""
    rows = []
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if not chosen or _STDERR.search(metric) or "submission" in metric or metric in NOT_OF_THE_MODEL:
            continue
        as_text(key, place)
        found = number(None if value in _NO_NUMBER else value, place.at(key))
        clustered = _stderr(values, f"{metric}_stderr_clustered,{chosen}", place)
        stderr = clustered if clustered is not None else _stderr(values, f"{metric}_stderr,{chosen}", place)
        direction = directions.get(metric)
        if direction is not None and not isinstance(direction, (bool, dict)):
            raise place.wrong(f"higher_is_better of {metric} is {kind_of(direction)}, neither true nor false")
        row = {"metric": metric, "filter": chosen, "subgroup": "all", "value": found, "kind": "score"}
        row["higher_is_better"] = direction if isinstance(direction, bool) else better(metric)
        if stderr is not None and found is not None:
            row |= {"stderr": stderr, "stderr_kind": "clustered" if clustered is not None else "harness"}
            row |= {"ci_lo": found - Z95 * stderr, "ci_hi": found + Z95 * stderr}
        rows.append(row)
    return rows


def _stderr(values: Mapping[str, Any], key: str, place: Place) -> float | None:
    value = values.get(key)
    found = number(None if value in _NO_NUMBER else value, place.at(key))
    if isinstance(value, bool) or (found is not None and found < 0):
        raise place.at(key).wrong(f"a standard error is not {kind_of(value)}")
    return found
