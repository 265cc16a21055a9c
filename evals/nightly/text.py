"""Review text: the nightly review as Markdown.

Input: alerts, comparisons, change points and series. Output: Markdown, the same for the same input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.history.reader import Run
from evals.history.series import Series
from evals.nightly.alerts import Alert
from evals.nightly.comparison import decides


def markdown(
    run: Run,
    recipe: str,
    alerts: Sequence[Alert],
    comparisons: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
    series: Sequence[Series],
) -> str:
    """Headline, alerts, notes, comparisons (all samples, subgroups below them), change points."""
    loud = [alert for alert in alerts if alert.severity == "alert"]
    quiet = [alert for alert in alerts if alert.severity != "alert"]
    nights = max((len(one.nights) for one in series), default=1)
    when = f", evaluated {run.day} UTC" if run.day else ""
    lines = [f"# {recipe}: {_count(len(loud), 'alert') if loud else 'no alert'}", "", f"Run `{run.run_id}`{when}; {_count(nights, 'comparable night')}.", ""]
    lines += _list("Alerts", loud) + _list("Notes", quiet)
    if comparisons:
        lines += ["## Comparisons on the same samples", ""]
        head = ("task", "condition", "score", "samples", "against", "before", "now", "difference [95 %]", "p (Holm)", "better / worse", "detectable")
        shown = sorted(comparisons, key=lambda row: not decides(row))
        lines += [*_table(head, [_comparison(row) for row in shown]), ""]
    if changes:
        lines += ["## Change points", ""]
        columns = ("task", "condition", "score", "since", "run", "before", "after", "p")
        lines += [*_table(columns, [_change(row) for row in changes]), ""]
    return "\n".join(lines)


def _comparison(row: Mapping[str, Any]) -> list[str]:
    limits = "no interval" if row["ci_lo"] is None or row["ci_hi"] is None else f"[{_signed(row['ci_lo'])}, {_signed(row['ci_hi'])}]"
    interval = f"{_signed(row['delta'])} {limits}"
    samples = f"{row['subgroup']} ({row['n_paired']})"
    detectable = "" if row["detectable"] is None else _number(row["detectable"])
    flips = f"{row['flips_up']} / {row['flips_down']}"
    values = [_number(row["value_a"]), _number(row["value_b"])]
    return [row["task"], row["condition"], row["metric"], samples, f"`{row['run_a']}`", *values, interval, f"{row['p_adjusted']:.2g}", flips, detectable]


def _change(row: Mapping[str, Any]) -> list[str]:
    since = f"{row['at']:%Y-%m-%d %H:%M}" if row["at"] else ""
    score = f"{row['metric']}, {row['subgroup']}"
    return [row["task"], row["condition"], score, since, f"`{row['run_at']}`", _number(row["before"]), _number(row["after"]), f"{row['p']:.2g}"]


def _list(title: str, alerts: Sequence[Alert]) -> list[str]:
    return [f"## {title}", "", *(f"- {alert.text}" for alert in alerts), ""] if alerts else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _signed(value: float) -> str:
    return f"{value:+.4f}"
