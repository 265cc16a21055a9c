"""The report's section on questions about videos and audio clips: accuracy by kind of question, under every condition and beside its floor.

Input: the eval_media_questions artifact. Output: HTML.
"""

from __future__ import annotations

from evals.pages.page import left_out_note, metrics_of, paragraph, percent, section, signed, source_note, table, unread_note
from evals.pages.run.context import RunPage
from infra.step import Artifact

ROWS = {
    "helped": "the right medium, a self-written caption first",
    "plain_prompt": "the right medium, the question alone",
    "blank": "a white video, or silence",
    "shuffled": "another video or audio clip of the list",
    "blind_majority": "no medium, no model: blind majority (floor)",
}
TITLES = {"video": "videos", "audio": "audio clips"}


def media_questions_section(page: RunPage, artifact: Artifact) -> str:
    """The section."""
    metrics = metrics_of(artifact)
    at = {(m["condition"], m["subgroup"]): m for m in metrics}
    headline = str(artifact.result.get("headline") or next(name for name in ROWS if any(m["condition"] == name for m in metrics)))
    parts = []
    for modality in dict.fromkeys(m["subgroup"].split(" ")[0] for m in metrics):
        groups = [modality, *sorted({m["subgroup"] for m in metrics if m["subgroup"].startswith(f"{modality} ")})]
        rows = []
        for name, label in ROWS.items():
            if (name, modality) in at:
                gain = at.get((f"{headline} - {name}", modality))
                cells = [percent(m["value"], m["ci_lo"], m["ci_hi"]) for m in (at[name, group] for group in groups)]
                rows.append([label, *cells, signed(gain["value"], gain["ci_lo"], gain["ci_hi"], 100, 1) if gain else ""])
        counts = ["questions (media)", *(f"{m['n']:,} ({m['clusters']:,})" for m in (at[headline, group] for group in groups)), ""]
        columns = [TITLES.get(modality, modality), "all", *(group.removeprefix(f"{modality} ") for group in groups[1:]), "first row minus this, all"]
        parts.append(table(columns, [*rows, counts], numeric=range(1, len(groups) + 2)))
    return section(
        "Questions about videos and audio clips",
        paragraph(
            "Accuracy in per cent on held-out media, with its 95 % interval over media; an answer counts when it is the true one, word for word. "
            "Every name is asked for as often with yes as with no, in the same words. Held-out names are in no training list, so the kind “name” asks for "
            "words that tuning never taught; “motion” and “language” are answers that only the medium tells.",
            "soft",
        ),
        *parts,
        unread_note(artifact),
        left_out_note(artifact),
        source_note(artifact),
    )
