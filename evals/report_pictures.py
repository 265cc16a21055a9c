"""The report's section on made pictures: shares judged right beside their floors and ceilings, and the grids.

Input: the eval_pictures artifact. Output: HTML. Refuses to choose pictures: a grid holds every draw of its condition.
"""

from __future__ import annotations

import base64

from evals.page import paragraph, section, table
from evals.report_questions import metrics_of, source_note
from infra.step import Artifact

ROWS = {
    "new_wording": "words, in wordings that were never trained on",
    "trained_wording": "words, in trained wordings",
    "targets": "the token states that output projectors learn",
    "unrelated": "a prompt that names no shape (floor)",
    "chance": "chance (floor)",
    "real": "real test pictures (the judge itself)",
    "real_through_vae": "real test pictures through the autoencoder (ceiling)",
}
GRIDS = {"new_wording": "Every draw in new wordings; green: shape and colour are right", "nearest": "Seeded draws over their nearest training pictures"}


def pictures_section(artifact: Artifact | None) -> str:
    """The section; "" without an artifact."""
    if artifact is None:
        return ""
    at = {(m["condition"], m["metric"], m["subgroup"]): m for m in metrics_of(artifact)}
    rows: list[list[str]] = []
    for name, label in ROWS.items():
        found = [at[name, "judged_right", part] for part in ("shape", "colour", "both")]
        rows.append([label, *(_cell(m["value"], m["ci_lo"], m["ci_hi"]) for m in found), f"{found[0]['n']:,}"])
    near = at["new_wording", "nearer_than_real", "all"]
    grids = "".join(
        f'<figure><img alt="{label}" src="data:image/png;base64,{base64.b64encode((artifact.path / f"{name}.png").read_bytes()).decode()}">'
        f'<figcaption class="soft">{label}</figcaption></figure>'
        for name, label in GRIDS.items()
    )
    return section(
        "The picture decoder: does it draw what was asked for?",
        paragraph(
            "Shapes and colours of easy-VQA in small crops, a world of 24 concepts. Share of seeded draws in which a classifier, trained on real pictures that "
            "the decoder has not seen, finds what was asked for; 95 % bootstrap over concepts. Copies: "
            f"{near['value']:.3f} [{near['ci_lo']:.3f}, {near['ci_hi']:.3f}] of the draws are nearer to a training picture than 5 % of real test pictures are.",
            "soft",
        ),
        table(["made from", "shape", "colour", "both", "pictures"], rows, numeric=(1, 2, 3, 4)) + grids,
        source_note(artifact),
    )


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" if low == high else f'{value:.3f} <span class="ci">[{low:.3f}, {high:.3f}]</span>'
