"""The history's summary as Markdown: leaderboard, the comparison of the two runs, regressions.

Input: History and the two runs. Output: Markdown that Prefect, a forge or a terminal shows; text from data cannot become markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evals.history.foreign import printable
from evals.history.reader import History, Row, Run
from evals.pages.history.changes import comparisons, worst_regressions
from evals.pages.history.leaderboard import boards
from evals.pages.history.numbers import interval, moved, number_text, p_text, scale_of, unit_of
from evals.pages.page import count_of

MAX_ROWS = 20
_MARKUP = re.compile(r"([\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w))")


def summary(history: History, a: Run | None, b: Run, title: str) -> str:
    """The whole text."""
    lines = [f"# {plain(title)}", "", f"{count_of(len(history.runs), 'run')}, the newest {plain(b.name)} (`{b.run_id}`, {b.day} UTC).", ""]
    return "\n".join([*lines, *_leaderboard(history), *_comparison(history, a, b), *_regressions(history)])


def plain(text: object) -> str:
    """Text in which nothing is markup, on one line."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(str(text).split())))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return [*lines, "", *([f"{count_of(left, 'more row')} left out.", ""] if left > 0 else [])]


def _leaderboard(history: History) -> list[str]:
    rows: list[list[str]] = []
    for board in boards(history)[0]:
        for row in board:
            if row["kind"] == "score":
                scale, run = scale_of([row]), history.by_id[row["run_id"]]
                score = f"{number_text(row['value'], scale)}{unit_of(scale)} {interval(row['ci_lo'], row['ci_hi'], scale)}"
                metric = row["metric"] + (f", {row['filter']}" if row["filter"] else "")
                rows.append([*map(plain, (row["task"], metric, run.name, row["condition"])), plain(score), _count(row["n"]), f"`{row['run_id']}`"])
    if not rows:
        return ["## Leaderboard", "", "No run has an accuracy yet.", ""]
    head = ("task", "score", "model", "asked", "value [95 %]", "n", "run")
    return ["## Leaderboard", "", *_table(head, rows[:MAX_ROWS], len(rows) - MAX_ROWS)]


def _comparison(history: History, a: Run | None, b: Run) -> list[str]:
    if a is None:
        return ["## Newest comparison", "", "No other run was asked the same.", ""]
    rows = comparisons(history, a, b)
    head = [f"## {plain(a.name)} (A, `{a.run_id}`) against {plain(b.name)} (B, `{b.run_id}`)", ""]
    if not rows:
        return [*head, f"No paired test of these two is in the history: `anyloom history compare {a.run_id} {b.run_id}` makes one.", ""]
    cells = [_compared(row) for row in rows[:MAX_ROWS]]
    return [*head, *_table(("task", "asked", "samples", "n", "A", "B", "B minus A [95 %]", "p", "better / worse"), cells, len(rows) - MAX_ROWS)]


def _compared(row: Row) -> list[str]:
    scale = scale_of([row], ("value_a", "value_b", "delta"))
    change = f"{moved(row['delta'], scale)} {interval(row['ci_lo'], row['ci_hi'], scale, signed=True)}"
    flips = f"{row['flips_up']} / {row['flips_down']}" if row["flips_up"] is not None else ""
    said = [*map(plain, (row["task"], row["condition"], row["subgroup"])), _count(row["n_paired"])]
    values = [number_text(row["value_a"], scale), number_text(row["value_b"], scale), plain(change)]
    return [*said, *values, p_text(row["p_adjusted"] if row["p_adjusted"] is not None else row["p"]), flips]


def _regressions(history: History) -> list[str]:
    rows = worst_regressions(history)
    if not rows:
        return ["## Regressions", "", "None in the history's comparisons and change points.", ""]
    cells = []
    for row in rows[:MAX_ROWS]:
        scale = scale_of([row], ("before", "after", "delta"))
        when = f"{row['time']:%Y-%m-%d}" if row["time"] else ""
        what = f"{row['recipe']}: {row['task']}, {row['condition']}, {row['metric']}, {row['subgroup']}"
        change = f"{number_text(row['before'], scale)} → {number_text(row['after'], scale)} ({moved(row['delta'], scale)})"
        cells.append([when, plain(what), plain(change), p_text(row["p"]), row["found_by"].replace("_", " "), f"`{row['run_after']}`"])
    return ["## Regressions", "", *_table(("when", "what", "before → after", "p", "found by", "run"), cells, len(rows) - MAX_ROWS)]


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
