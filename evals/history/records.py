"""Records about runs: comparisons, change points, annotations and nights, appended to the history.

Owns their files and ids. Input: plain rows (comparison, change point), what somebody says (annotation) or did (night). Output: files of tables that
stand for themselves, safe for any number of writers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.history.tables import SCHEMAS, content_id, file_of, rows_table, write_file
from infra.fingerprint import fingerprint
from infra.step import AnyloomError


def append_comparisons(stores: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Append comparisons in one file and return their ids. The same comparisons again add nothing, whenever they were `made`.

    rows: the columns of `comparison` but for comparison_id, which is the hash of all others but `made`; `made` left out means now.
    Raises AnyloomError for a missing run, task, metric or history_fingerprint, or an unknown column.
    """
    now, made = datetime.now(UTC).replace(tzinfo=None, microsecond=0), {}
    for row in rows:
        _require("comparison", row, ("run_a", "run_b", "task", "condition", "metric", "subgroup", "history_fingerprint"))
        said = {key: value for key, value in row.items() if key not in ("comparison_id", "made") and value is not None}
        try:
            made[content_id(said)] = {**said, "made": row.get("made") or now}
        except TypeError as error:
            raise AnyloomError(f"a row of comparison cannot be named by what it says: {error}; leave out what is not known") from error
    _append("comparison", stores, fingerprint(sorted(made))[:16], [{"comparison_id": name, **row} for name, row in sorted(made.items())])
    return sorted(made)


def append_change_points(stores: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Append change points, one file each, and return the names (`series_id`-`run_at`) of those that were not there yet.

    A change point is the place in its series: an analysis of more nights that finds the same place with other numbers adds nothing, so that
    an alert is raised once. Raises AnyloomError for a missing series, run, time or history_fingerprint, or an unknown column.
    """
    added = []
    for row in rows:
        _require("change_point", row, ("series_id", "task", "condition", "metric", "subgroup", "run_at", "at", "history_fingerprint"))
        name = f"{row['series_id']}-{row['run_at']}"
        if _append("change_point", stores, name, [dict(row)]):
            added.append(name)
    return added


def annotate(stores: Path, *, at: datetime, text: str, recipe: str = "", task: str = "", author: str = "") -> str:
    """Append what somebody knows about a moment and return its id; the same words again add nothing.

    at: UTC when it has no time zone. recipe, task: "" means every one. From this moment on a series has a new segment (view `trend`): numbers
    before and after are not compared by the search for change points. Raises AnyloomError for an empty text.
    """
    if not text.strip():
        raise AnyloomError("an annotation needs a text: say what happened")
    moment = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
    said = {"at": moment, "recipe": recipe, "task": task, "text": text.strip(), "author": author}
    name = content_id(said)
    _append("annotation", stores, name, [{"annotation_id": name, **said}])
    return name


def append_night(stores: Path, run_id: str, flow_run_id: str, scheduled_for: datetime | None, status: str) -> bool:
    """Append which flow run evaluated a run, or met it evaluated (`status` in words). Returns False when this flow run has said so already.

    scheduled_for: when the flow run should have begun, naive UTC.
    """
    row = {"run_id": run_id, "flow_run_id": flow_run_id, "scheduled_for": scheduled_for, "status": status}
    return _append("night", stores, f"{flow_run_id}-{run_id}", [row])


def parse_time(text: str) -> datetime:
    """A moment as written by a person: 2026-11-26, 2026-11-26T02:00 (UTC), 2026-11-26T02:00+01:00, or now. Raises AnyloomError otherwise."""
    if text == "now":
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise AnyloomError(f"--at {text}: write a time as 2026-11-26, 2026-11-26T02:00 (UTC), 2026-11-26T02:00+01:00, or now") from None


def _append(table: str, stores: Path, name: str, rows: list[dict[str, Any]]) -> bool:
    """One file, unless it is there or there are no rows. Returns whether it was written."""
    name = name.replace("/", "-")
    if not rows or file_of(stores, table, name).exists():
        return False
    write_file(stores, table, name, rows_table(table, rows))
    return True


def _require(table: str, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    missing = [name for name in columns if row.get(name) is None]
    unknown = sorted(set(row) - set(SCHEMAS[table].names))
    if missing or unknown:
        raise AnyloomError(f"a row of {table} " + (f"lacks {', '.join(missing)}" if missing else f"has no column {', '.join(unknown)}"))
