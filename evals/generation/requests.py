"""Requests to a whole exported model: prompts, its answers, and what counts as a medium given.

Owns what eval_drawing and eval_speaking share. Input: a Generator, prompts, the images that questions are about; output: answers, rows of replies and the
metrics of their signal blocks. A block counts when the model writes all of it by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evals.generation.config import DrawingEvalConfig, SpeakingEvalConfig
from evals.records import asked_records, attempt
from evals.statistics.intervals import mean_interval
from evals.tables import metric_row
from infra.step import StepContext, about
from mmcore.concepts.shapes import CONCEPTS
from mmcore.stores.left_out import LeftOut, summarize
from mmcore.stores.shards import ShardSet
from mmcore.types import Question

if TYPE_CHECKING:
    from mmcore.types import Answer

WORDED, AFTER = ("asked_new_wording", "asked_trained_wording"), "asked_after_question"
JUDGED = (*WORDED, AFTER)
ASKED = (*JUDGED, "asked_other")
QUIET = ("talk", "picture_question")


class Intervals(Protocol):
    """The part of a config that bootstraps need."""

    @property
    def bootstrap_draws(self) -> int: ...
    @property
    def bootstrap_seed(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One thing said to the model."""

    condition: str
    text: str
    concept: int = -1
    """Place in CONCEPTS; -1: none is judged."""
    media_key: str = ""
    """Image that the question is about."""
    before: str = ""
    """Question about that image which is asked, and answered by the model, before the text is said; "" for a text that begins the conversation."""


def concept_requests(condition: str, wordings: Sequence[str], draws: int, seed: int) -> list[Prompt]:
    """`draws` requests for every concept. They take the wordings in turn, from a seeded beginning, so that each comes up equally often."""

    numbers = np.repeat(np.arange(len(CONCEPTS)), draws)
    order = np.random.default_rng(seed).permutation(len(numbers)) % len(wordings)
    pairs = zip(numbers, order, strict=True)
    return [Prompt(condition=condition, text=CONCEPTS[number].worded(wordings[which]), concept=int(number)) for number, which in pairs]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageQuestions:
    """A draw of questions about images."""

    prompts: list[Prompt]
    features: dict[str, np.ndarray]
    """Of their images [N, E], by sample key."""
    left_out: list[str]
    """What cannot be asked, told in lines."""


def image_questions(ctx: StepContext[DrawingEvalConfig | SpeakingEvalConfig], encode: Callable[[str, bytes], np.ndarray]) -> ImageQuestions:
    """The first question of each of a seeded draw (config.questions, seed) of the test images of config.questions_source, which `encode` of the export takes.

    Records that ask nothing about an image are not drawn; one whose image the encoder cannot take is drawn and left out. Both are told.
    """
    generation, source = ctx.inputs["shards_instruct"].path, ctx.config.questions_source
    shards = ShardSet(generation, ctx.stores)
    own = set(shards.keys(source=source))
    found, unasked = asked_records(generation, ctx.stores, source, "image")
    records = sorted((record for record in found if record.key in own), key=lambda record: record.key)
    picks = np.random.default_rng(ctx.config.seed).permutation(len(records))[: ctx.config.questions]
    prompts, features, refused = [], {}, []
    for record in (records[i] for i in sorted(picks.tolist())):
        with about(record.key):
            array, refusal = attempt(partial(encode, "image", shards.media(record.key)))
        if refusal is not None:
            refused.append(LeftOut(key=record.key, reason=refusal.reason, detail=refusal.detail))
            continue
        features[record.key] = array
        prompts.append(Prompt(condition="picture_question", text=record.pairs[0][0], media_key=record.key))
    lines = summarize(unasked, len(found) + len(unasked), f"records of {source} are not drawn")
    return ImageQuestions(prompts=prompts, features=features, left_out=lines + summarize(refused, len(picks), f"drawn records of {source} are not asked"))


def after_questions(requests: Sequence[Prompt], questions: Sequence[Prompt]) -> list[Prompt]:
    """The requests, each at the end of a conversation that begins with one of the questions about an image."""
    pairs = zip(requests, (questions[i % len(questions)] for i in range(len(requests))), strict=True) if questions else ()
    return [replace(asked, condition=AFTER, media_key=question.media_key, before=question.text) for asked, question in pairs]


def answered(
    ctx: StepContext[DrawingEvalConfig | SpeakingEvalConfig], generator: Any, prompts: Sequence[Prompt], features: Mapping[str, np.ndarray]
) -> list[Answer]:
    """Greedy answers in the order of the prompts. features: of the images that they are about, by sample key.

    Blocks are not completed. Texts that begin a conversation, and those after a question, config.chunk together.
    """

    limit = ctx.config.max_new_tokens
    items: list[Question] = []
    answers: dict[int, Answer] = {}
    for prompt in prompts:
        shown: dict[str, Any] = {}
        if prompt.media_key:
            shown = {"media_key": prompt.media_key, "modality": "image", "features_NE": features[prompt.media_key]}
        items.append(Question(text=prompt.before or prompt.text, **shown))
    for later in (False, True):
        numbers = [number for number, prompt in enumerate(prompts) if bool(prompt.before) == later]
        for start in range(0, len(numbers), ctx.config.chunk):
            chunk = numbers[start : start + ctx.config.chunk]
            asked = [items[number] for number in chunk]
            if later:
                found = generator.follow_up(asked, [prompts[number].text for number in chunk], max_new_tokens=limit, complete_blocks=False)
            else:
                found = generator.answer(asked, max_new_tokens=limit, complete_blocks=False)
            answers |= dict(zip(chunk, found, strict=True))
            ctx.progress(len(answers), len(prompts), "prompts answered")
    return [answers[number] for number in range(len(prompts))]


def reply(prompt: Prompt, answer: Answer, modality: str) -> dict[str, Any]:
    """A row of DRAWING_REPLIES: what the answer holds of a modality."""
    blocks = sum(block.modality == modality for block in answer.blocks)
    return {
        "condition": prompt.condition,
        "prompt": prompt.text,
        "text": answer.text,
        "blocks": blocks,
        "broken": "; ".join(answer.broken),
        "emitted": float(blocks > 0),
    }


def block_metrics(
    config: Intervals, replies: Sequence[Mapping[str, Any]], asked: Sequence[str] = ASKED, quiet: Sequence[str] = QUIET, modality: str = "image"
) -> list[dict[str, Any]]:
    """emits_block per condition (of those asked: recall), broken_block over all, and precision: the share of the replies with a block that were asked."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed, "proportion": True}
    rows = []
    for name, chosen in {**{name: (name,) for name in (*asked, *quiet)}, "asked": asked, "not_asked": quiet}.items():
        mine = [row for row in replies if row["condition"] in chosen]
        if mine:
            interval = mean_interval([row["emitted"] for row in mine], [row["prompt"] for row in mine], **options)
            rows.append(metric_row(interval, condition=name, metric="emits_block", subgroup=modality, kind="score"))
    broken = mean_interval([float(bool(row["broken"])) for row in replies], [row["prompt"] for row in replies], **options)
    rows.append(metric_row(broken, condition="all", metric="broken_block", subgroup=modality, kind="score"))
    gave = [row for row in replies if row["emitted"]]
    if gave:
        precise = mean_interval([float(row["condition"] in asked) for row in gave], [row["prompt"] for row in gave], **options)
        rows.append(metric_row(precise, condition="all", metric="precision", subgroup=modality, kind="score"))
    return rows
