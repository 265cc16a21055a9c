"""The eval_objects_as_pope step: does an exported model say yes to objects that are not in the image?

Input: `export`, the shards. Output: samples.parquet (every question and answer), metrics.parquet, details.parquet. A killed run continues after the last
answered batch.

Tasks: `easyvqa_as_pope` (objects are shapes and colours, known from the images' questions) and `stamps_as_pope` (the thing that a caption's head word
names; what else an image shows is not known). Neither is the POPE benchmark. Accuracy, precision, recall, F1 of `yes`, the share of yes, and of answers that
are neither, which count as wrong; and the accuracy over all questions, which is the mean of the samples' scores. Control `blank`: the same questions about a
white image. Floor: always yes. Intervals draw whole images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.blank import BLANK, blank_medium
from evals.captions.objects import head_word
from evals.config import PopeEvalConfig
from evals.heldout import distinct_media
from evals.journal import Journal
from evals.left_out import check_left_out
from evals.questions.pope_questions import PRESENT, SETTINGS, PopeQuestion, Shown, pope_questions
from evals.records import attempt
from evals.statistics.intervals import Interval, mean_interval, paired_interval, ratio_interval
from evals.suites.reading import SCORER, parse_yes_no
from evals.tables import CLUSTERED, DETAILS, METRICS, VQA_SAMPLES, detail, metric_row, set_digest, shown_values, write_table
from infra.fingerprint import fingerprint, to_plain
from infra.step import StepContext, about
from mmcore.concepts.shapes import CONCEPTS, asked_concepts
from mmcore.inference.generator import Generator
from mmcore.media.decode import MediaError
from mmcore.runtime.devices import device_for
from mmcore.stores.left_out import LeftOut, summarize
from mmcore.stores.shards import ShardSet
from mmcore.types import Question

if TYPE_CHECKING:
    from mmcore.inference.generator import Generator
    from mmcore.types import Answer

REVISION = 1
"""Of what the scores mean; goes into the history's fingerprint."""
RIGHT = "right"


