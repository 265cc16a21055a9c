"""Report numbers: how a score of the history is written, as per cent where it is a share, as it is elsewhere.

Input: rows of `metric` or `comparison`. Output: text, and the axis that several rows share. A share is known by its metric's name and its range, never
guessed from the range alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.suites.catalogue import full_marks

SHARES = set("match accuracy acc vanilla circular anls seed right wins heard emits recall precision f1 yes hit unparsed parsed hallucination broken".split())
"""Words of metrics that are shares from 0 to 1."""


def scale_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ("value", "ci_lo", "ci_hi")) -> float:
    """100 where all rows are shares, else 1."""
    values = [row[name] for row in rows for name in columns if row[name] is not None]
    named = all(full_marks(str(row["metric"])) == 1 and set(str(row["metric"]).lower().split("_")) & SHARES for row in rows)
    return 100.0 if named and all(-1 <= value <= 1 for value in values) else 1.0


def axis_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Ends of the axis: shares stand on 0..1, numbers up to 100 that are no shares on 0..100, anything else on what it needs."""
    values = [row[name] for row in rows for name in ("value", "ci_lo", "ci_hi") if row[name] is not None]
    if scale_of(rows) != 1:
        return 0.0, 1.0
    low, high = min(0.0, *values), max(0.0, *values)
    return (low, 100.0) if low == 0 and 10 < high <= 100 else (low, high or 1.0)


def unit_of(scale: float) -> str:
    """What stands behind a number."""
    return " %" if scale != 1 else ""


def number_text(value: float | None, scale: float) -> str:
    """One number; "" for none."""
    if value is None:
        return ""
    return f"{scale * value:.1f}" if scale != 1 or abs(value) >= 10 else f"{value:.3f}"


def moved(value: float | None, scale: float) -> str:
    """One difference with its sign, in points where the numbers are per cent."""
    if value is None:
        return ""
    return f"{scale * value:+.1f}" if scale != 1 or abs(value) >= 10 else f"{value:+.3f}"


def interval(low: float | None, high: float | None, scale: float, signed: bool = False) -> str:
    """An interval in brackets; "no interval" where there is none."""
    if low is None or high is None:
        return "no interval"
    write = moved if signed else number_text
    return f"[{write(low, scale)}, {write(high, scale)}]"


def p_text(value: float | None) -> str:
    """A p-value with two digits."""
    return "" if value is None else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
