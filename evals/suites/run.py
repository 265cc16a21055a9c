"""The eval_<task> steps of suites: one lmms-eval task, on official data that was prepared or on a stand-in made of the demo's.

Owns which questions are asked, under which conditions, and what a task needs. Input: the export, and either the shards and the stored features (stand-ins)
or a prepared suite; output: task/ (the stand-in's Parquet and YAML, which the shell command runs too), samples.parquet (columns of eval_vqa; score is the
harness's), parsed.parquet (both scores, how ours was read), metrics.parquet. A task that needs a judge or a program and has none is skipped with the reason,
never scored.

Answers are kept in the stores by checkpoint, task, data and batches, so that scoring them anew asks nothing again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from evals.config import HELDOUT, SuiteConfig
from evals.harness.conditions import CAPTION_TURN, SHOWN, conditions_of
from evals.harness.features import StoredFeatures
from evals.left_out import not_encoded
from evals.suites.catalogue import SuiteTask, suite_task
from evals.suites.data import prepared_files
from evals.suites.hub_parquet import take_rows
from evals.suites.metrics import PARSED, Answered, explained, suite_metrics
from evals.suites.reading import SCORER
from evals.suites.rows import Doc, askable, clustered, draw_docs, own_score, read_docs, renumbered, whole_groups
from evals.suites.stand_ins import write_stand_in
from evals.suites.task_files import task_yaml
from evals.tables import METRICS, VQA_SAMPLES, write_table
from infra.fingerprint import fingerprint
from infra.lock import exclusive
from infra.settings import judge_environment, offline_environment
from infra.step import AnyloomError, StepContext
from infra.storage import read_json, sha256_file, write_atomic
from mmcore.runtime.devices import device_for
from mmcore.stores.shards import ShardSet


def run(ctx: StepContext[SuiteConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. A killed run continues from the answers in the stores."""
    config = ctx.config
    task = suite_task(config.lmms_task)
    if config.scorer != SCORER:
        raise AnyloomError(f"suite scorer is {config.scorer}, but this version reads answers as {SCORER}: leave the value out")
    reason = why_skipped(task, config)
    if reason:
        write_atomic(ctx.output / "skipped.json", json.dumps({"lmms_task": task.lmms_task, "reason": reason}))
        return {"lmms_task": task.lmms_task, "skipped": reason, "left_out": [reason]}
    if task.judge:
        judge_environment(config.judge)
    docs, left_out, aliases = _data(ctx, task, config)
    yaml_text = task_yaml(task, f"{task.lmms_task}.parquet")
    write_atomic(ctx.output / "task" / f"{task.lmms_task}.yaml", yaml_text)
    data_sha = sha256_file(ctx.work / "task" / f"{task.lmms_task}.parquet")
    conditions = conditions_of(ctx, config.conditions)
    answered, samples, parsed, unread = _ask(ctx, task, config, conditions, docs, aliases, fingerprint([yaml_text, data_sha]))
    write_table(ctx.output / "samples.parquet", samples, VQA_SAMPLES)
    write_table(ctx.output / "parsed.parquet", parsed, PARSED)
    metrics = suite_metrics(task, docs, answered, config)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    return _result(ctx, task, docs, answered, metrics, left_out, fingerprint(yaml_text), data_sha) | {"unread": unread}


def why_skipped(task: SuiteTask, config: SuiteConfig) -> str:
    """What is missing here to score the task, in one line with the remedy; "" when nothing is."""
    if task.judge and not config.judge:
        return f"{task.lmms_task} is scored by a language model: name one with --set suite.judge=MODEL and give its endpoint in ANYLOOM_JUDGE_URL"
    missing = next((program for program in task.needs if shutil.which(program) is None), "")
    return f"{task.lmms_task} is scored with {missing}, which is not installed: install it and run again with --force eval_{task.lmms_task}" if missing else ""


