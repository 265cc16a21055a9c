"""Section about the suites: every lmms-eval task of the run, by the harness's metric and by our own reading.

Input: the artifacts of the tasks. Output: HTML; the harness's numbers stay in its own unit, which the table names by the metric.
"""

from __future__ import annotations

from html import escape

from evals.pages.page import bracketed, metrics_of, paragraph, section, source_note, table, unread_note
from evals.pages.run.context import RunPage
from infra.step import Artifact


def suites_section(page: RunPage, *artifacts: Artifact) -> str:
    """One row per task, condition and metric over all its questions."""
    rows, notes = [], []
    for artifact in artifacts:
        task = str(artifact.result["lmms_task"])
        for metric in metrics_of(artifact):
            if metric["subgroup"] != "all" or metric["kind"] == "difference":
                continue
            value = "" if metric["value"] is None else f"{metric['value']:.3f}"
            interval = f" {bracketed(metric['ci_lo'], metric['ci_hi'])}"
            n = "" if metric["n"] is None else f"{metric['n']:,}"
            rows.append([escape(task), escape(metric["condition"]), escape(metric["metric"]), value + interval, n])
        official = f"official data, split {artifact.result.get('split', '')}"
        data = "data in the benchmark's shape, not the benchmark" if artifact.result.get("stand_in") else official
        left_out = "; ".join(map(str, artifact.result.get("left_out", ())))
        notes.append(f"{task}: {data}" + (f"; left out: {left_out}" if left_out else ""))
    return section(
        "Suites of benchmarks",
        paragraph(
            "Metrics named harness_* are lmms-eval's, in its own unit; ours_* are shares of right answers by our own reading. Intervals: 95 % over images.",
            "soft",
        ),
        table(["task", "condition", "metric", "value", "questions"], rows, numeric=(3, 4)),
        "".join(paragraph(note, "small") for note in notes),
        "".join(paragraph(f"{artifact.result['lmms_task']}:", "small") + note for artifact in artifacts if (note := unread_note(artifact))),
        "".join(source_note(artifact) for artifact in artifacts),
    )
