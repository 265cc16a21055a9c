"""Evaluation of an export on image questions, through lmms-eval (step eval_vqa).

Owns the conditions (helped, plain prompt, blank, shuffled images), the floors on the same questions and their intervals.
Input: the export and the shards of the instructions, made from the recipe's lists or the user's. Output: task/ (runs from the shell too), samples.parquet,
metrics.parquet. The score of a sample is always the harness's own; an answer that is not there (unread) scores 0. Records that cannot be asked are left out
with their reasons. Raises AnyloomError when more of them are than config.max_lost.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from evals.config import TEST, TRAIN, EvalConfig
from evals.harness.conditions import CAPTION_TURN, SHOWN, conditions_of, without_shuffled
from evals.left_out import check_left_out
from evals.questions.lists import QuestionRow, answer_group, draw_questions, questions_of, write_vqav2_parquet
from evals.records import asked_records, taken
from evals.suites.task_files import write_task_dir
from evals.tables import METRICS, VQA_SAMPLES, rounded, score_rows, write_table
from infra.fingerprint import fingerprint
from infra.settings import offline_environment
from infra.step import AnyloomError, StepContext
from infra.storage import sha256_file, write_atomic
from mmcore.runtime.devices import device_for
from mmcore.stores.left_out import summarize
from mmcore.stores.shards import ShardSet


def run_vqa(ctx: StepContext[EvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. A killed run continues from the answers in its work directory."""
    config = ctx.config
    generation, model = ctx.inputs["shards_instruct"].path, _model(ctx)
    shards = ShardSet(generation, ctx.stores)
    records, left = asked_records(generation, ctx.stores, TEST, "image")
    total, what = len(records) + len(left), f"records of {TEST} are not asked"
    drawn = {question.key for question in draw_questions(questions_of(records), config.num_questions, config.seed)}
    records, refused = taken([record for record in records if record.key in drawn], lambda record: model.take(shards.media(record.key)))
    left += refused
    check_left_out(left, total, config.max_lost, what)
    questions = questions_of(records)
    if not questions:
        raise AnyloomError(f"{TEST} has no questions: give a list with some")
    parquet = ctx.output / "task" / f"{config.lmms_task}.parquet"
    write_vqav2_parquet(questions, shards.media, parquet)
    yaml_path = write_task_dir(parquet.parent, parquet, config.lmms_task)
    # the harness unpacks the file beside its scratch copy, never in the artifact or the user's cache
    write_task_dir(ctx.work / "task", parquet, config.lmms_task, cache_dir=ctx.work / "datasets")
    conditions, lines = conditions_of(ctx, config.conditions), summarize(left, total, what)
    if "shuffled" in conditions and len({shards.media_sha(question.key) for question in questions}) < 2:
        conditions, alone = without_shuffled(conditions, "the questions are about one image only")
        lines += alone
    answered, unread = _ask(ctx, model, conditions, questions)
    samples = [row for condition in conditions for row in answered[condition]]
    floors = floor_scores(questions, questions_of(asked_records(generation, ctx.stores, TRAIN, "image")[0]))
    metrics = metric_rows(answered, floors, config)
    write_table(ctx.output / "samples.parquet", samples, VQA_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    result = _result(config, conditions[0], questions, metrics, sha256_file(yaml_path), sha256_file(parquet))
    return result | {"unread": unread, "left_out": lines}


def _model(ctx: StepContext[EvalConfig]) -> Any:
    """The export behind the harness's interface."""
    offline_environment()
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    ctx.progress(0, 1, "loading lmms-eval and the model")
    from evals.harness.adapter import AnyloomLmms

    export, config = ctx.inputs["export"], ctx.config
    return AnyloomLmms(
        path=str(export.path),
        digest=export.digest,
        seed=config.seed,
        answers=ctx.work / "answers.jsonl",
        chunk=config.chunk,
        threads=ctx.resources.threads,
        device=device_for(ctx.resources.gpus),
        by_bytes=False,
        bucket=0,
    )


def _ask(
    ctx: StepContext[EvalConfig], model: Any, conditions: list[str], questions: list[QuestionRow]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Run every condition through the harness with one loaded model: condition -> rows of VQA_SAMPLES in question order, and -> answers that are unread."""
    from evals.harness.adapter import run_lmms

    config, total = ctx.config, len(conditions)
    answered, unread = {}, {}
    for index, condition in enumerate(conditions):

        def show(done: int, of: int, index: int = index, condition: str = condition) -> None:
            ctx.progress(index + done / max(of, 1), total, f"{condition}: {done} of {of} answers")

        asked = model.under(SHOWN[condition], CAPTION_TURN[condition], show)
        results = run_lmms(ctx.work / "task", config.lmms_task, asked)
        replies = [asked.answers.replies[key] for key in asked.asked.values()]
        answered[condition] = sample_rows(condition, questions, results, asked)
        unread[condition] = sum(reply.unread for reply in replies)
        _keep_harness_results(ctx, condition, results)
    return answered, unread


def sample_rows(condition: str, questions: list[QuestionRow], results: Mapping[str, Any], model: Any) -> list[dict[str, Any]]:
    """Rows of VQA_SAMPLES of one condition. Raises AnyloomError when the harness scored other documents than were asked."""
    samples = results["samples"]
    if [s["doc"]["question_id"] for s in samples] != [q.question_id for q in questions]:
        raise AnyloomError(f"lmms-eval scored {len(samples)} documents, not the {len(questions)} that were asked, in order: remove the work directory")
    split = next(iter(model.asked))[0]
    rows = []
    for question, sample in zip(questions, samples, strict=True):
        reply = model.answers.replies[model.asked[split, sample["doc_id"]]]
        rows.append(
            {
                "run_condition": condition,
                "doc_key": question.doc_key,
                "question_id": question.question_id,
                "picture": question.image,
                "question": question.question,
                "answer_type": answer_group(question.answer),
                "target": question.answer,
                "prediction": str(sample["filtered_resps"][0]),
                "caption": reply.caption,
                "score": 0.0 if reply.unread else float(sample["exact_match"]),
                "num_tokens": reply.num_tokens,
            }
        )
    return rows


def _keep_harness_results(ctx: StepContext[EvalConfig], condition: str, results: Mapping[str, Any]) -> None:
    """The harness's own result dict, without samples, under info/ (it holds dates and paths)."""
    kept = {key: value for key, value in results.items() if key != "samples"}
    write_atomic(ctx.output / "info" / "lmms" / f"{condition}.json", json.dumps(kept, indent=1, sort_keys=True, default=str))


def floor_scores(questions: list[QuestionRow], train: list[QuestionRow]) -> dict[str, list[float]]:
    """Scores of two answerers that never see the image, on the same questions: floor name -> one score per question.

    always_yes; blind_majority: the most frequent answer to the same question text in the *training* list (ties: alphabetical), the
    most frequent training answer of all for a text that was never asked.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        by_text[row.question][row.answer] += 1
    overall = Counter(row.answer for row in train)

    def majority(counts: Counter[str]) -> str:
        return min(counts, key=lambda answer: (-counts[answer], answer), default="")

    guesses = {text: majority(counts) for text, counts in by_text.items()}
    default = majority(overall)
    return {
        "always_yes": [float(q.answer == "yes") for q in questions],
        "blind_majority": [float(q.answer == guesses.get(q.question, default)) for q in questions],
    }


def metric_rows(answered: Mapping[str, list[dict[str, Any]]], floors: Mapping[str, list[float]], config: EvalConfig) -> list[dict[str, Any]]:
    """Rows of METRICS: every condition, every floor, and the first condition minus each other condition and floor (paired)."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    headline = next(iter(answered))
    samples = answered[headline]
    scores = {condition: [row["score"] for row in rows] for condition, rows in answered.items()}
    rows = []
    for condition, values in scores.items():
        rows += score_rows(samples, values, condition=condition, kind="score", **options)
    for floor, values in floors.items():
        rows += score_rows(samples, values, condition=floor, kind="floor", **options)
    for other, values in {**scores, **floors}.items():
        if other != headline:
            rows += score_rows(samples, scores[headline], minus=values, condition=f"{headline} - {other}", kind="difference", **options)
    return rows


def _result(config: EvalConfig, headline: str, questions: list[QuestionRow], metrics: list[dict[str, Any]], task_sha: str, data_sha: str) -> dict[str, Any]:
    from evals.harness.adapter import harness_version

    overall = {row["condition"]: row for row in metrics if row["subgroup"] == "all"}
    best = overall[headline]
    return {
        "lmms_task": config.lmms_task,
        "headline": headline,
        **dict(zip(("accuracy", "ci_lo", "ci_hi"), rounded(best, 6), strict=True)),
        "questions": len(questions),
        "pictures": len({q.image for q in questions}),
        "floors": {name: round(overall[name]["value"], 6) for name in ("always_yes", "blind_majority")},
        "conditions": {name: round(row["value"], 6) for name, row in overall.items() if row["kind"] == "score"},
        "harness": f"lmms-eval {harness_version()}",
        "task_sha256": task_sha,
        "dataset_sha256": data_sha,
        "history_fingerprint": fingerprint({"task": task_sha, "dataset": data_sha, "harness": harness_version()})[:12],
    }
