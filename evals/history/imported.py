"""Import: result folders of lmms-eval as runs of the history.

Owns the reading of `<date>_results.json` and `<date>_samples_<task>.jsonl`. Input: a folder. Output: runs, named by the bytes they came
from, so that a second import adds nothing. It reads files only, never lmms-eval's code. Raises AnyloomError naming file, line and field of what is not as
lmms-eval writes it; then nothing of the folder is added.

What those files do not say, or say wrongly, is not taken from them: `doc_hash` is one constant, `versions` is "Yaml", `lmms_eval_version` names
the commit of whatever repository encloses the installation, `date` is in UTC+8 unless the run said otherwise, and `target` may be the
name of a column. The version is the caller's to say; what was asked is hashed from the prompts. Bytes of media are not in the files. A score that is NaN is
stored as NULL, one that is true or false as 1 or 0; `pope_yes_ratio` is left out, because it says nothing about the model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa

from evals.history.database import append
from evals.history.foreign import Place, as_json, as_text, kind_of, mapping, read_record, text
from evals.history.lmms_files import Task, read_task
from evals.history.tables import file_of, rows_table
from infra.fingerprint import fingerprint
from infra.step import AnyloomError

UNKNOWN = "unknown"
CONDITION = "as_given"
"""Condition of imported rows: the harness was run by somebody else, in a way only its files describe."""
_OF_THE_MACHINE = ("task", "dataset_path", "dataset_name", "dataset_kwargs", "model_specific_generation_kwargs")
_DATED = re.compile(r"^(\d{8}_\d{6})_results\.json$", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """One results file."""

    path: Path
    run_id: str
    tasks: tuple[str, ...]
    samples: int
    new: bool
    """False: it was in the history already."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A results file that was read and is right."""

    path: Path
    run_id: str
    tasks: tuple[Task, ...]
    tables: Mapping[str, pa.Table]


def import_folder(stores: Path, folder: Path, *, harness_version: str, timezone: str = "Asia/Singapore", name: str = "") -> list[Imported]:
    """Append every results file below `folder`, oldest first. All are read before any is added.

    harness_version: of lmms-eval, e.g. 0.7.3; "unknown" stores rows that compare with nothing, because scores change between versions.
    timezone: of the dates in the files. name: stands as recipe; by default the model's name.
    Raises AnyloomError when there is nothing to import, naming file, line and field of what is damaged; then nothing is added.
    """
    found = sorted(_results_files(folder), key=lambda path: (path.name, str(path)))
    if not found:
        raise AnyloomError(f"{folder} has no <date>_results.json: give the --output_path of an lmms-eval run")
    if not harness_version:
        raise AnyloomError(
            f"{found[0]} does not say which lmms-eval made it, and scores change between versions: add --harness-version 0.7.3 (as `pip show lmms-eval` "
            "says there), or --harness-version unknown for rows that compare with nothing"
        )
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise AnyloomError(f"--timezone {timezone}: no such time zone; write Asia/Singapore (lmms-eval's default) or UTC") from None
    read = [_read(path, harness_version, zone, name) for path in found]
    return [
        Imported(
            path=one.path,
            run_id=one.run_id,
            tasks=tuple(task.name for task in one.tasks),
            samples=sum(len(task.samples) for task in one.tasks),
            new=not file_of(stores, "run", one.run_id).exists() and append(stores, one.run_id, one.tables),
        )
        for one in read
    ]


def _results_files(folder: Path) -> Iterator[Path]:
    """Everything below the folder that is called like a results file, whatever it is. Links to folders are not followed."""
    if not folder.is_dir():
        raise AnyloomError(f"{folder} has no <date>_results.json: it is no folder; give the --output_path of an lmms-eval run")

    def refuse(error: OSError) -> None:
        raise AnyloomError(f"{error.filename} cannot be read ({error.strerror}): give a folder that you may read") from error

    for below, folders, files in os.walk(folder, onerror=refuse):
        yield from (Path(below, name) for name in (*folders, *files) if _DATED.match(name))


def _read(path: Path, version: str, zone: ZoneInfo, name: str) -> _Read:
    """A results file with its samples, as tables."""
    results, digest = read_record(path)
    place = Place(path)
    if not isinstance(results.get("results"), dict):
        raise AnyloomError(f"{path} has no results: it is not a results file of lmms-eval")
    configs = mapping(results, "configs", place)
    digests, tasks = {path.name: digest}, []
    try:
        for task in (task for task in results["results"] if task in configs):
            tasks.append(read_task(path, results, task, digests))
        if not tasks:
            raise place.wrong("configs describes none of the tasks in results, so nothing says what was asked")
        run_id = fingerprint(digests)[:16]
        rows = _rows_of(path, results, tasks, run_id, version, zone, name)
    except RecursionError as error:
        raise place.wrong("it is nested too deeply: it is none of lmms-eval's") from error
    try:
        return _Read(path, run_id, tuple(tasks), {table: rows_table(table, of) for table, of in rows.items()})
    except AnyloomError as error:
        raise place.wrong(str(error)) from error


