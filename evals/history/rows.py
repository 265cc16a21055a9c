"""Rows of a run: what the history keeps of the artifacts of one recipe's evaluations.

Owns the run's identity and the reading of metrics.parquet, samples.parquet, parsed.parquet and losses.parquet into the history's tables, and the
history_fingerprint of an evaluation that does not state its own. Input: artifacts. Output: Arrow tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evals.config import HistoryConfig
from evals.evaluation import EVALUATIONS
from evals.history.tables import SCHEMAS, better, doubled, rows_table
from infra.fingerprint import fingerprint
from infra.step import AnyloomError, Artifact
from infra.storage import read_json

_ASKED = ("doc_key", "question_id", "modality", "source", "direction", "key", "media_sha256", "picture", "question", "target", "prompt", "concept")
"""Columns of samples that say what was asked; the others say what came of it."""
_NOT_ASKED = ("model", "stages", "max_lost")
"""Fields of an evaluation's config that say which model and what may be left out, not how it is asked or scored."""
_PART = "loss_"
"""Start of a loss log's columns that hold parts of the loss."""


def run_identity(config: HistoryConfig, inputs: Mapping[str, Artifact]) -> str:
    """The run's name: fingerprint of the recipe, the seeds and the bytes of everything that was evaluated (16 hex digits)."""
    return fingerprint({"recipe": config.recipe, "seeds": config.seeds, "inputs": {name: a.digest for name, a in inputs.items()}})[:16]


def collect(config: HistoryConfig, run_id: str, inputs: Mapping[str, Artifact]) -> dict[str, pa.Table]:
    """The tables of one run, from whichever inputs have metrics, question samples or losses. Raises AnyloomError for files that do not belong together."""
    parts: dict[str, list[pa.Table]] = {name: [] for name in ("metric", "sample", "train_metrics")}
    tasks: list[dict[str, Any]] = []
    for name, artifact in sorted(inputs.items()):
        task = str(artifact.result.get("lmms_task", name.removeprefix("eval_")))
        metrics, samples, losses = (artifact.path / f"{kind}.parquet" for kind in ("metrics", "samples", "losses"))
        if metrics.exists():
            described = describe_task(artifact, task, samples)
            tasks.append(described)
            constant = {"run_id": run_id, "task": task, "history_fingerprint": described["history_fingerprint"]}
            parts["metric"].append(_with_direction(_fitting("metric", pq.read_table(metrics), constant)))
            if samples.exists() and "run_condition" in pq.read_schema(samples).names:
                parts["sample"].append(_told_apart(_samples(_as_read(pq.read_table(samples), artifact), constant), artifact))
        if losses.exists():
            parts["train_metrics"].append(_train_metrics(pq.read_table(losses), {"run_id": run_id, "stage": name}))
    model = _model_row(config, inputs)
    made = {name: pa.concat_tables(tables, promote_options="permissive") if tables else rows_table(name, []) for name, tables in parts.items()}
    return {
        "run": rows_table("run", [_run_row(config, run_id, inputs, model)]),
        "model": rows_table("model", [model] if model else []),
        "task": rows_table("task", list({row["history_fingerprint"]: row for row in tasks}.values())),
        **made,
    }


def describe_task(artifact: Artifact, task: str, samples: Path) -> dict[str, Any]:
    """The row of `task` of an evaluation artifact, with the fingerprint inside which its numbers may be compared.

    The artifact's own `history_fingerprint` counts. Without one it is made of the step's name and revision, its config (but for the
    model's spec) and what the samples say was asked.
    """
    result, payload = artifact.result, _record(artifact.path).get("payload") or {}
    config = {key: value for key, value in (payload.get("config") or {}).items() if key not in _NOT_ASKED}
    row: dict[str, Any] = {key: str(result[key]) for key in ("suite", "task_sha256", "prompt_sha256", "dataset_sha256", "split", "harness") if key in result}
    asked = result.get("questions")  # a number, or one for each of several tasks
    asked = sum(asked.values()) if isinstance(asked, Mapping) else asked
    row |= {"scorer": str(result.get("scorer") or f"{artifact.name} {payload.get('revision', '')}".strip()), "n": asked}
    row["decoding"] = json.dumps(result.get("decoding") or config, sort_keys=True)
    if "dataset_sha256" not in row and samples.exists():
        row["dataset_sha256"] = asked_sha256(samples)
    stated = result.get("history_fingerprint")
    return row | {"task": task, "history_fingerprint": str(stated) if stated else fingerprint(row | {"task": task})[:12]}


def asked_sha256(samples: Path) -> str:
    """Hash of what was asked, in any order: the distinct rows of the columns of `_ASKED` that there are."""
    columns = [name for name in _ASKED if name in pq.read_schema(samples).names]
    rows = {tuple(row.values()) for row in pq.read_table(samples, columns=columns).to_pylist()}
    return fingerprint({"columns": columns, "rows": sorted([[str(value) for value in row] for row in rows])})


