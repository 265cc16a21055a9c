"""The report's section on training: the loss of every stage of the compared runs, on shared axes.

Input: Facts (table train_metrics). Output: HTML. Refuses to know what a stage trains.
"""

from __future__ import annotations

import math
from html import escape

from evals.charts_history import Curve, curves_chart
from evals.history_facts import Facts, Run
from evals.page import count_of, paragraph, section

MAX_STAGES = 12
_LOSSES = "SELECT stage, step, loss FROM train_metrics WHERE run_id = ? AND loss IS NOT NULL ORDER BY stage, step"


def curves_section(facts: Facts, a: Run | None, b: Run) -> str:
    """A chart for each stage that A or B trained; "" when neither has any."""
    found: dict[str, list[Curve]] = {}
    for letter, run, tone in (("B", b, "model"), ("A", a, "control")):
        stages: dict[str, tuple[list[float], list[float]]] = {}
        for row in facts.rows(_LOSSES, (run.run_id,)) if run else []:
            if math.isfinite(row["loss"]):
                steps, losses = stages.setdefault(row["stage"] or "", ([], []))
                steps.append(row["step"] or 0)
                losses.append(row["loss"])
        for stage, (steps, losses) in stages.items():
            found.setdefault(stage, []).append(Curve(label=f"{letter}: {run.name}" if run else letter, steps=steps, losses=losses, tone=tone))
    if not found:
        return ""
    charts = []
    for stage, curves in sorted(found.items())[:MAX_STAGES]:
        same = len(curves) == 2 and curves[0].losses == curves[1].losses
        told = "; ".join(f"{curve.label}: {count_of(len(curve.losses), 'step')}, the last tenth {_tail(curve):.3f}" for curve in curves)
        chart = curves_chart(curves, title=f"loss of {stage}: {told}", x_label="optimizer step", y_label="loss")
        shared = "<br>the same training: the curves lie on each other" if same else ""
        charts.append(f"<div><h3>{escape(stage)}</h3>{chart}<p class='small'>{escape(told)}{shared}</p></div>")
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
