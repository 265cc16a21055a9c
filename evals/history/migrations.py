"""Migrations: files of an older history schema, read as today's tables.

Owns one function per step from a version to the next. Input: the tables of one run as an older version wrote them. Output: tables of
today's schema. No file is changed: each is read through these whenever a database is built anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evals.history.tables import OF_RUN, TABLES, VERSION, better, conform, file_of, rows_table, version_of, without_nan
from infra.step import AnyloomError

Tables = dict[str, pa.Table]
OLD_FOLDERS = ("loss",)
"""Folders that older versions wrote and this one does not."""


def read_run(stores: Path, run_id: str) -> Tables:
    """Everything a run's files hold, in today's schema; a table that the run has no file of is left out.

    Raises AnyloomError for a damaged file or one of a newer schema.
    """
    version = version_of(file_of(stores, "run", run_id))
    tables = {}
    for name in (*OF_RUN, *OLD_FOLDERS):
        path = file_of(stores, name, run_id)
        if path.exists():
            try:
                tables[name] = pq.ParquetFile(path).read(use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise AnyloomError(
                    f"{path} is damaged ({str(error).splitlines()[0]}): restore it from a copy, or remove the run's files to accept the loss"
                ) from error
    for step in range(version, VERSION):
        tables = MIGRATIONS[step](tables)
    return {name: conform(name, tables[name]) for name in TABLES if name in tables}


def from_1(tables: Tables) -> Tables:
    """Version 1 had four tables (run, metric, sample, loss) and one fingerprint per run, that of the run's main task.

    Rows of its other tasks get a fingerprint of their own (`unknown:<run>`): what they were scored with is not known, so they compare with nothing.
    """
    (run,) = tables["run"].to_pylist()
    main, unknown = run.pop("lmms_task", None) or "", f"unknown:{run['run_id']}"
    stated = run.pop("history_fingerprint", None) or unknown
    hashes = {name: run.pop(name, None) or None for name in ("task_sha256", "dataset_sha256")}
    export = json.loads(run.get("inputs") or "{}").get("export")
    made: Tables = {"run": rows_table("run", [run | {"model_id": export, "status": "finished", "source": "step"}])}
    if export:
        made["model"] = rows_table("model", [{"model_id": export, "name": run.get("recipe"), "parent": export, "stage": "export"}])
    if main and stated != unknown:
        made["task"] = rows_table("task", [{"history_fingerprint": stated, "task": main, "harness": run.get("harness")} | hashes])
    metric, sample = tables.get("metric"), tables.get("sample")
    if metric is not None and len(metric):
        names = metric["metric"].to_pylist() if "metric" in metric.column_names else [""] * len(metric)
        directions = pa.array([better(name or "") for name in names], pa.bool_())
        made["metric"] = _fingerprinted(metric, main, stated, unknown).append_column("higher_is_better", directions)
    if sample is not None and len(sample):
        renamed = sample.rename_columns(["condition" if name == "run_condition" else name for name in sample.column_names])
        if "picture" in renamed.column_names:
            renamed = renamed.append_column("cluster", renamed["picture"])
        made["sample"] = _fingerprinted(renamed, main, stated, unknown)
    if "loss" in tables and len(tables["loss"]):
        made["train_metrics"] = tables["loss"]
    return made


def _fingerprinted(table: pa.Table, main: str, stated: str, unknown: str) -> pa.Table:
    tasks = table["task"].to_pylist() if "task" in table.column_names else [None] * len(table)
    return table.append_column("history_fingerprint", pa.array([stated if task and task == main else unknown for task in tasks], pa.string()))


_NEVER_WRITTEN = ("scheduled_for", "flow_run_id")


def from_2(tables: Tables) -> Tables:
    """Version 2 had two columns of `run` that nobody wrote (the table `night` says what they were for), and kept a step's loss without its parts."""
    run = tables["run"]
    return tables | {"run": run.drop_columns([name for name in _NEVER_WRITTEN if name in run.column_names])}


def from_3(tables: Tables) -> Tables:
    """Version 3 had a column of `sample` that nobody read: milliseconds of a group of questions, divided by their number."""
    sample = tables.get("sample")
    return tables if sample is None else tables | {"sample": sample.drop_columns([name for name in ("ms",) if name in sample.column_names])}


def from_4(tables: Tables) -> Tables:
    """Version 4 called the image that a question is about `picture`."""
    sample = tables.get("sample")
    return tables if sample is None else tables | {"sample": sample.rename_columns(["image" if name == "picture" else name for name in sample.column_names])}


def from_5(tables: Tables) -> Tables:
    """Version 5 could hold NaN where there is no number, such as the interval of a metric that has none: null."""
    made = {}
    for name, table in tables.items():
        floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
        for column in floats:
            table = table.set_column(table.schema.get_field_index(column), column, without_nan(table[column]))
        made[name] = table
    return made


MIGRATIONS: dict[int, Callable[[Tables], Tables]] = {1: from_1, 2: from_2, 3: from_3, 4: from_4, 5: from_5}
"""Version -> how its tables become those of the next version."""
