"""The eval_media_questions step: does the exported model answer questions about videos and audio clips that it was never shown?

Owns the held-out questions, the conditions (as eval_vqa has them), what is shown under each, the floor and the intervals. Input: the export and the
shards of the instructions (questions and media), made from the recipe's lists or the user's. Output: samples.parquet (columns of eval_vqa, `picture` being the
medium) and metrics.parquet. Records that cannot be asked are left out with their reasons. Raises AnyloomError when more of them are than config.max_lost.

Media are encoded by the export's own encoders. blank: a white video, or silence; shuffled: another medium of the same list. An answer counts when it is
the true one but for case, spaces and a final period. Floor `blind_majority`: the most frequent training answer to the same words; to words that
training never asks, the most frequent one to that kind of question. Intervals are over whole media. Subgroups: a modality, or a modality and a kind.
Names of the held-out side are in no training list, so `name` asks for words that tuning never taught.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.blank import BLANK, blank_medium
from evals.config import MediaQuestionsEvalConfig
from evals.harness.conditions import CAPTION_TURN, SHOWN, conditions_of, without_shuffled
from evals.left_out import check_left_out
from evals.records import MOST, Record, asked_records, taken
from evals.statistics.intervals import derangement, mean_interval, paired_interval
from evals.tables import METRICS, VQA_SAMPLES, metric_row, rounded, write_table
from infra.step import AnyloomError, StepContext
from mmcore.chat.wordings import kind_of
from mmcore.inference.generator import Generator
from mmcore.runtime.devices import device_for
from mmcore.stores.left_out import summarize
from mmcore.stores.shards import ShardSet
from mmcore.types import Question

if TYPE_CHECKING:
    from mmcore.inference.generator import Generator
    from mmcore.types import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaQuestion:
    """One question about one medium."""

    doc_key: str
    """`<dataset>-<row>#<question>`."""
    question_id: int
    modality: str
    kind: str
    uri: str
    """Of the medium, as the list says it."""
    question: str
    answer: str

    @property
    def subgroup(self) -> str:
        """Its modality and kind."""
        return f"{self.modality} {self.kind}"


def run(ctx: StepContext[MediaQuestionsEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns the accuracies of the first condition with their floors."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    heldout: list[MediaQuestion] = []
    train: list[MediaQuestion] = []
    lines: list[str] = []
    shards = ctx.inputs["shards_instruct"].path
    features = _Features(ctx, Generator.load(ctx.inputs["export"].path, device=device_for(ctx.resources.gpus)))
    for modality, name in config.datasets:
        records, left = asked_records(shards, ctx.stores, name, modality)
        records, refused = taken(records, partial(features.try_out, modality))
        left += refused
        total, what = len(records) + len(left), f"records of {name} are not asked"
        check_left_out(left, total, config.max_lost, what)
        lines += summarize(left, total, what)
        heldout += media_questions(records, modality)
        train += media_questions(asked_records(shards, ctx.stores, name.replace("heldout", "train"), modality)[0], modality)
    if not heldout:
        raise AnyloomError(f"{', '.join(name for _, name in config.datasets)} hold no questions: prepare the lists again, with more held-out media")
    chosen = conditions_of(ctx, config.conditions)
    try:
        shown_media(heldout, "shuffled" if "shuffled" in chosen else "right", config.seed)
    except AnyloomError as error:
        chosen, alone = without_shuffled(chosen, str(error))
        lines += alone
    asked = {condition: _ask(ctx, features, heldout, condition, place / len(chosen), len(chosen)) for place, condition in enumerate(chosen)}
    answered = {condition: rows for condition, (rows, _) in asked.items()}
    metrics = media_metrics(heldout, answered, {"blind_majority": blind_scores(heldout, train)}, config)
    write_table(ctx.output / "samples.parquet", [row for rows in answered.values() for row in rows], VQA_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    counts = Counter(question.subgroup for question in heldout)
    shown = {f"{row['condition']} {row['subgroup']}": rounded(row) for row in metrics}
    also = {"unread": {condition: unread for condition, (_, unread) in asked.items()}, "left_out": lines}
    return {"headline": chosen[0], "questions": dict(sorted(counts.items())), "media": len({q.uri for q in heldout}), **also, **shown}


def media_questions(records: Iterable[Record], modality: str) -> list[MediaQuestion]:
    """Every question of the records, in their order."""
    return [
        MediaQuestion(
            doc_key=f"{record.key}#{index}",
            question_id=record.row * MOST + index,
            modality=modality,
            kind=kind_of(question, answer),
            uri=record.uri,
            question=question,
            answer=answer,
        )
        for record in records
        for index, (question, answer) in enumerate(record.pairs)
    ]


# ---- asking ---------------------------------------------------------------------------------------------------------


class _Features:
    """Features of media by the export's encoders, each medium once."""

    def __init__(self, ctx: StepContext[MediaQuestionsEvalConfig], generator: Generator):
        self.generator = generator
        self._shards, self._work = ShardSet(ctx.inputs["shards_instruct"].path, ctx.stores), ctx.work
        self._kept: dict[tuple[str, str], np.ndarray] = {}

    def of(self, modality: str, uri: str, key: str = "") -> np.ndarray:
        """[N, E] of a medium, or of BLANK. key: a sample that holds it; a medium that was asked for before needs none. Raises MediaError where the encoder
        cannot take it."""
        if (modality, uri) not in self._kept:
            data = blank_medium(modality, self._work) if uri == BLANK else self._shards.media(key)
            self._kept[modality, uri] = self.generator.encode(modality, data)
        return self._kept[modality, uri]

    def try_out(self, modality: str, record: Record) -> None:
        """Encode a record's medium, as `of` does."""
        self.of(modality, record.uri, record.key)


