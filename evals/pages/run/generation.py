"""The report's sections on generation: what was made of requests, with a gallery; captions of media; objects that are not there.

Input: the artifacts eval_generation, eval_captioning and eval_objects_as_pope. Output: HTML that loads nothing. The media and captions are the seeded draws
that the steps marked, failures included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evals.pages.gallery import STYLE, Shown, preview
from evals.pages.page import metrics_of, paragraph, section, signed, source_note, table, unread_note, unreadable_note
from evals.pages.run.context import RunPage
from evals.pages.run.images import interval_cell
from infra.step import Artifact

MEDIA_METRICS = {
    "emits_block": "answered with a medium",
    "judged_right": "judged right",
    "clipscore": "CLIPScore",
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
}
CAPTION_METRICS = ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "spice", "spider")
CHAIR_METRICS = {"chair_i": "named objects that are not there", "chair_s": "captions with one", "object_recall": "of what is there, named"}
POPE_METRICS = ("accuracy", "precision", "recall", "f1", "yes_rate", "hallucination_rate", "unparsed_rate")
At = Mapping[tuple[str, str, str], dict[str, Any]]
"""(condition, metric, subgroup) -> its row of metrics."""


def _at(artifact: Artifact) -> At:
    return {(m["condition"], m["metric"], m["subgroup"]): m for m in metrics_of(artifact)}


def _names(at: At, place: int, metrics: Sequence[str]) -> list[str]:
    """Conditions (place 0) or subgroups (2) that have one of the metrics, in order."""
    return list(dict.fromkeys(key[place] for key in at if key[1] in metrics))


def _not_scored(artifact: Artifact) -> str:
    """What has no number, and why."""
    found = dict(artifact.result.get("not_scored") or {})
    if not found:
        return ""
    items = "".join(f"<li>{escape(what)}: {escape(str(why))}</li>" for what, why in found.items())
    return f"<p class='soft'>Not scored:</p><ul class='small'>{items}</ul>"


# ---- media ----------------------------------------------------------------------------------------------------------


def media_section(page: RunPage, artifact: Artifact) -> str:
    """Scores of made media, and the gallery."""
    at = _at(artifact)
    parts = []
    for modality in _names(at, 2, tuple(MEDIA_METRICS)):
        metrics = [metric for metric in MEDIA_METRICS if any(key[1] == metric and key[2] == modality for key in at)]
        rows = []
        for condition in _names(at, 0, metrics):
            cells = [_media_cell(at.get((condition, metric, modality))) for metric in metrics]
            if any(cells):
                rows.append([escape(condition), *cells])
        parts.append(table([f"{modality}: suite", *(MEDIA_METRICS[metric] for metric in metrics)], rows, numeric=range(1, len(metrics) + 1)))
    details = pq.read_table(artifact.path / "details.parquet").to_pylist()
    behind = {(row["extractor"], row["extractor_sha256"][:12], row["reference"], row["reference_sha256"][:12], row["n_reference"]) for row in details}
    known = [[escape(name), f"<code>{digest}</code>", escape(of), f"<code>{sha256}</code>", f"{n:,}"] for name, digest, of, sha256, n in sorted(behind) if name]
    return section(
        "Generation: what becomes of a request for a medium",
        paragraph(
            "Requests in wordings that no training list has go through the language model, its signal tokens, the output projector and the decoder. held_out: "
            "captions of held-out media; concepts: the 24 of the small world; forced: the signal block is put behind the request. shuffled: the same media "
            "against another request; scrambled: their pixels or samples in a random order; real: real media among themselves, in the number that was made. "
            "The distances are the formulas of FID, FAD and KID on the recipe's own encoder, so they compare runs of this recipe and not papers; the Fréchet "
            "distance is biased upwards at small numbers, the kernel distance is not. 95 % intervals over prompts (jackknife for distances); n in brackets.",
            "soft",
        ),
        *parts,
        table(["extractor", "weights", "reference", "its bytes", "media"], known, numeric=(4,)) if known else "",
        unreadable_note(artifact),
        _not_scored(artifact),
        gallery(artifact),
        source_note(artifact),
    )


def _media_cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric["kind"] == "difference":
        return signed(metric["value"], metric["ci_lo"], metric["ci_hi"])
    return f"{interval_cell(metric)} <span class='ci'>({metric['n']})</span>"


def gallery(artifact: Artifact) -> str:
    """A card for each seeded draw: the medium or that there is none, what was asked, what was said and what a judge saw."""
    rows = [row for row in pq.read_table(artifact.path / "samples.parquet").to_pylist() if row["shown"]]
    parts = []
    for suite, how, modality in dict.fromkeys((row["suite"], row["how"], row["modality"]) for row in rows):
        cards = "".join(_card(artifact, row) for row in rows if (row["suite"], row["how"], row["modality"]) == (suite, how, modality))
        parts.append(f"<h3>{escape(modality)}, {escape(suite)}, {escape(how)}: seeded draws</h3><div class='cards'>{cards}</div>")
    return STYLE + "".join(parts) if parts else ""


def _card(artifact: Artifact, row: Mapping[str, Any]) -> str:
    if row["file"]:
        data = (artifact.path / row["file"]).read_bytes()
        shown = preview(Shown(key=row["file"], modality=row["modality"], caption=row["caption"], score=0.0, data=data))
    else:
        shown = f"<p class='audio soft'>no medium{': ' + escape(row['broken']) if row['broken'] else ''}</p>"
    said = f"said: {escape(row['text'][:120])}<br>" if row["text"] else ""
    seen = f"judge: {escape(row['seen'])} ({'right' if row['right'] else 'wrong'})<br>" if row["right"] is not None else ""
    near = f"CLIPScore {row['clipscore']:.2f}<br>" if row["clipscore"] is not None else ""
    return f"<div class='card'>{shown}<div><b>{escape(row['prompt'])}</b>{said}{seen}{near}</div></div>"


# ---- captions -------------------------------------------------------------------------------------------------------


def captions_section(page: RunPage, artifact: Artifact, examples: int = 12, seed: int = 0) -> str:
    """Scores of captions, CHAIR, and seeded draws of captions."""
    at = _at(artifact)
    metrics = [metric for metric in CAPTION_METRICS if any(key[1] == metric for key in at)]
    rows = []
    for source in _names(at, 2, metrics):
        for condition in _names(at, 0, metrics):
            cells = [_media_cell(at.get((condition, metric, source))) for metric in metrics]
            if any(cells):
                rows.append([escape(source), escape(condition), *cells])
    chair = []
    for task in _names(at, 2, ("chair_s",)):
        for condition in _names(at, 0, ("chair_s",)):
            chair.append([escape(task), escape(condition), *(_media_cell(at.get((condition, metric, task))) for metric in CHAIR_METRICS)])
    samples = pq.read_table(artifact.path / "samples.parquet").to_pylist()
    picks = sorted(np.random.default_rng(seed).permutation(len(samples))[:examples].tolist())
    drawn = [
        [escape(row["source"]), escape(row["references"][0]), escape(row["generated"]) or "<i>nothing</i>", f"{row['cider']:.2f}"]
        for row in (samples[i] for i in picks)
    ]
    return section(
        "Captions of held-out media, and objects that are not there",
        paragraph(
            f"The model's own captions against those of the lists, by {artifact.result.get('harness', 'pycocoevalcap')} with the tokenizer "
            f"{artifact.result.get('tokenizer', '')}: scores of two tokenizers do not compare. shuffled: the same captions against another medium's. CIDEr "
            "runs to 10, the others to 1. CHAIR counts object words that the image is not known to show; easyvqa_chair and stamps_chair are not the COCO "
            "benchmark, and a stamp is known by the one thing that its caption names. 95 % intervals over media; n in brackets.",
            "soft",
        ),
        table(["dataset", "captions", *metrics], rows, numeric=range(2, len(metrics) + 2)),
        table(["task", "captions", *CHAIR_METRICS.values()], chair, numeric=(2, 3, 4)) if chair else "",
        table(["dataset (seeded draws)", "reference", "the model says", "CIDEr"], drawn, numeric=(3,)) if drawn else "",
        _not_scored(artifact),
        source_note(artifact),
    )


# ---- yes and no -----------------------------------------------------------------------------------------------------


def pope_section(page: RunPage, artifact: Artifact) -> str:
    """Rates of yes and no."""
    at = _at(artifact)
    rows = []
    for task in [name for name in _names(at, 2, ("accuracy",)) if name != "all"]:
        for condition in _names(at, 0, ("accuracy",)):
            cells = [_media_cell(at.get((condition, metric, task))) for metric in POPE_METRICS]
            if any(cells):
                rows.append([escape(task), escape(condition), *cells])
    return section(
        "Is it there? Yes/no questions about objects in an image",
        paragraph(
            "As many present as absent objects, the absent ones chosen as POPE does: random, popular (the most frequent) or adversarial (those that stand most "
            "often beside the present ones; only where images show several). Not the POPE benchmark: easyvqa_as_pope asks for shapes and colours, "
            "stamps_as_pope for the thing that a caption names. blank: the same questions about a white image. hallucination_rate: yes to an absent object. "
            "An answer that is neither yes nor no is wrong. 95 % intervals over images; n in brackets.",
            "soft",
        ),
        table(["task", "absent objects", *POPE_METRICS], rows, numeric=range(2, len(POPE_METRICS) + 2)),
        unread_note(artifact),
        source_note(artifact),
    )
