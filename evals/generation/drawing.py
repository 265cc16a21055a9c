"""The eval_drawing step: does the exported model draw when it is asked to, only then, and what was asked for?

Input: `export` (with its image decoder), `picture_judge`, the shards. Output: replies.parquet (every prompt and whether it was answered with a signal
block), samples.parquet (every image that was drawn, judged), metrics.parquet and grids.

Prompts: `asked_new_wording` (shapes and colours in requests that no training list has), `asked_trained_wording`, `asked_other` (held-out stamps, in new
wordings), `asked_after_question` (shapes and colours in new wordings, after a question about a test image in the same conversation); `talk` and
`picture_question` ask for no image. A block counts when the model writes all of it by itself. Images come from the model's own
signal tokens through the output projector and the decoder; a request that got no image, or one that cannot be read, counts as wrong. Floor `shuffled`: the
same images judged against another request's concept. Intervals are over whole concepts. The decoder's world is 24 concepts: of `asked_other` only the block
is judged. Test images that the encoder cannot take are left out, and told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.generation.config import DrawingEvalConfig
from evals.generation.drawing_prompts import NEW_REQUESTS, NEW_REQUESTS_OF, TALK
from evals.generation.image_grid import grid_png
from evals.generation.made import drawn, unreadable
from evals.generation.picture_judge import right
from evals.generation.requests import (
    AFTER,
    ASKED,
    JUDGED,
    QUIET,
    WORDED,
    Prompt,
    after_questions,
    answered,
    block_metrics,
    concept_requests,
    image_questions,
    reply,
)
from evals.statistics.intervals import Interval, derangement, mean_interval, paired_interval
from evals.tables import DRAWING_REPLIES, DRAWING_SAMPLES, METRICS, metric_row, rounded, write_table
from infra.step import StepContext
from infra.storage import write_atomic
from mmcore.chat.wordings import REQUESTS
from mmcore.concepts.shape_judge import judged, load_judge
from mmcore.concepts.shapes import COLOURS, CONCEPTS, SHAPES
from mmcore.inference.drawer import Drawer
from mmcore.inference.generator import Generator
from mmcore.runtime.devices import device_for
from mmcore.stores.shards import ShardSet

if TYPE_CHECKING:
    from mmcore.types import Answer

PARTS = ("shape", "colour", "both")
MODALITY = "image"


def run(ctx: StepContext[DrawingEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns recall, precision and the judged shares with their intervals, what is left out, and how many images
    cannot be read."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    generator = Generator.load(ctx.inputs["export"].path, device=device_for(ctx.resources.gpus))
    questions = image_questions(ctx, generator.encode)
    prompts = prompts_of(ctx, questions.prompts)
    answers = answered(ctx, generator, prompts, questions.features)
    replies = [reply(prompt, answer, MODALITY) for prompt, answer in zip(prompts, answers, strict=True)]
    samples, pixels = _drawn(ctx, prompts, answers)
    metrics = block_metrics(config, replies) + image_metrics(config, samples)
    write_table(ctx.output / "replies.parquet", replies, DRAWING_REPLIES)
    write_table(ctx.output / "samples.parquet", samples, DRAWING_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    for name in dict.fromkeys(row["made_as"] for row in samples):
        write_atomic(ctx.output / f"{name}.png", _grid(name, samples, pixels))
    shown = {f"{row['condition']} {row['metric']} {row['subgroup']}": rounded(row) for row in metrics}
    made = (row["condition"] for row in replies if row["emitted"] and row["condition"] in JUDGED)
    lost = unreadable(made, (row["made_as"] for row in samples if row["drawn"]))
    counts = {name: sum(prompt.condition == name for prompt in prompts) for name in (*ASKED, *QUIET)}
    return {"prompts": counts, "unreadable": lost, "left_out": questions.left_out, **shown}


# ---- prompts --------------------------------------------------------------------------------------------------------


def prompts_of(ctx: StepContext[DrawingEvalConfig], questions: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt, in order. questions: about images."""

    config = ctx.config
    found: list[Prompt] = []
    for name, wordings in zip(WORDED, (NEW_REQUESTS, tuple(wording.format("a {c} {s}") for wording in REQUESTS[MODALITY])), strict=True):
        found += concept_requests(name, wordings, config.draws, config.seed)
    found += [Prompt(condition="asked_other", text=NEW_REQUESTS_OF[i % len(NEW_REQUESTS_OF)].format(caption)) for i, caption in enumerate(_other_captions(ctx))]
    found += [Prompt(condition="talk", text=text) for text in TALK]
    return [*found, *questions, *after_questions(concept_requests(AFTER, NEW_REQUESTS, 1, config.seed), questions)]