def shown_media(questions: Sequence[MediaQuestion], what: str, seed: int) -> list[str]:
    """Uri of the medium that each question is asked about: its own (right), BLANK, or (shuffled) that of another medium of its modality, seeded, which
    has another name. Raises AnyloomError when they cannot be shuffled."""
    if what == "right":
        return [question.uri for question in questions]
    if what == "blank":
        return [BLANK] * len(questions)
    other: dict[str, str] = {}
    for modality in sorted({question.modality for question in questions}):
        named = {q.uri: q.answer for q in questions if q.modality == modality and q.kind == "name"}
        uris = sorted({q.uri for q in questions if q.modality == modality})
        try:
            order = derangement([(uri, named.get(uri, uri)) for uri in uris], seed)
        except ValueError as error:
            raise AnyloomError(f"questions about {modality}: {error}") from error
        other |= {uri: uris[place] for uri, place in zip(uris, order, strict=True)}
    return [other[question.uri] for question in questions]


def _ask(
    ctx: StepContext[MediaQuestionsEvalConfig], features: _Features, questions: Sequence[MediaQuestion], condition: str, begun: float, conditions: int
) -> tuple[list[dict[str, Any]], int]:
    """(rows of VQA_SAMPLES of one condition, in the order of the questions; how many answers are unread)."""

    config = ctx.config
    shown = shown_media(questions, SHOWN[condition], config.seed)
    items = [
        Question(text=q.question, media_key=f"{q.modality} {uri}", modality=q.modality, features_NE=features.of(q.modality, uri))
        for q, uri in zip(questions, shown, strict=True)
    ]
    answers: list[Answer] = []
    for start in range(0, len(items), config.chunk):
        part = items[start : start + config.chunk]
        answers += features.generator.answer(part, max_new_tokens=config.max_new_tokens, caption_turn=CAPTION_TURN[condition])
        ctx.progress(begun + len(answers) / len(items) / conditions, 1, f"{condition}: {len(answers)} of {len(items)} answers")
    rows = [
        {
            "run_condition": condition,
            "doc_key": q.doc_key,
            "question_id": q.question_id,
            "picture": q.uri,
            "question": q.question,
            "answer_type": q.subgroup,
            "target": q.answer,
            "prediction": answer.text,
            "caption": answer.caption or "",
            "score": float(not answer.unread and same(answer.text, q.answer)),
            "num_tokens": len(answer.token_ids),
        }
        for q, answer in zip(questions, answers, strict=True)
    ]
    return rows, sum(answer.unread for answer in answers)


# ---- judging --------------------------------------------------------------------------------------------------------


def same(prediction: str, answer: str) -> bool:
    """Equal but for case, spaces and a final period."""
    first, second = (" ".join(text.casefold().strip().rstrip(".").split()) for text in (prediction, answer))
    return first == second


def blind_scores(questions: Sequence[MediaQuestion], train: Sequence[MediaQuestion]) -> list[float]:
    """Scores of the best guess without the medium (see the module docstring), one per question; ties: alphabetical."""
    by_text: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_text[question.modality, question.question][question.answer] += 1
        by_kind[question.subgroup][question.answer] += 1
    scores = []
    for question in questions:
        counts = by_text.get((question.modality, question.question)) or by_kind[question.subgroup]
        guess = min(counts, key=lambda answer: (-counts[answer], answer), default="")
        scores.append(float(same(guess, question.answer)))
    return scores


def media_metrics(
    questions: Sequence[MediaQuestion],
    answered: Mapping[str, Sequence[Mapping[str, Any]]],
    floors: Mapping[str, Sequence[float]],
    config: MediaQuestionsEvalConfig,
) -> list[dict[str, Any]]:
    """Rows of METRICS (exact_match) by modality and by modality and kind: every condition, every floor, and the first condition minus each of the others
    (paired)."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    scores = {name: [float(row["score"]) for row in rows] for name, rows in answered.items()}
    headline = next(iter(scores))
    rows = []
    for subgroup in sorted({name for q in questions for name in (q.modality, q.subgroup)}):
        chosen = [i for i, q in enumerate(questions) if subgroup in (q.modality, q.subgroup)]
        clusters = [questions[i].uri for i in chosen]
        for name, values in {**scores, **floors}.items():
            named = {"metric": "exact_match", "subgroup": subgroup}
            mine = [values[i] for i in chosen]
            kind = "floor" if name in floors else "score"
            rows.append(metric_row(mean_interval(mine, clusters, proportion=True, **options), condition=name, kind=kind, **named))
            if name != headline:
                gain = paired_interval([scores[headline][i] for i in chosen], mine, clusters, proportion=True, **options)
                rows.append(metric_row(gain, condition=f"{headline} - {name}", kind="difference", **named))
    return rows
