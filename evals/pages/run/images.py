"""The report's sections on made images: shares judged right beside their floors and ceilings, the grids, and when the model draws at all.

Input: the eval_pictures and eval_drawing artifacts. Output: HTML. A grid holds every draw of its condition.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from evals.pages.page import bracketed, left_out_note, metrics_of, paragraph, section, source_note, table, unreadable_note
from evals.pages.run.context import RunPage
from infra.step import Artifact

ROWS = {
    "new_wording": "words, in wordings that were never trained on",
    "trained_wording": "words, in trained wordings",
    "targets": "the token states that output projectors learn",
    "unrelated": "a prompt that names no shape (floor)",
    "chance": "chance (floor)",
    "real": "real test images (the judge itself)",
    "real_through_vae": "real test images through the autoencoder (ceiling)",
}
GRIDS = {"new_wording": "Every draw in new wordings; green: shape and colour are right", "nearest": "Seeded draws over their nearest training images"}
DRAWN_ROWS = {
    "asked_new_wording": "asked for in new wordings",
    "asked_trained_wording": "asked for in trained wordings",
    "asked_after_question": "asked for in new wordings, after a question about an image",
    "asked_new_wording, shuffled": "the same images against another request (floor)",
    "chance": "chance (floor)",
}
BLOCK_ROWS = {
    "asked": "asked for an image, all (recall)",
    "asked_new_wording": "shapes, new wordings",
    "asked_trained_wording": "shapes, trained wordings",
    "asked_other": "held-out things, new wordings",
    "asked_after_question": "shapes, new wordings, after a question about an image",
    "not_asked": "not asked for one, all (false alarms)",
    "talk": "ordinary talk",
    "picture_question": "questions about an image",
}


def images_section(page: RunPage, artifact: Artifact) -> str:
    """The section."""
    at = {(m["condition"], m["metric"], m["subgroup"]): m for m in metrics_of(artifact)}
    rows: list[list[str]] = []
    for name, label in ROWS.items():
        found = [at[name, "judged_right", part] for part in ("shape", "colour", "both")]
        rows.append([label, *(_cell(m["value"], m["ci_lo"], m["ci_hi"]) for m in found), f"{found[0]['n']:,}"])
    near = at["new_wording", "nearer_than_real", "all"]
    grids = "".join(_figure(artifact, name, label) for name, label in GRIDS.items())
    return section(
        "The image decoder: does it draw what was asked for?",
        paragraph(
            "Shapes and colours of easy-VQA in small crops, a world of 24 concepts. Share of seeded draws in which a classifier, trained on real images that "
            "the decoder has not seen, finds what was asked for; 95 % intervals over concepts. Copies: "
            f"{near['value']:.3f} {bracketed(near['ci_lo'], near['ci_hi'])} of the draws are nearer to a training image than 5 % of real test images are.",
            "soft",
        ),
        table(["made from", "shape", "colour", "both", "images"], rows, numeric=(1, 2, 3, 4)) + grids,
        source_note(artifact),
    )


def drawing_section(page: RunPage, artifact: Artifact) -> str:
    """What the whole model draws, and when."""
    at = {(m["condition"], m["metric"], m["subgroup"]): m for m in metrics_of(artifact)}
    blocks = [[label, *_of(at[name, "emits_block", "image"])] for name, label in BLOCK_ROWS.items() if (name, "emits_block", "image") in at]
    if ("all", "precision", "image") in at:
        blocks.append(["of the replies with an image, asked for (precision)", *_of(at["all", "precision", "image"])])
    blocks.append(["replies with a broken block", *_of(at["all", "broken_block", "image"])])
    judged = []
    for name, label in DRAWN_ROWS.items():
        if (name, "judged_right", "both") not in at:
            continue
        found = [at[name, "judged_right", part] for part in ("shape", "colour", "both")]
        judged.append([label, *map(interval_cell, found), f"{found[0]['n']:,}"])
    return section(
        "The whole model: does it draw when asked, only then, and the right thing?",
        paragraph(
            "Requests go through the language model, its signal tokens, the output projector and the decoder. A reply counts when the model writes the whole "
            "signal block by itself; a request without an image counts as wrong. 95 % intervals over prompts, and over concepts for the images.",
            "soft",
        ),
        table(["prompts", "replies with an image", "prompts"], blocks, numeric=(1, 2)),
        table(["images", "shape", "colour", "both", "requests"], judged, numeric=(1, 2, 3, 4)),
        _figure(artifact, "asked_new_wording", "Every request in new wordings; green: shape and colour are right; white: no image that can be read"),
        left_out_note(artifact),
        unreadable_note(artifact),
        source_note(artifact),
    )


def _of(metric: Mapping[str, Any]) -> tuple[str, str]:
    return interval_cell(metric), f"{metric['n']:,}"


def interval_cell(metric: Mapping[str, Any]) -> str:
    """A value with its interval."""
    return _cell(metric["value"], metric["ci_lo"], metric["ci_hi"])


def _figure(artifact: Artifact, name: str, label: str) -> str:
    data = base64.b64encode((artifact.path / f"{name}.png").read_bytes()).decode()
    return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"><figcaption class="soft">{label}</figcaption></figure>'


def _cell(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low == value == high else f"{value:.3f} {bracketed(low, high)}"