def _data(ctx: StepContext[SuiteConfig], task: SuiteTask, config: SuiteConfig) -> tuple[list[Doc], dict[str, int], dict[str, str]]:
    """Write work/task/<task>.parquet with the rows that are asked. Returns its Docs, what is left out, and images that are media of the shards."""
    drawn, aliases = ctx.work / "task" / f"{task.lmms_task}.parquet", {}
    refused = 0
    if task.stand_in:
        whole, shards, lost = ctx.work / "stand_in.parquet", ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores), not_encoded(ctx.inputs, "image")
        aliases = write_stand_in(task.lmms_task, shards, whole, config.seed, without=lost).aliases
        refused = sum(key in lost for key in shards.keys(source=HELDOUT, duplicates=True))
        files: Sequence[Path] = [whole]
    else:
        files = prepared_files(ctx.sources["suite"], task)
    docs, left_out = askable(read_docs(task, files))
    left_out |= {"the encoder cannot take their image": refused} if refused else {}
    docs = draw_docs(docs, config.num_questions, config.seed)
    if not docs:
        raise AnyloomError(f"{task.lmms_task} has no questions that the model can be asked: prepare the suite again")
    whole_groups(task, docs)
    take_rows(files, [doc.row for doc in docs], drawn)
    if task.stand_in:
        write_atomic(ctx.output / "task" / drawn.name, drawn.read_bytes())
    return renumbered(docs), left_out, aliases


