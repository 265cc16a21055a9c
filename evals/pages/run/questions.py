"""Report sections about image questions: headline, question types, conditions, disclosure, samples.

Owns how question scores are told. Input: the artifacts eval_vqa (images too) and stage3 (what helped in training). Output: HTML of
sections. Samples are never chosen by their outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evals.config import ReportConfig
from evals.pages.charts import Dot, interval_chart
from evals.pages.page import Rows, bracketed, image_of, left_out_note, metrics_of, paragraph, percent, section, signed, source_note, table, unread_note
from evals.pages.run.context import RunPage
from infra.step import Artifact
from infra.storage import read_json

NAMES = {
    "helped": "helped",
    "plain_prompt": "plain prompt",
    "blank": "blank image",
    "shuffled": "shuffled image",
    "always_yes": "always “yes”",
    "blind_majority": "blind majority",
}

MEANING = {
    "helped": "the right image; the model writes a caption first, then answers",
    "plain_prompt": "the right image; the question alone",
    "blank": "a white image instead, otherwise asked as the headline",
    "shuffled": "another image of the test instead, otherwise asked as the headline",
    "always_yes": "no model: always “yes”",
    "blind_majority": "no image: the most frequent training answer to the same question text",
}

STAND_IN = (
    "The questions are {questions}, in the column layout of VQAv2, so that the official VQAv2 scorer runs on them unchanged. "
    "They are not VQAv2: the score says nothing about that benchmark."
)

TONE = {"helped": "model", "plain_prompt": "model", "blank": "control", "shuffled": "control"}

At = Mapping[tuple[str, str], dict[str, Any]]
"""(condition, subgroup) -> its row of metrics."""


def questions_section(page: RunPage, artifact: Artifact) -> str:
    """The sections about question answering."""
    metrics = metrics_of(artifact)
    samples: Rows = pq.read_table(artifact.path / "samples.parquet").to_pylist()
    order = [name for name in NAMES if any(m["condition"] == name for m in metrics)]
    at = {(m["condition"], m["subgroup"]): m for m in metrics}
    parts = (
        _headline(page.config, artifact, at, order, metrics),
        _by_type(at, order),
        _conditions(at, order, metrics, order[0]),
        _disclosure(page.inputs, order[0], artifact),
        _samples(page.config, artifact, [s for s in samples if s["run_condition"] == order[0]], order[0]),
    )
    return "\n".join(part for part in parts if part)


def _dots(at: At, order: Sequence[str], subgroup: str) -> list[Dot]:
    return [
        Dot(label=NAMES[name], value=m["value"], lo=m["ci_lo"], hi=m["ci_hi"], tone=TONE.get(name, "floor"), note=f"n {m['n']}")
        for name in order
        if (m := at.get((name, subgroup)))
    ]


def _key(order: Sequence[str]) -> str:
    """Legend of the tones that `order` shows."""
    texts = {"model": "model, right image", "control": "model, wrong image", "floor": "no image, no model"}
    shown = {TONE.get(name, "floor") for name in order}
    return '<div class="key">' + "".join(f'<span><i class="{tone}"></i>{text}</span>' for tone, text in texts.items() if tone in shown) + "</div>"


def _headline(config: ReportConfig, artifact: Artifact, at: At, order: Sequence[str], metrics: Rows) -> str:
    best = at[order[0], "all"]
    gain = next((m for m in metrics if m["condition"] == f"{order[0]} - blind_majority" and m["subgroup"] == "all"), None)
    over = ""
    if gain:
        points = signed(gain["value"], gain["ci_lo"], gain["ci_hi"], 100, 1)
        over = f"<p>{points} points over the best answer without the image (blind majority; paired).</p>"
    left = (
        f'<div><div class="big">{100 * best["value"]:.1f}<span> %</span></div>'
        f'<p class="soft">95 % interval {bracketed(best["ci_lo"], best["ci_hi"], 100, ".1f")}<br>'
        f"{best['n']:,} questions, {best['clusters']:,} images<br>asked: {escape(NAMES[order[0]])}</p></div>"
    )
    keep = [name for name in order if name in (order[0], "plain_prompt", "always_yes", "blind_majority")]
    chart = interval_chart(_dots(at, keep, "all"), width=560, lo=0, hi=1, percent=True, title="accuracy and floors, per cent")
    task, harness = escape(str(artifact.result.get("lmms_task", "vqa"))), escape(str(artifact.result.get("harness", "lmms-eval")))
    return section(
        f"Image questions: {artifact.result.get('lmms_task', 'accuracy')}",
        f'<div class="headline">{left}<div>{_key(keep)}{chart}</div></div>',
        over,
        paragraph(STAND_IN.format(questions=config.questions_are), "small"),
        f"<p class='small'>Scored by {harness}, task <code>{task}</code>, metric exact_match (VQA accuracy). Intervals: 95 % over images, "
        "because questions about one image are not independent.</p>",
        unread_note(artifact),
        left_out_note(artifact),
        source_note(artifact),
    )


def _by_type(at: At, order: Sequence[str]) -> str:
    groups = list(dict.fromkeys(subgroup for _, subgroup in at))
    rows = []
    for name in order:
        cells = [f"{percent(m['value'], m['ci_lo'], m['ci_hi'])}" if (m := at.get((name, group))) else "" for group in groups]
        rows.append([escape(NAMES[name]), *cells])
    counts = ["questions", *(f"{at[order[0], group]['n']:,}" for group in groups)]
    charts = ""
    for group in groups:
        if group != "all":
            chart = interval_chart(_dots(at, order, group), width=300, label_width=112, lo=0, hi=1, percent=True, title=f"accuracy on {group}")
            charts += f"<div><h3>{escape(group)}</h3>{chart}</div>"
    css = ["" if name in TONE else "floor" for name in order]
    return section(
        "By question type",
        paragraph("Accuracy in per cent with its 95 % interval. “All” alone can hide a type that never left its floor.", "soft"),
        table(["asked", *groups], [*rows, counts], numeric=range(1, len(groups) + 1), row_css=[*css, "floor"]),
        _key(order),
        f'<div class="grid3">{charts}</div>',
    )


def _conditions(at: At, order: Sequence[str], metrics: Rows, headline: str) -> str:
    gains = {m["condition"].removeprefix(f"{headline} - "): m for m in metrics if m["kind"] == "difference" and m["subgroup"] == "all"}
    rows = [
        [
            escape(NAMES[name]),
            escape(MEANING[name]),
            percent(m["value"], m["ci_lo"], m["ci_hi"]),
            signed(g["value"], g["ci_lo"], g["ci_hi"], 100, 1) if (g := gains.get(name)) else "",
        ]
        for name in order
        for m in [at[name, "all"]]
    ]
    return section(
        "Does it look at the image?",
        paragraph(
            "A model that reads the image falls to the floors when the image is taken away. Last column: headline minus this row on the same questions, "
            "in points, paired.",
            "soft",
        ),
        table(
            ["asked", "what the model is given", "accuracy %", "headline minus this"],
            rows,
            numeric=(2, 3),
            row_css=["" if name in TONE else "floor" for name in order],
        ),
    )


def _disclosure(inputs: Mapping[str, Artifact], headline: str, artifact: Artifact) -> str:
    """What helps at test time and in training."""
    items = []
    if headline == "helped":
        items.append(
            "At test time the model first writes its own caption of the image, then answers with that caption in view. "
            "The row “plain prompt” is the score of the same weights without it."
        )
    else:
        items.append("Nothing helps at test time: the model gets the image and the question.")
    stage3 = inputs.get("stage3")
    config = read_json(stage3.path / "stage.json").get("config", {}) if stage3 and (stage3.path / "stage.json").exists() else {}
    config = config.get("stage", config) if isinstance(config.get("stage"), dict) else config
    if config.get("caption_turn"):
        items.append("In training a true caption stood before the questions of an image.")
    if config.get("balance_answers"):
        items.append("In training, yes/no questions were weighted by 0.5 / P(answer | question text), so that the blind answer earns nothing.")
    items.append("The model is asked the bare question, as in its training; other models get the prompt that the benchmark's task file brings.")
    items.append(f"Questions asked: {artifact.result.get('questions', 'see above')}, drawn from the test list with the seed of the evaluation config.")
    return section("What helps, disclosed", "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")


def _images(artifact: Artifact, samples: Rows) -> dict[int, bytes]:
    """Question number -> its image, from the task file of the evaluation; none for an evaluation without one."""
    path = artifact.path / "task" / f"{artifact.result.get('lmms_task', '')}.parquet"
    if not path.is_file():
        return {}
    wanted = [("question_id", "in", [sample["question_id"] for sample in samples])]
    rows = pq.read_table(path, columns=["question_id", "image"], filters=wanted).to_pylist()
    return {row["question_id"]: row["image"]["bytes"] for row in rows}


def _samples(config: ReportConfig, artifact: Artifact, samples: Rows, headline: str) -> str:
    if not samples or config.num_samples < 1:
        return ""
    count = min(config.num_samples, len(samples))
    picks = sorted(int(i) for i in np.random.default_rng(config.seed).choice(len(samples), size=count, replace=False))
    cards = []
    images = _images(artifact, [samples[i] for i in picks])
    for sample in (samples[i] for i in picks):
        image = image_of(images.get(sample["question_id"]), f"image of {sample['doc_key']}")
        verdict = _verdict(sample["score"])
        caption = f'<br><span class="soft">its caption: {escape(sample["caption"])}</span>' if sample["caption"] else ""
        cards.append(
            f'<div class="card">{image}<div><b>{escape(sample["question"])}</b>answer: {escape(sample["prediction"])}<br>'
            f'truth: {escape(sample["target"])} · {verdict}{caption}<br><code class="soft">{escape(sample["doc_key"])}</code></div></div>'
        )
    drawn = f"{count} of {len(samples):,} questions, drawn at random with seed {config.seed}, failures included ({NAMES[headline]}). Not chosen by hand."
    return section("Samples", paragraph(drawn, "soft"), f'<div class="cards">{"".join(cards)}</div>')


def _verdict(score: float) -> str:
    if score >= 1:
        return '<span class="ok">✓ right</span>'
    return '<span class="no">✗ wrong</span>' if score == 0 else f'<span class="no">partly right ({score:.2f})</span>'
