"""History tables: what is in each table of the history, and the files it is kept in.

Owns the Arrow schemas, the schema version that every file carries, and the rules of what makes a row the same row. Input: Arrow tables.
Output: Arrow tables with exactly the schema's columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evals.history.seals import sealed
from infra.fingerprint import fingerprint
from infra.step import AnyloomError
from infra.storage import write_atomic

VERSION = 6
"""Of the schema; older files are read through evals/history/migrations.py."""
VERSION_KEY = b"anyloom_history"
TEXT, NUMBER, COUNT, TIME, TRUTH = pa.string(), pa.float64(), pa.int64(), pa.timestamp("us"), pa.bool_()

_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "run": dict.fromkeys(("run_id", "recipe", "suite", "seeds", "model_id"), TEXT)
    | dict.fromkeys(("started", "evaluated", "exported"), TIME)
    | dict.fromkeys(("status", "git_commit", "harness", "environment", "device", "artifact", "inputs", "source", "files"), TEXT),
    "model": dict.fromkeys(("model_id", "name", "checkpoint_sha256", "parent", "stage"), TEXT) | {"step": COUNT},
    "task": dict.fromkeys(("history_fingerprint", "task", "suite", "task_sha256", "prompt_sha256", "dataset_sha256", "split"), TEXT)
    | {"n": COUNT}
    | dict.fromkeys(("harness", "scorer", "decoding"), TEXT),
    "metric": dict.fromkeys(("run_id", "task", "condition", "metric", "filter", "subgroup"), TEXT)
    | dict.fromkeys(("value", "ci_lo", "ci_hi"), NUMBER)
    | dict.fromkeys(("n", "clusters"), COUNT)
    | {"stderr": NUMBER, "stderr_kind": TEXT, "kind": TEXT, "higher_is_better": TRUTH, "history_fingerprint": TEXT},
    "sample": dict.fromkeys(("run_id", "task", "condition", "doc_key", "doc_sha256"), TEXT)
    | {"question_id": COUNT}
    | dict.fromkeys(("image", "cluster", "question", "answer_type", "target", "prediction", "parsed", "parse_status", "caption"), TEXT)
    | {"score": NUMBER, "num_tokens": COUNT, "history_fingerprint": TEXT},
    "train_metrics": {"run_id": TEXT, "stage": TEXT, "step": COUNT, "loss": NUMBER, "lr": NUMBER, "tokens": NUMBER, "parts": TEXT},
    "comparison": dict.fromkeys(("comparison_id", "run_a", "run_b", "task", "condition", "metric", "subgroup"), TEXT)
    | dict.fromkeys(("n_paired", "clusters"), COUNT)
    | dict.fromkeys(("value_a", "value_b", "delta", "ci_lo", "ci_hi", "p", "p_adjusted"), NUMBER)
    | {"test": TEXT, "flips_up": COUNT, "flips_down": COUNT, "detectable": NUMBER, "history_fingerprint": TEXT, "made": TIME},
    "change_point": dict.fromkeys(("series_id", "recipe", "task", "condition", "metric", "subgroup", "run_before", "run_at"), TEXT)
    | {"at": TIME, "before": NUMBER, "after": NUMBER, "delta": NUMBER, "p": NUMBER, "history_fingerprint": TEXT},
    "annotation": {"annotation_id": TEXT, "at": TIME} | dict.fromkeys(("recipe", "task", "text", "author"), TEXT),
    "night": dict.fromkeys(("run_id", "flow_run_id"), TEXT) | {"scheduled_for": TIME, "status": TEXT},
}
SCHEMAS = {name: pa.schema(list(columns.items()), metadata={VERSION_KEY: str(VERSION).encode()}) for name, columns in _COLUMNS.items()}
TABLES = tuple(SCHEMAS)
"""Every table of the history."""
OF_RUN = ("train_metrics", "sample", "metric", "run")
"""Tables with one file per run, in the order they are written: `run` last, because a run exists once its row of `run` does."""
STANDING = {
    "model": ("model_id",),
    "task": ("history_fingerprint",),
    "comparison": ("comparison_id",),
    "change_point": ("series_id", "run_at"),
    "annotation": ("annotation_id",),
    "night": ("flow_run_id", "run_id"),
}
"""Tables whose files stand for themselves -> the columns that say which row it is: the same row from two writers counts once."""
ROW_KEYS = {
    "run": ("run_id",),
    "metric": ("run_id", "task", "condition", "metric", "filter", "subgroup", "kind"),
    "sample": ("run_id", "task", "condition", "doc_key"),
    "train_metrics": ("run_id", "stage", "step"),
} | STANDING
"""Table -> the columns that no two rows share."""

LOWER_IS_BETTER = {"nll", "error", "rmse", "loss", "perplexity", "fid", "kid", "fad", "wer", "cer", "chair", "hallucination", "unparsed", "broken", "anomaly"}
HIGHER_IS_BETTER = {"match", "accuracy", "acc", "recall", "precision", "wins", "right", "vanilla", "circular", "score", "anls", "f1", "cider", "bleu"}
HIGHER_IS_BETTER |= {"rouge", "spider", "meteor", "clipscore", "seed", "heard"}


def better(metric: str) -> bool | None:
    """True when more of this metric is better, False when less is, None when its name does not say. Lower wins (`error_score`)."""
    words = {word.rstrip("0123456789") or word for word in metric.lower().replace("-", "_").replace(".", "_").split("_")}
    return False if words & LOWER_IS_BETTER else True if words & HIGHER_IS_BETTER else None


def conform(name: str, data: pa.Table) -> pa.Table:
    """`data` with the schema of table `name`; absent columns become nulls, and so does NaN: SQL takes it for greater than every number.

    Raises AnyloomError for a column or a type the table has not.
    """
    schema = SCHEMAS[name]
    unknown = sorted(set(data.column_names) - set(schema.names))
    if unknown:
        raise AnyloomError(f"history table {name} has no column {', '.join(unknown)}: its columns are {', '.join(schema.names)}")
    columns = []
    for field in schema:
        try:
            column = data[field.name].cast(field.type) if field.name in data.column_names else pa.nulls(len(data), field.type)
            columns.append(without_nan(column) if field.type == NUMBER else column)
        except pa.ArrowException as error:
            raise AnyloomError(f"history table {name}, column {field.name}: {str(error).splitlines()[0]}") from error
    return pa.Table.from_arrays(columns, schema=schema)


def without_nan(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column of floats with null in place of NaN."""
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def rows_table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Plain rows as table `name`. Raises AnyloomError as `conform` does."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    known = {field.name: field.type for field in SCHEMAS[name]}
    try:
        return conform(name, pa.table({key: pa.array([row.get(key) for row in rows], known.get(key)) for key in names} or {}))
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise AnyloomError(f"history table {name}: {str(error).splitlines()[0]}") from error


