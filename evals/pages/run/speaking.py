"""The report's section on spoken answers: when the model speaks, what a judge heard, and audio clips to listen to.

Input: the eval_speaking artifact. Output: HTML that loads nothing. The audio clips are the seeded draws that the step kept, failures included.
"""

from __future__ import annotations

import base64
from html import escape

import pyarrow.parquet as pq

from evals.pages.page import left_out_note, metrics_of, paragraph, section, source_note, table, unreadable_note
from evals.pages.run.context import RunPage
from evals.pages.run.images import interval_cell
from infra.step import Artifact

WORD_ROWS = {
    "asked_new_wording": "asked for in new wordings",
    "asked_trained_wording": "asked for in trained wordings",
    "asked_after_question": "asked for in new wordings, after a question about an image",
    "asked_new_wording, shuffled": "the same audio clips against another request (floor)",
    "voice": "the voice itself, from the text (upper limit)",
}
BLOCK_ROWS = {
    ("asked", "audio"): "asked for an audio clip, all: an audio clip (recall)",
    ("asked_new_wording", "audio"): "new wordings: an audio clip",
    ("asked_trained_wording", "audio"): "trained wordings: an audio clip",
    ("asked_after_question", "audio"): "new wordings, after a question about an image: an audio clip",
    ("asked", "image"): "asked for an audio clip, all: an image",
    ("not_asked", "audio"): "not asked for an audio clip, all: an audio clip (false alarms)",
    ("talk", "audio"): "ordinary talk: an audio clip",
    ("picture_question", "audio"): "questions about an image: an audio clip",
    ("asked_for_a_picture", "audio"): "asked for an image: an audio clip",
    ("asked_for_a_picture", "image"): "asked for an image: an image",
}


def speaking_section(page: RunPage, artifact: Artifact) -> str:
    """The section."""
    at = {(m["condition"], m["metric"], m["subgroup"]): m for m in metrics_of(artifact)}
    chosen = [(label, at[name, "emits_block", modality]) for (name, modality), label in BLOCK_ROWS.items() if (name, "emits_block", modality) in at]
    if ("all", "precision", "audio") in at:
        chosen.append(("of the replies with an audio clip, asked for (precision)", at["all", "precision", "audio"]))
    chosen.append(("replies with a broken block", at["all", "broken_block", "audio"]))
    blocks = [[label, interval_cell(metric), f"{metric['n']:,}"] for label, metric in chosen]
    words = []
    for name, label in WORD_ROWS.items():
        if (name, "heard_right", "both") not in at:
            continue
        found = [at[name, "heard_right", word] for word in ("shape", "colour", "both")]
        words.append([label, *map(interval_cell, found), f"{found[0]['n']:,}"])
    return section(
        "The whole model: does it speak when asked, only then, and say the right words?",
        paragraph(
            "Requests go through the language model, its signal tokens, the output projector and the frozen audio half of a Piper voice. Whisper tiny.en, "
            "trained on nothing of this, writes down what it hears; a word is right when it stands there, and a request without an audio clip counts as wrong. "
            "The spoken world are 24 concepts, all of them in training: only the wording of the requests is new. 95 % intervals over prompts, and over "
            "concepts for the words.",
            "soft",
        ),
        table(["prompts", "share of the replies", "prompts"], blocks, numeric=(1, 2)),
        table(["audio clips", "shape heard", "colour heard", "both", "requests"], words, numeric=(1, 2, 3, 4)),
        _players(artifact),
        left_out_note(artifact),
        unreadable_note(artifact),
        source_note(artifact),
    )


def _players(artifact: Artifact) -> str:
    """A table of the kept audio clips: what was asked, a player, what was heard."""
    rows = []
    for sample in pq.read_table(artifact.path / "samples.parquet").to_pylist():
        if sample["sound"]:
            data = base64.b64encode((artifact.path / sample["sound"]).read_bytes()).decode()
            player = f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'
            rows.append([escape(sample["prompt"]), player, escape(sample["heard"]), "right" if sample["both"] else "wrong"])
    return table(["asked (seeded draws)", "audio", "the judge heard", ""], rows) if rows else ""