def run(ctx: StepContext[PopeEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns the rates with their intervals."""
    config = ctx.config
    every = questions_of(ctx)
    right = _answered(ctx, every, RIGHT)
    lost = {q.key: LeftOut(key=q.key, **row["left_out"]) for q, row in zip(every, right, strict=True) if "left_out" in row}
    num_images = len({question.key for question in every})
    check_left_out(list(lost.values()), num_images, config.max_lost, "images are not asked about")
    questions = [question for question in every if question.key not in lost]
    said = {RIGHT: [row for row in right if "left_out" not in row], BLANK: _answered(ctx, questions, BLANK)}
    answers = {condition: [row["text"] for row in rows] for condition, rows in said.items()}
    unread = {condition: sum(bool(row.get("unread")) for row in rows) for condition, rows in said.items()}
    samples = [row for condition, texts in answers.items() for row in sample_rows(questions, texts, condition)]
    metrics = pope_metrics(config, questions, answers)
    details = [_detail(metric, questions) for metric in metrics]
    write_table(ctx.output / "samples.parquet", samples, VQA_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    write_table(ctx.output / "details.parquet", details, DETAILS)
    asked = {task: sum(question.task == task for question in questions) for task in dict.fromkeys(question.task for question in questions)}
    left = summarize(list(lost.values()), num_images, "images are not asked about")
    identity = {
        "revision": REVISION,
        "scorer": SCORER,
        "config": {name: value for name, value in to_plain(config).items() if name != "max_lost"},
        "questions": _digest(questions),
    }
    return {"questions": asked, "history_fingerprint": fingerprint(identity), "unread": unread, "left_out": left, **shown_values(metrics)}


# ---- questions ------------------------------------------------------------------------------------------------------


def questions_of(ctx: StepContext[PopeEvalConfig]) -> list[PopeQuestion]:
    """The questions of every task."""

    config = ctx.config
    sets: list[tuple[str, list[Shown]]] = []
    if config.asked_source:
        shards = ShardSet(ctx.inputs["shards_instruct"].path, ctx.stores)
        known = [
            Shown(key=key, sha256=shards.media_sha(key), objects=(CONCEPTS[number].shape, CONCEPTS[number].colour))
            for key, number in asked_concepts(shards, config.asked_source)
        ]
        sets.append((config.asked_source, known))
    if config.captioned_source:
        media = distinct_media(ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores), (config.captioned_source,))
        named = [
            Shown(key=key, sha256=sha256, objects=tuple(dict.fromkeys(filter(None, map(head_word, texts)))))
            for key, sha256, texts in zip(media.keys, media.sha256, media.captions, strict=True)
        ]
        sets.append((config.captioned_source, named))
    found = []
    for source, everything in sets:
        order = np.random.default_rng(config.seed).permutation(len(everything))
        picks = sorted((order[: config.pictures] if config.pictures else order).tolist())
        found += pope_questions(f"{source.split('_')[0]}_as_pope", [everything[i] for i in picks], everything, config.seed)
    return found


def _answered(ctx: StepContext[PopeEvalConfig], questions: Sequence[PopeQuestion], condition: str) -> list[dict[str, Any]]:
    """text, and whether it is unread, of what the model says to each, as the export is used; or `left_out`, why its encoder cannot take the image. About a
    white image each wording is asked once."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    asked = list(questions) if condition == RIGHT else list({question.text: question for question in questions}.values())
    journal, generator = Journal(ctx.work / f"{condition}.jsonl"), None
    features: dict[str, np.ndarray | MediaError] = {}
    for batch in journal.missing(asked, config.chunk):
        generator = generator or Generator.load(ctx.inputs["export"].path, device=device_for(ctx.resources.gpus))
        items = _items(ctx, generator, batch, condition, features)
        answers = iter(generator.answer([item for item in items if isinstance(item, Question)], max_new_tokens=config.max_new_tokens))
        journal.add([_row(next(answers) if isinstance(item, Question) else item) for item in items])
        ctx.progress(len(journal.rows), len(asked), f"{condition}: questions answered")
    by_text = {question.text: row for question, row in zip(asked, journal.rows, strict=True)}
    return journal.rows if condition == RIGHT else [by_text[question.text] for question in questions]


def _row(found: Answer | MediaError) -> dict[str, Any]:
    if isinstance(found, MediaError):
        return {"left_out": {"reason": found.reason, "detail": found.detail}}
    return {"text": found.text, "unread": found.unread}


def _items(
    ctx: StepContext[PopeEvalConfig], generator: Generator, batch: Sequence[PopeQuestion], condition: str, features: dict[str, np.ndarray | MediaError]
) -> list[Question | MediaError]:
    """Question of each about its own or a white image, or why the encoder cannot take it. features: of the images so far, by digest."""

    config = ctx.config
    names = {"shards_instruct", "shards_cc3m"} & set(ctx.inputs)
    shards = {name: ShardSet(ctx.inputs[name].path, ctx.stores) for name in sorted(names)}
    items: list[Question | MediaError] = []
    for question in batch:
        key = BLANK if condition == BLANK else question.sha256
        if key not in features:
            name = "shards_instruct" if config.asked_source and question.task.startswith(config.asked_source.split("_")[0]) else "shards_cc3m"
            with about(question.key):
                data = blank_medium("image", ctx.work) if condition == BLANK else shards[name].media(question.key)
                encoded, refusal = attempt(partial(generator.encode, "image", data))
            features[key] = refusal or encoded
        found = features[key]
        items.append(found if isinstance(found, MediaError) else Question(text=question.text, media_key=key, modality="image", features_NE=found))
    return items


# ---- answers --------------------------------------------------------------------------------------------------------


def parsed(text: str) -> str:
    """`yes` or `no` as the suites read it, "" for neither or both."""
    return parse_yes_no(text)[0]


def sample_rows(questions: Sequence[PopeQuestion], said: Sequence[str], condition: str) -> list[dict[str, Any]]:
    """Rows of VQA_SAMPLES; answer_type: present, or the settings that chose the absent object."""
    return [
        {
            "run_condition": condition,
            "doc_key": f"{question.key}#{question.object}",
            "question_id": number,
            "picture": question.sha256,
            "question": question.text,
            "answer_type": PRESENT if question.present else "+".join(question.settings),
            "target": question.answer,
            "prediction": text,
            "caption": "",
            "score": float(parsed(text) == question.answer),
            "num_tokens": len(text.split()),
        }
        for number, (question, text) in enumerate(zip(questions, said, strict=True))
    ]


def pope_metrics(config: PopeEvalConfig, questions: Sequence[PopeQuestion], answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of METRICS: every task and setting under every condition, always yes, and accuracy right minus blank.

    condition: the setting; subgroup: the task. At the end the accuracy over all questions: condition right, blank or always_yes, subgroup all.
    """
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    rows = []
    for task in dict.fromkeys(question.task for question in questions):
        for setting in SETTINGS:
            chosen = [i for i, question in enumerate(questions) if question.task == task and setting in question.settings]
            if not chosen:
                continue
            truth = [questions[i].present for i in chosen]
            clusters = [questions[i].sha256 for i in chosen]
            said = {condition: [parsed(texts[i]) for i in chosen] for condition, texts in answers.items()} | {"always_yes": ["yes"] * len(chosen)}
            for condition, kind in ((RIGHT, "score"), (BLANK, "floor"), ("always_yes", "floor")):
                name = setting if condition == RIGHT else f"{setting}, {condition}"
                for metric, interval in _rates(truth, said[condition], clusters, config).items():
                    rows.append(metric_row(interval, condition=name, metric=metric, subgroup=task, kind=kind))
            right, blank = ([float(answer == ("yes" if there else "no")) for answer, there in zip(said[name], truth, strict=True)] for name in (RIGHT, BLANK))
            gain = paired_interval(right, blank, clusters, proportion=True, **options)
            rows.append(metric_row(gain, condition=f"{setting} - blank", metric="accuracy", subgroup=task, kind="difference"))
    images = [question.sha256 for question in questions]
    for condition, texts in {**answers, "always_yes": ["yes"] * len(questions)}.items() if questions else ():
        scores = [float(parsed(text) == question.answer) for text, question in zip(texts, questions, strict=True)]
        overall = mean_interval(scores, images, proportion=True, **options)
        rows.append(metric_row(overall, condition=condition, metric="accuracy", subgroup="all", kind="score" if condition == RIGHT else "floor"))
    return rows


def _rates(truth: Sequence[bool], said: Sequence[str], clusters: Sequence[str], config: PopeEvalConfig) -> dict[str, Interval]:
    """Each rate is a ratio of two sums, and its interval is over whole images. A rate without cases is left out."""
    pairs = list(zip(truth, said, strict=True))
    yes = [float(answer == "yes") for answer in said]
    right = [float(answer == ("yes" if there else "no")) for there, answer in pairs]
    hit = [float(there and answer == "yes") for there, answer in pairs]
    there = [float(present) for present in truth]
    ones = [1.0] * len(pairs)
    ratios = {
        "accuracy": (right, ones),
        "precision": (hit, yes),
        "recall": (hit, there),
        "f1": ([2 * one for one in hit], [a + b for a, b in zip(yes, there, strict=True)]),
        "yes_rate": (yes, ones),
        "hallucination_rate": ([a - b for a, b in zip(yes, hit, strict=True)], [1 - present for present in there]),
        "unparsed_rate": ([float(not answer) for answer in said], ones),
    }
    found = {name: ratio_interval(*pair, clusters) for name, pair in ratios.items()}
    return {name: replace(interval, n=len(pairs)) if name == "f1" else interval for name, interval in found.items() if interval is not None}


def _digest(questions: Sequence[PopeQuestion]) -> str:
    return set_digest(f"{question.sha256}\t{question.text}\t{question.answer}" for question in questions)


def _detail(metric: Mapping[str, Any], questions: Sequence[PopeQuestion]) -> dict[str, Any]:
    mine = [question for question in questions if metric["subgroup"] in ("all", question.task)]
    names = ", ".join(dict.fromkeys(question.task for question in mine))
    known = {"reference": names, "reference_sha256": _digest(mine), "n_reference": len({question.sha256 for question in mine})}
    return detail(metric, "POPE's rates of yes and no, unparsed answers wrong; not the POPE benchmark", CLUSTERED, **known)
