"""Import: result folders of lmms-eval as runs of the history.

Owns the reading of `<date>_results.json` and `<date>_samples_<task>.jsonl`. Input: a folder. Output: runs, named by the bytes they came
from, so that a second import adds nothing. It reads files only, never lmms-eval's code.

What those files do not say, or say wrongly, is not taken from them: `doc_hash` is one constant, `versions` is "Yaml", `lmms_eval_version` names
the commit of whatever repository encloses the installation, `date` is in UTC+8 unless the run said otherwise, and `target` may be the
name of a column. The version is the caller's to say; what was asked is hashed from the prompts. Bytes of media are not in the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeGuard
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from evals.history.database import append
from evals.history.tables import better, file_of, rows_table
from evals.statistics.intervals import Z95
from evals.suites.catalogue import NOT_OF_THE_MODEL
from infra.fingerprint import fingerprint
from infra.step import AnyloomError
from infra.storage import read_json, sha256_file

UNKNOWN = "unknown"
CONDITION = "as_given"
"""Condition of imported rows: the harness was run by somebody else, in a way only its files describe."""
_OF_THE_MACHINE = ("task", "dataset_path", "dataset_name", "dataset_kwargs", "model_specific_generation_kwargs")
_DATED = re.compile(r"^(\d{8}_\d{6})_results\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """One results file."""

    path: Path
    run_id: str
    tasks: tuple[str, ...]
    samples: int
    new: bool
    """False: it was in the history already."""


def import_folder(stores: Path, folder: Path, *, harness_version: str, timezone: str = "Asia/Singapore", name: str = "") -> list[Imported]:
    """Append every results file below `folder`, oldest first.

    harness_version: of lmms-eval, e.g. 0.7.3; "unknown" stores rows that compare with nothing, because scores change between versions.
    timezone: of the dates in the files. name: stands as recipe; by default the model's name.
    Raises AnyloomError when there is nothing to import, naming file and line of what is damaged; what came before it is kept.
    """
    found = sorted((path for path in folder.rglob("*_results.json") if _DATED.match(path.name)), key=lambda path: (path.name, str(path)))
    if not found:
        raise AnyloomError(f"{folder} has no <date>_results.json: give the --output_path of an lmms-eval run")
    if not harness_version:
        raise AnyloomError(
            f"{found[0]} does not say which lmms-eval made it, and scores change between versions: add --harness-version 0.7.3 (as `pip show lmms-eval` "
            "says there), or --harness-version unknown for rows that compare with nothing"
        )
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise AnyloomError(f"--timezone {timezone}: no such time zone; write Asia/Singapore (lmms-eval's default) or UTC") from None
    return [_import_one(stores, path, harness_version, zone, name) for path in found]


def _import_one(stores: Path, path: Path, version: str, zone: ZoneInfo, name: str) -> Imported:
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise AnyloomError(f"{path} has no results: it is not a results file of lmms-eval")
    tasks = {task: values for task, values in results["results"].items() if task in results.get("configs", {})}
    files = {task: path.with_name(path.name.replace("_results.json", f"_samples_{task}.jsonl")) for task in tasks}
    digests = {path.name: sha256_file(path)} | {file.name: sha256_file(file) for file in files.values() if file.exists()}
    run_id = fingerprint(digests)[:16]
    samples = {task: sorted(_read_lines(file), key=lambda sample: str(sample.get("doc_id")).zfill(12)) if file.exists() else [] for task, file in files.items()}
    new = not file_of(stores, "run", run_id).exists()
    if new:
        rows = _rows_of(path, results, tasks, samples, run_id, version, zone, name)
        append(stores, run_id, {table: rows_table(table, of) for table, of in rows.items()})
    return Imported(path=path, run_id=run_id, tasks=tuple(tasks), samples=sum(map(len, samples.values())), new=new)


def _rows_of(
    path: Path,
    results: Mapping[str, Any],
    tasks: Mapping[str, Any],
    samples: Mapping[str, list[dict[str, Any]]],
    run_id: str,
    version: str,
    zone: ZoneInfo,
    name: str,
) -> dict[str, list[dict[str, Any]]]:
    config = results.get("config") or {}
    model = {"model": results.get("model_name") or config.get("model") or "", "model_args": str(config.get("model_args") or "")}
    model_id = fingerprint(model)[:16]
    rows: dict[str, list[dict[str, Any]]] = {"task": [], "metric": [], "sample": []}
    for task, values in tasks.items():
        effective = (results.get("n-samples") or {}).get(task, {}).get("effective")
        if samples[task] and effective is not None and len(samples[task]) != effective:
            raise AnyloomError(f"{path} says {effective} samples of {task}, its samples file has {len(samples[task])} lines: it is incomplete")
        described = _task_row(task, results, samples[task], run_id, version)
        constant = {"run_id": run_id, "task": task, "condition": CONDITION, "history_fingerprint": described["history_fingerprint"]}
        directions = (results.get("higher_is_better") or {}).get(task) or {}
        metrics = _metric_rows(values, effective if effective is not None else len(samples[task]) or None, directions)
        rows["task"].append(described)
        rows["metric"] += [constant | row for row in metrics]
        rows["sample"] += [constant | row for row in _sample_rows(samples[task], results["configs"][task], [row["metric"] for row in metrics])]
    label = name or Path(str(model["model"])).name or UNKNOWN
    rows["model"] = [{"model_id": model_id, "name": label, "parent": model["model_args"]}]
    rows["run"] = [_run_row(path, config, zone) | {"run_id": run_id, "recipe": label, "model_id": model_id, "harness": f"lmms-eval {version}"}]
    return rows


def _run_row(path: Path, config: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """What the file's name and the harness's options say of the run."""
    finished = datetime.strptime(path.name.removesuffix("_results.json"), "%Y%m%d_%H%M%S").replace(tzinfo=zone)
    seeds = [(key.removesuffix("_seed"), config.get(key)) for key in ("random_seed", "numpy_seed", "torch_seed")]
    return {
        "suite": "lmms-eval",
        "seeds": ", ".join(f"{what}={seed}" for what, seed in seeds if seed is not None),
        "evaluated": finished.astimezone(UTC).replace(tzinfo=None),
        "status": "finished",
        "device": str(config.get("device") or ""),
        "artifact": path.name,
        "source": "lmms-eval",
    }


def _task_row(task: str, results: Mapping[str, Any], samples: list[dict[str, Any]], run_id: str, version: str) -> dict[str, Any]:
    """The row of `task`. Without samples, or without a version, its fingerprint is the run's own: it compares with nothing."""
    config = {key: value for key, value in results["configs"][task].items() if key not in _OF_THE_MACHINE}
    given = results.get("config") or {}
    decoding = {"generation_kwargs": config.pop("generation_kwargs", None), "gen_kwargs": given.get("gen_kwargs")}
    decoding |= {key: results.get(key) for key in ("system_instruction_sha", "chat_template_sha", "fewshot_as_multiturn")}
    target = _stated_targets(samples, results["configs"][task])
    row = {
        "task": task,
        "suite": "lmms-eval",
        "task_sha256": _sha(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))),
        "prompt_sha256": _sha(json.dumps([sample.get("input") for sample in samples])) if samples else None,
        "dataset_sha256": _sha(json.dumps([[s.get("doc_id"), s.get("input"), t] for s, t in zip(samples, target, strict=True)])) if samples else None,
        "split": str(results["configs"][task].get("test_split") or ""),
        "harness": f"lmms-eval {version}",
        "scorer": f"lmms-eval {version}",
        "decoding": json.dumps(decoding, sort_keys=True, default=str),
    }
    if version == UNKNOWN or not samples:
        return row | {"n": len(samples) or None, "history_fingerprint": f"unknown:{run_id}:{task}"}
    return row | {"n": len(samples), "history_fingerprint": fingerprint(row)[:12]}