def doubled(rows: pa.Table, name: str) -> int:
    """How many rows of table `name` have the key of an earlier one."""
    if len(rows) < 2:
        return 0
    return len(rows) - len(rows.group_by(list(ROW_KEYS[name]), use_threads=False).aggregate([]))


def content_id(row: Mapping[str, Any]) -> str:
    """What a row says, as 16 hex digits. Times count by their ISO text."""
    return fingerprint({key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in row.items()})[:16]


def file_of(stores: Path, name: str, stem: str) -> Path:
    """Where a file of table `name` lives."""
    return stores / "history" / name / f"{stem}.parquet"


def write_file(stores: Path, name: str, stem: str, data: pa.Table) -> str:
    """Publish one file with its seal, whole or not at all. Returns the sha256 of its bytes."""
    data_bytes = sealed(conform(name, data))
    write_atomic(file_of(stores, name, stem), data_bytes)
    return sha256(data_bytes).hexdigest()


def version_of(path: Path) -> int:
    """Schema version of a Parquet file of the history; 1 when it carries none. Raises AnyloomError for one that cannot be read, or is newer than this code."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise AnyloomError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it from a copy, or remove it to accept the loss") from error
    version = int(metadata.get(VERSION_KEY, b"1"))
    if version > VERSION:
        raise AnyloomError(f"{path} has history schema {version}, and this anyloom knows up to {VERSION}: use a newer anyloom")
    return version
