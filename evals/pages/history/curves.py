"""The report's section on training: the loss of every stage of the compared runs, on shared axes.

Input: History (table train_metrics). Output: HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

from evals.history.reader import History, Row, Run
from evals.pages.history.charts import Curve, curves_chart
from evals.pages.page import count_of, paragraph, section
from mmcore.config import MODALITIES

MAX_STAGES = 12
_LOSSES = "SELECT stage, step, loss, parts FROM train_metrics WHERE run_id = ? AND loss IS NOT NULL ORDER BY stage, step"


def curves_section(history: History, a: Run | None, b: Run) -> str:
    """A chart for each stage that A or B trained; "" when neither has any."""
    found: dict[str, list[tuple[Curve, str]]] = {}
    for letter, run, tone in (("B", b, "model"), ("A", a, "control")):
        stages: dict[str, list[Row]] = {}
        for row in history.rows(_LOSSES, (run.run_id,)) if run else []:
            if math.isfinite(row["loss"]):
                stages.setdefault(row["stage"] or "", []).append(row)
        for stage, rows in stages.items():
            steps, losses = [row["step"] or 0 for row in rows], [row["loss"] for row in rows]
            curve = Curve(label=f"{letter}: {run.name}" if run else letter, steps=steps, losses=losses, tone=tone)
            found.setdefault(stage, []).append((curve, _by_modality(rows)))
    if not found:
        return ""
    charts = []
    for stage, drawn in sorted(found.items())[:MAX_STAGES]:
        curves = [curve for curve, _ in drawn]
        same = len(curves) == 2 and curves[0].losses == curves[1].losses
        summary = "; ".join(f"{curve.label}: {count_of(len(curve.losses), 'step')}, the last tenth {_tail(curve):.3f}" for curve in curves)
        chart = curves_chart(curves, title=f"loss of {stage}: {summary}", x_label="optimizer step", y_label="loss")
        parts = "".join(f"<br>{escape(curve.label)}, by modality: {escape(means)}" for curve, means in drawn if means)
        shared = "<br>the same training: the curves lie on each other" if same else ""
        charts.append(f"<div><h3>{escape(stage)}</h3>{chart}<p class='small'>{escape(summary)}{parts}{shared}</p></div>")
    left = len(found) - len(charts)
    key = "".join(f'<span><i class="{tone}"></i>{letter}</span>' for letter, run, tone in (("A", a, "control"), ("B", b, "model")) if run)
    return section(
        "Training curves",
        paragraph("Loss of every optimizer step (faint) and its moving average. Spikes of the first steps may be cut off.", "soft"),
        f'<div class="key">{key}</div><div class="grid3">{"".join(charts)}</div>',
        paragraph(f"{count_of(left, 'more stage')} left out.", "small") if left else "",
        name="training",
    )


def _tail(curve: Curve) -> float:
    count = max(1, len(curve.losses) // 10)
    return sum(curve.losses[-count:]) / count


def _by_modality(rows: Sequence[Row]) -> str:
    """Mean over the last tenth of the steps of every part of the loss that is logged per modality; "" where none is."""
    values: dict[str, list[float]] = {}
    for row in rows[-max(1, len(rows) // 10) :]:
        for part, value in json.loads(row["parts"] or "{}").items():
            if part.endswith(tuple(f"_{modality}" for modality in MODALITIES)):
                values.setdefault(part, []).append(value)
    return ", ".join(f"{part} {sum(found) / len(found):.3f}" for part, found in sorted(values.items()))