def _ask(
    ctx: StepContext[SuiteConfig], task: SuiteTask, config: SuiteConfig, conditions: Sequence[str], docs: list[Doc], aliases: Mapping[str, str], asked_of: str
) -> tuple[dict[str, Answered], list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """Run every condition through the harness with one loaded model: (answers by condition, rows of VQA_SAMPLES, rows of PARSED, unread answers by
    condition)."""
    offline_environment()
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    ctx.progress(0, len(conditions), "loading lmms-eval and the model")
    from evals.harness.adapter import AnyloomLmms, run_lmms

    write_atomic(ctx.work / "task" / f"{task.lmms_task}.yaml", task_yaml(task, f"{task.lmms_task}.parquet", cache_dir=ctx.work / "datasets"))
    export, embeddings = ctx.inputs["export"], ctx.inputs.get("embed_image")
    identity = [export.digest, asked_of, config.chunk, config.seed, embeddings.digest if embeddings else ""]
    answers = ctx.stores / "answers" / f"{task.lmms_task}-{fingerprint(identity)[:16]}.jsonl"
    answered, samples, parsed, unread = {}, [], [], {}
    clusters = clustered(docs)
    with exclusive(answers.with_suffix(".lock")):
        model = AnyloomLmms(
            path=str(export.path),
            digest=export.digest,
            seed=config.seed,
            answers=answers,
            chunk=config.chunk,
            threads=ctx.resources.threads,
            device=device_for(ctx.resources.gpus),
            sources=[StoredFeatures(embeddings.path, ctx.stores, export.path, aliases=aliases)] if embeddings else [],
            features=ctx.stores,
        )
        for place, condition in enumerate(conditions):

            def show(done: int, of: int, place: int = place, condition: str = condition) -> None:
                ctx.progress(place + done / max(of, 1), len(conditions), f"{condition}: {done} of {of} answers")

            asked = model.under(SHOWN[condition], CAPTION_TURN[condition], show)
            results = run_lmms(ctx.work / "task", task.lmms_task, asked, scratch=ctx.work / "scratch")
            answered[condition] = one = answers_of(task, docs, results, asked)
            write_atomic(ctx.output / "info" / "lmms" / f"{condition}.json", _told(results))
            replies = [asked.answers.replies[asked.asked[task.split, i]] for i in range(len(docs))]
            unread[condition] = sum(reply.unread for reply in replies)
            samples += [_sample(condition, docs[i], one, i, reply) for i, reply in enumerate(replies)]
            parsed += [_parsed(condition, docs[i], one, i, clusters[i]) for i in range(len(docs))]
    return answered, samples, parsed, unread


def answers_of(task: SuiteTask, docs: Sequence[Doc], results: Mapping[str, Any], model: Any) -> Answered:
    """What the harness and we make of one run. Raises AnyloomError when it scored other documents than were asked, or a judge did not answer."""
    from evals.harness.adapter import mmbench_hits

    samples = results["samples"]
    if [sample["doc_id"] for sample in samples] != [doc.row for doc in docs]:
        raise AnyloomError(f"lmms-eval scored {len(samples)} documents, not the {len(docs)} that were asked: remove the work directory")
    told = results["results"][task.lmms_task]
    numbers = {key.split(",")[0]: float(value) for key, value in told.items() if "," in key and "_stderr" not in key and isinstance(value, Real)}
    if task.headline not in numbers:
        raise AnyloomError(f"lmms-eval gave no {task.headline} for {task.lmms_task}, but {', '.join(sorted(numbers)) or 'nothing'}")
    predictions = [str(sample["filtered_resps"][0]) for sample in samples]
    harness = groups = None
    if task.judge:
        refuse_unjudged(task, samples)
    if task.rotations:
        hits = mmbench_hits([sample[task.headline] for sample in samples])
        harness, groups = [hit for hit, _ in hits], [hit for _, hit in hits]
    elif task.per_answer:
        harness = [model.packaged_score(task.headline, sample[task.headline]) / task.unit for sample in samples]
    ours = [own_score(task.reading, doc, text) for doc, text in zip(docs, predictions, strict=True)] if task.reading else None
    prompts = [model.prompts[task.split, doc.row] for doc in docs]
    return Answered(prompts=prompts, predictions=predictions, ours=ours, harness=harness, groups=groups, results=numbers)


def refuse_unjudged(task: SuiteTask, samples: Sequence[Mapping[str, Any]]) -> None:
    """Raises AnyloomError when the judge did not answer for some sample: the packaged scorers would give it a score all the same."""
    failed = 0
    for sample in samples:
        review = sample[task.headline]
        failed += -1 in review["scores"] if "scores" in review else not review["eval_model"]
    if failed:
        raise AnyloomError(f"the judge did not answer for {failed} of {len(samples)} answers of {task.lmms_task}, which cannot be scored: look at its endpoint")


def _sample(condition: str, doc: Doc, one: Answered, place: int, reply: Any) -> dict[str, Any]:
    return {
        "run_condition": condition,
        "doc_key": doc.doc_key,
        "question_id": doc.question_id,
        "picture": doc.image,
        "question": doc.question,
        "answer_type": doc.kind,
        "target": doc.target,
        "prediction": one.predictions[place],
        "caption": reply.caption,
        "score": one.harness[place] if one.harness else None,
        "num_tokens": reply.num_tokens,
    }


def _parsed(condition: str, doc: Doc, one: Answered, place: int, cluster: str) -> dict[str, Any]:
    ours = one.ours[place] if one.ours else None
    return {
        "run_condition": condition,
        "doc_key": doc.doc_key,
        "doc_group": doc.group,
        "cluster": cluster,
        "harness_score": one.harness[place] if one.harness else None,
        "our_score": ours.score if ours else None,
        "parsed": ours.parsed if ours else None,
        "parse_status": ours.how if ours else None,
    }


def _told(results: Mapping[str, Any]) -> str:
    """The harness's own result dict without samples (it holds dates and paths)."""
    return json.dumps({key: value for key, value in results.items() if key != "samples"}, indent=1, sort_keys=True, default=str)


def _result(
    ctx: StepContext[SuiteConfig],
    task: SuiteTask,
    docs: Sequence[Doc],
    answered: Mapping[str, Answered],
    metrics: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, int],
    task_sha: str,
    data_sha: str,
) -> dict[str, Any]:
    from evals.harness.adapter import harness_version

    headline = next(iter(answered))
    overall = {(row["condition"], row["metric"]): row["value"] for row in metrics if row["subgroup"] == "all" and row["kind"] != "difference"}
    identity: dict[str, Any] = {"task": task_sha, "dataset": data_sha, "harness": harness_version(), "scorer": SCORER, "judge": ctx.config.judge}
    identity |= {"unit": task.unit} if task.unit != 1 else {}
    return {
        "lmms_task": task.lmms_task,
        "suite": read_json(ctx.sources["suite"])["suite"] if "suite" in ctx.sources else task.suite,
        "split": task.split,
        "headline": headline,
        "metric": task.headline,
        "stand_in": task.stand_in,
        "questions": len(docs),
        "groups": len({doc.group for doc in docs}),
        "pictures": len({doc.image for doc in docs}),
        "scores": {condition: {m: round(v, 6) for (c, m), v in overall.items() if c == condition and v is not None} for condition, _ in overall},
        "explained": explained(task, answered[headline]),
        "left_out": [f"{count} questions of {task.lmms_task}: {reason}" for reason, count in left_out.items()],
        "harness": f"lmms-eval {harness_version()}",
        "scorer": SCORER,
        "task_sha256": task_sha,
        "dataset_sha256": data_sha,
        "prompt_sha256": fingerprint(answered[headline].prompts),
        "history_fingerprint": fingerprint(identity)[:12],
    }