def _other_captions(ctx: StepContext[DrawingEvalConfig]) -> list[str]:
    """A seeded draw of held-out captions of few words, as they stand in a sentence."""

    config = ctx.config
    shards = ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores)
    texts = sorted({text for meta in shards.metas(sorted(shards.keys(source=config.others_source))) for text in meta["texts"][:1]})
    short = [text.strip().rstrip(".!").strip() for text in texts if len(text.split()) <= config.others_max_words]
    short = [text[:1].lower() + text[1:] for text in short]
    picks = np.random.default_rng(config.seed).permutation(len(short))[: config.others]
    return [short[i] for i in sorted(picks.tolist())]


# ---- images -------------------------------------------------------------------------------------------------------


def _drawn(ctx: StepContext[DrawingEvalConfig], prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """(rows of DRAWING_SAMPLES, uint8 images [N, 3, H, W] in the same order; a request without an image that can be read has
    a white one)."""
    import torch

    config = ctx.config
    chosen = [i for i, prompt in enumerate(prompts) if prompt.condition in JUDGED]
    blocks = {i: [block for block in answers[i].blocks if block.modality == MODALITY] for i in chosen}
    drawer = Drawer(ctx.inputs["export"].path, device_for(ctx.resources.gpus))
    made: dict[int, np.ndarray] = {}
    ready = [i for i in chosen if blocks[i]]
    for start in range(0, len(ready), config.batch):
        chunk = ready[start : start + config.batch]
        media = drawn(lambda numbers: drawer.draw([blocks[i][0] for i in numbers], [config.seed + i for i in numbers]), chunk)
        made |= {i: medium.data for i, medium in zip(chunk, media, strict=True) if medium is not None}
        ctx.progress(start + len(chunk), len(ready), "images drawn")
    side = next(iter(made.values())).shape[0] if made else 32
    pixels = np.stack([made.get(i, np.full((side, side, 3), 255, np.uint8)) for i in chosen]).transpose(0, 3, 1, 2)
    judge = load_judge(ctx.inputs["picture_judge"].path)
    seen = judged(judge, torch.from_numpy(pixels.copy()).float() / 255)
    concepts = np.array([prompts[i].concept for i in chosen])
    there = np.array([float(i in made) for i in chosen])
    scores = {part: values * there for part, values in right(concepts, *seen).items()}
    other: dict[int, int] = {}
    for name in JUDGED:
        places = [k for k, i in enumerate(chosen) if prompts[i].condition == name]
        order = derangement([(str(concepts[k]),) for k in places], config.seed)
        other |= {k: int(concepts[places[order[n]]]) for n, k in enumerate(places)}
    shuffled = {part: values * there for part, values in right(np.array([other[k] for k in range(len(chosen))]), *seen).items()}
    rows = [
        {
            "made_as": prompts[i].condition,
            "prompt": prompts[i].text,
            "concept": CONCEPTS[prompts[i].concept].caption,
            "other_concept": CONCEPTS[other[k]].caption,
            "drawn": there[k],
            "seen_shape": SHAPES[seen[0][k]] if there[k] else "",
            "seen_colour": COLOURS[seen[1][k]] if there[k] else "",
            **{part: float(scores[part][k]) for part in PARTS},
            **{f"{part}_of_other": float(shuffled[part][k]) for part in PARTS},
        }
        for k, i in enumerate(chosen)
    ]
    return rows, pixels


def _grid(name: str, samples: Sequence[Mapping[str, Any]], pixels: np.ndarray) -> bytes:
    """A row for each colour, the draws of its three shapes side by side."""

    rows = [k for k, sample in enumerate(samples) if sample["made_as"] == name]
    draws = len(rows) // len(CONCEPTS)
    labels = [(number * draws, shape) for number, shape in enumerate(SHAPES)]
    return grid_png(pixels[rows], [samples[k]["both"] == 1 for k in rows], len(SHAPES) * draws, COLOURS, labels)


# ---- metrics --------------------------------------------------------------------------------------------------------


def image_metrics(config: DrawingEvalConfig, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """judged_right by part: each condition, the same images against another request's concept, the paired difference, and exact chance."""

    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    rows = []
    for part, kinds in zip(PARTS, (SHAPES, COLOURS, CONCEPTS), strict=True):
        named = {"metric": "judged_right", "subgroup": part}
        for name in JUDGED:
            mine = [sample for sample in samples if sample["made_as"] == name]
            if not mine:
                continue
            clusters = [sample["concept"] for sample in mine]
            own, other = [sample[part] for sample in mine], [sample[f"{part}_of_other"] for sample in mine]
            rows.append(metric_row(mean_interval(own, clusters, proportion=True, **options), condition=name, kind="score", **named))
            rows.append(metric_row(mean_interval(other, clusters, proportion=True, **options), condition=f"{name}, shuffled", kind="floor", **named))
            rows.append(
                metric_row(paired_interval(own, other, clusters, proportion=True, **options), condition=f"{name} - shuffled", kind="difference", **named)
            )
        chance = 1 / len(kinds)
        exact = Interval(value=chance, ci_lo=chance, ci_hi=chance, stderr=0.0, n=len(samples), clusters=len(CONCEPTS))
        rows.append(metric_row(exact, condition="chance", kind="floor", **named))
    return rows
