"""The report's section on trends: one small chart for a task and condition, with change points and annotations.

Owns which evaluations are one series. Input: History. Output: HTML. A line ends where the history_fingerprint changes and where an annotation begins a new
segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from evals.history.reader import History, Row
from evals.pages.history.charts import Mark, Point, Trend, trend_chart
from evals.pages.history.names import asked_as, condition_order, main_metric, tone_of
from evals.pages.history.numbers import interval, moved, number_text, scale_of, unit_of
from evals.pages.page import count_of, paragraph, section

MAX_CHARTS, MAX_POINTS = 24, 120
_TREND = """
SELECT recipe, task, condition, metric, filter, subgroup, history_fingerprint, time, run_id, value, ci_lo, ci_hi, segment, is_change_point, previous
FROM trend
WHERE value IS NOT NULL
ORDER BY task, recipe, condition, metric, filter NULLS FIRST, subgroup, time NULLS FIRST, evaluated NULLS FIRST, run_id"""

_NOTES = """
SELECT * FROM annotation WHERE coalesce(recipe, '') IN ('', ?) AND coalesce(task, '') IN ('', ?) ORDER BY "at", annotation_id"""


def trends_section(history: History) -> str:
    """A chart for each series of two or more evaluations; those with the newest evaluations first."""
    series = []
    for _, of_task in groupby(history.rows(_TREND), lambda row: row["task"]):
        rows = list(of_task)
        metric = main_metric([row["metric"] for row in rows])
        kept = of_all([row for row in rows if row["metric"] == metric])
        series += [list(of) for _, of in groupby(kept, lambda row: (row["recipe"], row["condition"], row["filter"], row["subgroup"]))]
    series = [rows for rows in series if len(rows) > 1]
    if not series:
        return section("Trends", paragraph("A trend needs two evaluations of one recipe; there are none yet.", "soft"), name="trends")
    newest = {run.run_id: place for place, run in enumerate(history.runs)}
    series.sort(key=lambda rows: (condition_order(rows[0]["condition"])[0], newest[rows[-1]["run_id"]], rows[0]["task"], rows[0]["subgroup"]))
    grids = []
    for task in dict.fromkeys(rows[0]["task"] for rows in series[:MAX_CHARTS]):
        mine = [rows for rows in series[:MAX_CHARTS] if rows[0]["task"] == task]
        charts, controls = ([_chart(history, rows) for rows in mine if (tone_of(rows[0]["condition"]) == "control") is wanted] for wanted in (False, True))
        grids.append(f'<h3>{escape(task)}</h3><div class="grid3">{"".join(charts)}</div>')
        if controls:
            grids.append(f'<details><summary>{count_of(len(controls), "control")}</summary><div class="grid3">{"".join(controls)}</div></details>')
    left = len(series) - len(series[:MAX_CHARTS])
    return section(
        "Trends",
        paragraph(
            "Every evaluation of a recipe, oldest to the left, one step each; the band is the 95 % interval. A ring is a change point. Dashed lines are "
            "numbered below their chart: an annotation, or a new history_fingerprint (what is asked or how it is scored changed). No line crosses one.",
            "soft",
        ),
        *grids,
        paragraph(f"{count_of(left, 'more series')} left out: anyloom sql 'select * from trend'", "small") if left else "",
        name="trends",
    )


def of_all(rows: Sequence[Row]) -> list[Row]:
    """The rows of all samples of a task; of the subgroup `both` where it has no `all`, else of every subgroup."""
    kinds = {row["subgroup"] for row in rows}
    wanted = next((kind for kind in ("all", "both") if kind in kinds), None)
    return [row for row in rows if wanted in (None, row["subgroup"])]


def _chart(history: History, rows: Sequence[Row]) -> str:
    first, cut = rows[0], len(rows) - len(rows[-MAX_POINTS:])
    rows = rows[-MAX_POINTS:]
    scale = scale_of(rows)
    points = [_point(history, place, row, scale) for place, row in enumerate(rows)]
    together = [list(of) for _, of in groupby(range(len(rows)), lambda place: (rows[place]["history_fingerprint"], rows[place]["segment"]))]
    marks, texts = _marks(history, first["recipe"], first["task"], rows)
    texts += [_changed(row, scale) for row in rows if row["is_change_point"]]
    kind = "" if first["subgroup"] in ("all", "both") else f", {first['subgroup']}"
    asked = f"{first['recipe']}, {asked_as(first['condition'])}{kind}"
    trend = Trend(
        title=f"{first['task']}, {first['metric']}: {asked}; {len(rows)} evaluations from {points[0].hover} to {points[-1].hover}",
        segments=[[points[place] for place in places] for places in together],
        dates=[f"{row['time']:%Y-%m-%d}" if row["time"] else "" for row in rows],
        marks=marks,
        scale=scale,
        tone=tone_of(first["condition"]),
    )
    listed = f'<ul class="legend">{"".join(f"<li>{text}</li>" for text in texts)}</ul>' if texts else ""
    left = f"<br>the newest {len(rows)}, {cut:,} older ones left out" if cut else ""
    return (
        f"<div><h4>{escape(asked)}</h4><p class='small'>{escape(first['metric'])}{unit_of(scale)} · {count_of(len(rows), 'evaluation')}{left}</p>"
        f"{trend_chart(trend)}{listed}</div>"
    )


def _point(history: History, place: int, row: Row, scale: float) -> Point:
    hover = f"{history.by_id[row['run_id']].day or row['run_id']}: {number_text(row['value'], scale)} {interval(row['ci_lo'], row['ci_hi'], scale)}"
    return Point(place=place, value=row["value"], lo=row["ci_lo"], hi=row["ci_hi"], hover=hover, changed=row["is_change_point"])


def _marks(history: History, recipe: str, task: str, rows: Sequence[Row]) -> tuple[list[Mark], list[str]]:
    """Lines between two evaluations, and what they mean as HTML, in their order."""
    found: list[tuple[float, str, str]] = []
    for note in history.rows(_NOTES, (recipe, task)):
        before = sum(row["time"] is None or row["time"] < note["at"] for row in rows)
        if 0 < before < len(rows):
            author = f" ({escape(note['author'])})" if note["author"] else ""
            found.append((before - 0.5, "", f"{note['at']:%Y-%m-%d %H:%M}: {escape(note['text'])}{author}"))
    for place in range(1, len(rows)):
        if rows[place]["history_fingerprint"] != rows[place - 1]["history_fingerprint"]:
            fingerprint = escape(str(rows[place]["history_fingerprint"]))
            found.append((place - 0.5, "fingerprint", f"from here on <code>{fingerprint}</code>: not comparable with before"))
    found.sort(key=lambda one: one[0])
    marks = [Mark(at=at, label=str(number), css=css) for number, (at, css, _) in enumerate(found, 1)]
    return marks, [f"{number}. {text}" for number, (_, _, text) in enumerate(found, 1)]


def _changed(row: Row, scale: float) -> str:
    day = f"{row['time']:%Y-%m-%d}" if row["time"] else "unknown day"
    step = f", {moved(row['value'] - row['previous'], scale)} to the evaluation before" if row["previous"] is not None else ""
    return f"<b>change point</b> {day}{step}"