def _rows_of(
    path: Path, results: Mapping[str, Any], tasks: Sequence[Task], run_id: str, version: str, zone: ZoneInfo, name: str
) -> dict[str, list[dict[str, Any]]]:
    place = Place(path)
    config = mapping(results, "config", place)
    arguments = config.get("model_args")
    model = {
        "model": text(results, "model_name", place) or text(config, "model", place.at("config")) or "",
        "model_args": as_text(str(arguments or ""), place.at("config, model_args")),
    }
    model_id = fingerprint(model)[:16]
    rows: dict[str, list[dict[str, Any]]] = {"task": [], "metric": [], "sample": []}
    for task in tasks:
        described = _task_row(task, results, config, run_id, version)
        constant = {"run_id": run_id, "task": task.name, "condition": CONDITION, "history_fingerprint": described["history_fingerprint"]}
        rows["task"].append(described)
        rows["metric"] += [constant | row for row in task.metrics]
        rows["sample"] += [constant | row for row in _sample_rows(task)]
    label = name or Path(model["model"]).name or UNKNOWN
    rows["model"] = [{"model_id": model_id, "name": label, "parent": model["model_args"]}]
    rows["run"] = [_run_row(path, config, zone) | {"run_id": run_id, "recipe": label, "model_id": model_id, "harness": f"lmms-eval {version}"}]
    return rows


def _run_row(path: Path, config: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """What the file's name and the harness's options say of the run."""
    place = Place(path, "config")
    try:
        finished = datetime.strptime(path.name.removesuffix("_results.json"), "%Y%m%d_%H%M%S").replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise AnyloomError(f"{path}: its name begins with no date: call it as lmms-eval did, YYYYMMDD_hhmmss_results.json") from error
    seeds = []
    for key in ("random_seed", "numpy_seed", "torch_seed"):
        seed = config.get(key)
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed.bit_length() > 64):
            raise place.wrong(f"{key} is {kind_of(seed)}, not a whole number")
        seeds += [f"{key.removesuffix('_seed')}={seed}"] if seed is not None else []
    return {
        "suite": "lmms-eval",
        "seeds": ", ".join(seeds),
        "evaluated": finished.replace(tzinfo=None),
        "status": "finished",
        "device": text(config, "device", place) or "",
        "artifact": path.name,
        "source": "lmms-eval",
    }


def _task_row(task: Task, results: Mapping[str, Any], given: Mapping[str, Any], run_id: str, version: str) -> dict[str, Any]:
    """The row of `task`. Without samples, or without a version, its fingerprint is the run's own: it compares with nothing."""
    config = {key: value for key, value in task.config.items() if key not in _OF_THE_MACHINE}
    decoding = {"generation_kwargs": config.pop("generation_kwargs", None), "gen_kwargs": given.get("gen_kwargs")}
    decoding |= {key: results.get(key) for key in ("system_instruction_sha", "chat_template_sha", "fewshot_as_multiturn")}
    samples, target = task.samples, _stated_targets(task)
    row = {
        "task": task.name,
        "suite": "lmms-eval",
        "task_sha256": _sha(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))),
        "prompt_sha256": _sha(json.dumps([sample.question for sample in samples])) if samples else None,
        "dataset_sha256": _sha(json.dumps([[s.doc_id, s.question, t] for s, t in zip(samples, target, strict=True)])) if samples else None,
        "split": text(task.config, "test_split", task.place.at("configs")) or "",
        "harness": f"lmms-eval {version}",
        "scorer": f"lmms-eval {version}",
        "decoding": json.dumps(decoding, sort_keys=True, default=str),
    }
    if version == UNKNOWN or not samples:
        return row | {"n": len(samples) or None, "history_fingerprint": f"unknown:{run_id}:{task.name}"}
    return row | {"n": len(samples), "history_fingerprint": fingerprint(row)[:12]}


def _sample_rows(task: Task) -> Iterator[dict[str, Any]]:
    for sample, target in zip(task.samples, _stated_targets(task), strict=True):
        yield {
            "doc_key": sample.key,
            "doc_sha256": _sha(json.dumps([sample.question, target])),
            "cluster": sample.key if sample.index is None else f"group-{sample.index % 1_000_000}",
            "question": sample.question,
            "target": target,
            "prediction": sample.prediction,
            "score": sample.score,
            "num_tokens": sample.num_tokens,
        }


def _stated_targets(task: Task) -> list[str | None]:
    """The right answers; None for all where every `target` is the bare text of `doc_to_target`, the name of a column that is not there."""
    targets = [sample.target for sample in task.samples]
    if set(map(str, targets)) == {str(task.config.get("doc_to_target"))}:
        return [None] * len(targets)
    return [None if target is None else as_json(target, task.place.at("target")) for target in targets]


def _sha(text: str) -> str:
    return sha256(text.encode()).hexdigest()
