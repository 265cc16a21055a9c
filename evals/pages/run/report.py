"""Report: one self-contained HTML page about a run.

Owns the sections that are of no evaluation; those of evaluations come from the table (evals.evaluation), in its order. Input: the artifacts of a run; any may
be absent, then its section is.
Output: report.html, the same bytes for the same artifacts. What was shared by training and test comes before any held-out number; shown
samples are a seeded draw, failures included. No score is computed here: all are read from the artifacts.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evals.config import ReportConfig
from evals.evaluation import EVALUATIONS
from evals.pages.charts import bar, line_chart
from evals.pages.page import document, paragraph, section, source_note, table
from evals.pages.run.context import RunPage
from infra.artifact import ArtifactRecord, read_record
from infra.step import Artifact, StepContext
from infra.storage import read_json, write_atomic

TIMES = "info/times.html"
"""How long this machine took for what: of the run, not of its results, so it is no part of the page that is the same wherever it is made."""
STAGES = {"stage1": "input projectors", "stage2": "output projectors", "stage3": "LoRA instruction tuning"}


def run(ctx: StepContext[ReportConfig]) -> Mapping[str, Any]:
    """Step entry: write report.html from whatever inputs there are, and the times of their steps beside it."""
    config = ctx.config
    inputs = ctx.inputs
    records = lineage(inputs)
    page = RunPage(config=config, inputs=inputs)
    parts = [_header(config, inputs), _overlap(inputs.get("overlap")), *sections(page), _losses(inputs), _licences(config, records, inputs)]
    times = _time(records)
    if times:
        write_atomic(ctx.output / TIMES, document(f"{config.title}: time", times))
        parts.append(f'<p class="small"><a href="{TIMES}">Time and data per step</a></p>')
    write_atomic(ctx.output / "report.html", document(config.title, "\n".join(part for part in parts if part)))
    ctx.progress(1, 1, "done")
    return {"file": "report.html", "sections": sum(bool(part) for part in parts)}


def sections(page: RunPage) -> list[str]:
    """The section of every evaluation that there is, in the order of the table."""
    shown: dict[str, list[Artifact]] = {}
    for row in EVALUATIONS:
        if row.section and row.step in page.inputs:
            shown.setdefault(row.section, []).append(page.inputs[row.step])
    return [_section_function(name)(page, *artifacts) for name, artifacts in shown.items()]


def _section_function(name: str) -> Callable[..., str]:
    module, _, function = name.partition(":")
    found: Callable[..., str] = getattr(importlib.import_module(module), function)
    return found


def lineage(inputs: Mapping[str, Artifact]) -> dict[str, ArtifactRecord]:
    """Records of the inputs and everything they were made from, `step/fingerprint12` -> record, sorted; what is gone is left out."""
    found: dict[str, ArtifactRecord] = {}
    queue = [artifact.path for artifact in inputs.values()]
    while queue:
        path = queue.pop()
        record = read_record(path)
        if record is not None and f"{record.name}/{path.name}" not in found:
            found[f"{record.name}/{path.name}"] = record
            queue += [path.parent.parent / reference for reference in record.inputs.values()]
    return dict(sorted(found.items()))


def _header(config: ReportConfig, inputs: Mapping[str, Artifact]) -> str:
    history = inputs.get("history")
    run_id = f" · run <code>{escape(str(history.result['run_id']))}</code>" if history and "run_id" in history.result else ""
    return f"<h1>{escape(config.title)}</h1><p class='soft'>recipe <code>{escape(config.recipe)}</code>{run_id}</p>"


def _overlap(artifact: Artifact | None) -> str:
    """What training and held-out sets share: stands before every held-out number."""
    if artifact is None:
        return ""
    path = artifact.path / "overlap.json"
    found = read_json(path) if path.exists() else dict(artifact.result)
    pairs = found.get("pairs", [])
    rows = [[escape(p["heldout"]), escape(p["train"]), *(f"{p[k]:,}" for k in ("heldout_pictures", "train_pictures", "exact", "near"))] for p in pairs]
    shared = [p for p in pairs if p["exact"] or p["near"]]
    if shared:
        worst = max(shared, key=lambda p: ((p["exact"] + p["near"]) / max(1, p["heldout_pictures"]), p["heldout"], p["train"]))
        text = (
            f"Training and held-out images overlap. The largest share: of the {worst['heldout_pictures']:,} images of {worst['heldout']}, "
            f"{worst['exact']:,} are byte for byte in {worst['train']} and {worst['near']:,} more have a near-duplicate there. "
            "Nothing was removed: read the held-out numbers below with this in mind."
        )
    else:
        text = "No held-out image has an exact or near duplicate among the training images that were compared."
    columns = ("held out", "training", "held-out images", "training images", "exact", "near")
    shown = table(columns, rows, numeric=(2, 3, 4, 5)) if rows else ""
    return section(
        "Before any held-out number: what training has already seen",
        paragraph(text),
        shown,
        paragraph(str(found.get("meaning", "")), "small"),
        source_note(artifact),
        css="note",
    )


def _losses(inputs: Mapping[str, Artifact]) -> str:
    charts = []
    for name, artifact in inputs.items():
        path = artifact.path / "losses.parquet"
        if not path.exists():
            continue
        losses = pq.read_table(path)
        steps, values = losses["step"].to_pylist(), losses["loss"].to_pylist()
        if not values:
            continue
        tail = max(1, len(values) // 10)
        extra = [column for column in losses.column_names if column not in ("step", "loss", "lr", "tokens")]
        means = ", ".join(
            f"{column} {np.mean(kept):.3f}"
            for column in ("loss", *extra)
            if (kept := [v for v in losses[column].to_pylist()[-tail:] if isinstance(v, float) and np.isfinite(v)])
        )
        title = f"{name}: {STAGES.get(name.split('_')[0], 'training')}"
        charts.append(
            f"<div><h3>{escape(title)}</h3>{line_chart(steps, values, title=f'loss of {name}', x_label='optimizer step', y_label='loss')}"
            f"<p class='small'>{len(values):,} steps. Mean of the last {tail:,}: {escape(means)}</p></div>"
        )
    if not charts:
        return ""
    return section(
        "Training losses",
        paragraph("Every optimizer step (faint) and a moving average. Spikes of the first steps may be cut off.", "soft"),
        f'<div class="grid3">{"".join(charts)}</div>',
    )


def _time(records: Mapping[str, ArtifactRecord]) -> str:
    """Seconds and bytes of every step behind this report."""
    if not records:
        return ""
    most = max(record.provenance.seconds for record in records.values()) or 1.0
    ordered = sorted(records.items(), key=lambda item: (item[1].provenance.finished, item[0]))
    rows = [[f"<code>{escape(name)}</code>", f"{r.provenance.seconds:,.1f}", bar(r.provenance.seconds / most), f"{r.bytes / 1e6:,.1f}"] for name, r in ordered]
    total = sum(record.provenance.seconds for record in records.values())
    first = ordered[0][1].provenance
    packages = ", ".join(f"{name} {version}" for name, version in sorted(first.packages.items()))
    return section(
        "Time and data per step",
        paragraph(
            f"{total / 60:,.1f} minutes of work in {len(records)} steps (the run that made each artifact; steps may run side by side). "
            f"{first.device}, {first.threads} threads, commit {first.commit}.",
            "soft",
        ),
        table(["step", "seconds", "", "MB written"], rows, numeric=(1, 3)),
        paragraph(packages, "small"),
    )


def _licences(config: ReportConfig, records: Mapping[str, ArtifactRecord], inputs: Mapping[str, Artifact]) -> str:
    """Licences of data and weights: of the config, of the dataset specs and of the weights artifacts behind the report."""
    found = dict(config.licences)
    base = next((artifact.path.parent.parent for artifact in inputs.values()), Path())
    for reference, record in records.items():
        settings = record.payload.get("config") or {}
        for dataset in settings.get("datasets", []) if isinstance(settings, dict) else []:
            if isinstance(dataset, dict) and dataset.get("licence"):
                found.setdefault(f"data: {dataset.get('name', '')}", str(dataset["licence"]))
        path = base / reference / "licence.json"
        if path.exists():
            licence = json.loads(path.read_text())
            found.setdefault(f"weights: {licence.get('name', reference)}", f"{licence.get('licence', '')} ({licence.get('source', '')})")
    if not found:
        return ""
    return section("Licences", table(["part", "licence"], [[escape(name), escape(text)] for name, text in sorted(found.items())]))