def _fitting(name: str, table: pa.Table, constant: Mapping[str, str]) -> pa.Table:
    """The columns that table `name` of the history has, and the constant ones."""
    kept = [column for column in table.column_names if column in SCHEMAS[name].names and column not in constant]
    arrays = [pa.array([value] * len(table), pa.string()) for value in constant.values()]
    return pa.table([*arrays, *(table[column] for column in kept)], names=[*constant, *kept])


def _train_metrics(losses: pa.Table, constant: Mapping[str, str]) -> pa.Table:
    """The columns of a loss log that the history has; every other loss in `parts`, to seven digits."""
    parts_of_steps = []
    for row in losses.to_pylist():
        parts = {name.removeprefix(_PART): float(f"{value:.7g}") for name, value in row.items() if name.startswith(_PART) and value is not None}
        parts_of_steps.append(json.dumps({name: value for name, value in parts.items() if math.isfinite(value)}))
    return _fitting("train_metrics", losses.append_column("parts", pa.array(parts_of_steps, pa.string())), constant)


def _with_direction(metric: pa.Table) -> pa.Table:
    if "higher_is_better" in metric.column_names:
        return metric
    return metric.append_column("higher_is_better", pa.array([better(name) for name in metric["metric"].to_pylist()], pa.bool_()))


def _samples(table: pa.Table, constant: Mapping[str, str]) -> pa.Table:
    names = {"run_condition": "condition", "picture": "image"}
    renamed = table.rename_columns([names.get(name, name) for name in table.column_names])
    if "image" in renamed.column_names and "cluster" not in renamed.column_names:
        renamed = renamed.append_column("cluster", renamed["image"])
    return _fitting("sample", renamed, constant)


def _told_apart(samples: pa.Table, artifact: Artifact) -> pa.Table:
    if again := doubled(samples, "sample"):
        raise AnyloomError(f"{artifact.path / 'samples.parquet'}: {again} samples have the key of another one: run it again (--force {artifact.name})")
    return samples


def _as_read(samples: pa.Table, artifact: Artifact) -> pa.Table:
    """The samples with their clusters and with what our own reading made of each answer, where an evaluation says so beside them (parsed.parquet)."""
    path = artifact.path / "parsed.parquet"
    if not path.exists():
        return samples
    read = pq.read_table(path)
    for column in ("run_condition", "doc_key"):
        if read[column].to_pylist() != samples[column].to_pylist():
            raise AnyloomError(f"{path} is not about the rows of samples.parquet beside it ({column} differs): run it again (--force {artifact.name})")
    for column in ("cluster", "parsed", "parse_status"):
        samples = samples.append_column(column, read[column])
    return samples


def _model_row(config: HistoryConfig, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """The model that was evaluated: the export, by the digest of its bytes. Empty without one."""
    export = inputs.get("export")
    if export is None:
        return {}
    trained = [what for what, _ in config.seeds if what in inputs]
    return {
        "model_id": export.digest[:16],
        "name": config.recipe,
        "checkpoint_sha256": export.digest,
        "parent": f"{export.name}/{export.fingerprint[:12]}",
        "stage": trained[-1] if trained else None,
        "step": inputs[trained[-1]].result.get("steps") if trained else None,
    }


def _run_row(config: HistoryConfig, run_id: str, inputs: Mapping[str, Artifact], model: Mapping[str, Any]) -> dict[str, Any]:
    main = next((inputs[row.step] for row in EVALUATIONS if row.step in inputs), None)
    made = _record(inputs["export"].path).get("provenance") or {} if "export" in inputs else {}
    provenance = _record(main.path).get("provenance") or {} if main else {}
    evaluated = _utc(provenance.get("finished"))
    return {
        "run_id": run_id,
        "recipe": config.recipe,
        "suite": ", ".join(sorted({str(a.result["suite"]) for a in inputs.values() if a.result.get("suite")})),
        "seeds": ", ".join(f"{what}={seed}" for what, seed in config.seeds),
        "model_id": model.get("model_id"),
        "started": evaluated - timedelta(seconds=round(provenance["seconds"])) if evaluated and "seconds" in provenance else None,
        "evaluated": evaluated,
        "exported": _utc(made.get("finished")),
        "status": "finished",
        "git_commit": str(provenance.get("commit", "")),
        "harness": str(main.result.get("harness", "")) if main else "",
        "environment": fingerprint(provenance["packages"])[:16] if "packages" in provenance else None,
        "device": provenance.get("device"),
        "artifact": f"{main.name}/{main.fingerprint[:12]}" if main else "",
        "inputs": json.dumps({name: f"{a.name}/{a.fingerprint[:12]}" for name, a in sorted(inputs.items())}, sort_keys=True),
        "source": "step",
    }


def _record(directory: Path) -> dict[str, Any]:
    path = directory / "artifact.json"
    return dict(read_json(path)) if path.exists() else {}


def _utc(text: str | None) -> datetime | None:
    """A record's time as naive UTC (a TIMESTAMP needs no time zone library); None when the artifact has no record."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None, microsecond=0) if text else None
