"""Report: one self-contained HTML page about a run.

Owns the choice and order of the sections. Input: the artifacts of a run; every input but eval_vqa may be absent, then its section is.
Output: report.html, the same bytes for the same artifacts. What was shared by training and test comes before any held-out number; shown
samples are a seeded draw, failures included. Refuses to compute scores: it prints those of the artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evals.config import ReportConfig
from evals.pages.charts import Dot, bar, interval_chart, line_chart
from evals.pages.page import document, metrics_of, paragraph, percent, section, signed, source_note, table
from evals.pages.run.drift import drift_section
from evals.pages.run.generation import generation_sections
from evals.pages.run.media_questions import media_questions_section
from evals.pages.run.pictures import drawing_section, pictures_section
from evals.pages.run.questions import question_sections
from evals.pages.run.sounds import speaking_section
from infra.artifact import ArtifactRecord, read_record
from infra.step import Artifact, StepContext
from infra.storage import read_json, write_atomic

STAGES = {"stage1": "input projectors", "stage2": "output projectors", "stage3": "LoRA instruction tuning"}


def run(ctx: StepContext[ReportConfig]) -> Mapping[str, Any]:
    """Step entry: write report.html from whatever inputs there are."""
    config = ctx.config
    inputs = ctx.inputs
    records = lineage(inputs)
    parts = [
        _header(config, inputs),
        _overlap(inputs.get("overlap")),
        *question_sections(config, inputs),
        media_questions_section(inputs.get("eval_media_questions")),
        _captions(inputs.get("eval_captions")),
        _alignment(inputs.get("eval_alignment")),
        drift_section(inputs.get("eval_drift")),
        pictures_section(inputs.get("eval_pictures")),
        drawing_section(inputs.get("eval_drawing")),
        speaking_section(inputs.get("eval_speaking")),
        *generation_sections(inputs),
        _losses(inputs),
        _time(records),
        _licences(config, records, inputs),
    ]
    write_atomic(ctx.output / "report.html", document(config.title, "\n".join(part for part in parts if part)))
    ctx.progress(1, 1, "done")
    return {"file": "report.html", "sections": sum(bool(part) for part in parts)}


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
            f"Training and held-out pictures overlap. The largest share: of the {worst['heldout_pictures']:,} pictures of {worst['heldout']}, "
            f"{worst['exact']:,} are byte for byte in {worst['train']} and {worst['near']:,} more have a near-duplicate there. "
            "Nothing was removed: read the held-out numbers below with this in mind."
        )
    else:
        text = "No held-out picture has an exact or near duplicate among the training pictures that were compared."
    columns = ("held out", "training", "held-out pictures", "training pictures", "exact", "near")
    shown = table(columns, rows, numeric=(2, 3, 4, 5)) if rows else ""
    return section(
        "Before any held-out number: what training has already seen",
        paragraph(text),
        shown,
        paragraph(str(found.get("meaning", "")), "small"),
        source_note(artifact),
        css="note",
    )


def _captions(artifact: Artifact | None) -> str:
    if artifact is None:
        return ""
    at = {(m["subgroup"], m["metric"], m["condition"]): m for m in metrics_of(artifact)}
    rows, dots = [], []
    for modality in dict.fromkeys(key[0] for key in at):
        token = [at[modality, "nll_per_token", which]["value"] for which in ("right", "shuffled", "blank")]
        gain, wins = at[modality, "nll_per_caption", "shuffled - right"], at[modality, "right_wins", "right"]
        rows.append(
            [
                escape(modality),
                *(f"{value:.3f}" for value in token),
                *(signed(each["value"], each["ci_lo"], each["ci_hi"]) for each in (gain, at[modality, "nll_per_caption", "blank - right"])),
                percent(wins["value"], wins["ci_lo"], wins["ci_hi"]),
                f"{gain['n']:,}",
                f"{gain['clusters']:,}",
                str(dict(artifact.result.get(modality) or {}).get("caption_text_in_training", "")),
            ]
        )
        dots.append(Dot(label=modality, value=gain["value"], lo=gain["ci_lo"], hi=gain["ci_hi"], note=f"n {gain['n']}"))
    if not dots:
        return ""
    low, high = min(0.0, *(d.lo for d in dots)), max(0.1, *(d.hi for d in dots))
    chart = interval_chart(dots, width=760, lo=low, hi=high * 1.02, title="gain in nats per caption", zero=True)
    return section(
        "Stage 1: does the right media make its caption likelier?",
        paragraph(
            "Cross-entropy of held-out captions in nats, with their own media and with the media of another sample (other media and other "
            "caption, seeded), or blank (white, or silence). Gain: shuffled minus right per caption, paired; above 0 the media is used. Intervals: 95 % "
            "bootstrap over media. "
            "Text in training: captions whose text a training sample has too.",
            "soft",
        ),
        table(
            [
                "modality",
                *(f"{which}, per token" for which in ("right", "shuffled", "blank")),
                "gain per caption",
                "blank minus right",
                "right is likelier, %",
                "captions",
                "media",
                "text in training",
            ],
            rows,
            numeric=range(1, 10),
        ),
        chart,
        source_note(artifact),
    )


def _alignment(artifact: Artifact | None) -> str:
    if artifact is None:
        return ""
    at = {m["condition"]: m for m in metrics_of(artifact)}
    names = {"right": "own caption", "shuffled": "another caption", "mean_predictor": "mean of the training targets"}
    rows: list[list[str]] = []
    for name, label in names.items():
        if m := at.get(name):
            gain = at.get(f"{name} - right")
            rows.append(
                [
                    label,
                    f'{m["value"]:.3f} <span class="ci">[{m["ci_lo"]:.3f}, {m["ci_hi"]:.3f}]</span>',
                    signed(gain["value"], gain["ci_lo"], gain["ci_hi"], digits=3) if gain else "",
                    f"{m['n']:,}",
                ]
            )
    if not rows:
        return ""
    return section(
        "Stage 2: does the output projector say what the caption says?",
        paragraph(
            "Distance between the conditioning made from the signal tokens and the decoder's text-encoder states of held-out captions (lower is better). "
            "Gain: how much lower the error with the own caption is, paired; 95 % bootstrap over captions. "
            f"Held out: caption texts that no training dataset has; {artifact.result.get('seen_in_training', 0)} others were left out.",
            "soft",
        ),
        table(["conditioning of", "error", "gain of own caption", "captions"], rows, numeric=(1, 2, 3)),
        source_note(artifact),
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