def _metric_rows(values: Mapping[str, Any], n: int | None, directions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `metric`: every `name,filter` with a number; its standard error where the harness has one, with the normal interval around it."""
    rows = []
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if not chosen or re.search(r"_stderr(_clt|_clustered)?$", metric) or not _is_number(value) or metric in NOT_OF_THE_MODEL:
            continue
        clustered = values.get(f"{metric}_stderr_clustered,{chosen}")
        stderr = clustered if _is_number(clustered) else values.get(f"{metric}_stderr,{chosen}")
        direction = directions.get(metric)
        row = {"metric": metric, "filter": chosen, "subgroup": "all", "value": float(value), "n": n, "kind": "score"}
        row["higher_is_better"] = direction if isinstance(direction, bool) else better(metric)
        if _is_number(stderr):
            row |= {"stderr": float(stderr), "stderr_kind": "clustered" if _is_number(clustered) else "harness"}
            row |= {"ci_lo": float(value) - Z95 * float(stderr), "ci_hi": float(value) + Z95 * float(stderr)}
        rows.append(row)
    return rows


def _sample_rows(samples: list[dict[str, Any]], config: Mapping[str, Any], metrics: list[str]) -> list[dict[str, Any]]:
    rows = []
    for sample, target in zip(samples, _stated_targets(samples, config), strict=True):
        said = sample.get("filtered_resps")
        said = said[0] if isinstance(said, list) and said else said
        scored = next((sample[m] for m in metrics if m in sample), None)
        score = scored.get("score") if isinstance(scored, dict) else scored
        index = scored.get("index") if isinstance(scored, dict) else None
        tokens = next((c.get("output_tokens") for c in sample.get("token_counts") or [] if isinstance(c, dict)), None)
        rows.append(
            {
                "doc_key": str(sample.get("doc_id")),
                "doc_sha256": _sha(json.dumps([sample.get("input"), target])),
                "cluster": f"group-{index % 1_000_000}" if isinstance(index, int) else str(sample.get("doc_id")),
                "question": sample.get("input"),
                "target": target,
                "prediction": said if said is None or isinstance(said, str) else json.dumps(said),
                "score": float(score) if _is_number(score) else None,
                "num_tokens": tokens if isinstance(tokens, int) else None,
            }
        )
    return rows


def _stated_targets(samples: list[dict[str, Any]], config: Mapping[str, Any]) -> list[str | None]:
    """The right answers; None for all where every `target` is the bare text of `doc_to_target`, the name of a column that is not there."""
    targets = [sample.get("target") for sample in samples]
    if set(map(str, targets)) == {str(config.get("doc_to_target"))}:
        return [None] * len(samples)
    return [t if t is None or isinstance(t, str) else json.dumps(t) for t in targets]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise AnyloomError(f"{path}, line {number} is damaged ({error.msg}): copy the folder again") from error
                if not isinstance(row, dict):
                    raise AnyloomError(f"{path}, line {number} is no object: it is not a samples file of lmms-eval")
                yield row


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and value == value


def _sha(text: str) -> str:
    return sha256(text.encode()).hexdigest()
