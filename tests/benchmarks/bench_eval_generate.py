"""Answers per second of an evaluation through lmms-eval, against a bare batched loop and against one request at a time.

ours: AnyloomLmms.generate_until inside lmms-eval's evaluator: identities, pictures prepared in threads, encoded once, features written where they are
kept, batches persisted with fsync. Every run begins without answers and without kept features. limit: a bare loop over the same questions with the same
caching (every picture decoded and encoded once, questions about a picture together, the very batches of ours), nothing written, no harness. peer: the same
model driven the way the harness's stock wrappers do it: one request at a time, picture decoded and encoded inside, nothing shared.

All sides run on the same `--threads` cores: the process is pinned to them, so that threads that prepare pictures are no help that a bare loop lacks.
The peer runs over whole pictures of a seeded part of the questions (`--peer-questions`), single-run, and so does the breakdown, each line adding to the
one before: features at hand; questions about one picture share its prefix; batches of pictures. A question that the list has twice about a picture is taken
once, as the adapter asks it. Answers are compared; bfloat16 rounds differently in other batches, so the share of equal ones is told. Needs `--root DIR`
with a finished run of the recipe (export, shards), or makes one.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branches import artifacts
from demo_process import read_root
from store_bench import anyloom, pinned, rates, scratch

from evals.questions.lists import QuestionRow, draw_questions, questions_of, write_vqav2_parquet
from evals.records import asked_records
from evals.suites.task_files import write_task_dir
from infra.settings import offline_environment
from infra.step import AnyloomError
from mmcore.stores.shards import ShardSet

TASK, LIST = "easyvqa_as_vqav2", "easyvqa_test"
LIMIT = 16
"""New tokens, as the task says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every side answers, and with what."""

    generator: Any
    questions: Sequence[QuestionRow]
    shards: Any
    export: Path
    digest: str
    chunk: int
    box: Path

    def image(self, question: QuestionRow) -> bytes:
        """Its file's bytes."""
        return bytes(self.shards.media(question.key))

    def item(self, question: QuestionRow, features: Any) -> Any:
        """The question as the model takes it."""
        from mmcore.types import Question

        return Question(text=question.question, media_key=question.image, modality="image", features_NE=features)


Answers = dict[int, Any]
"""question_id -> Answer, or what is left of one."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry. Raises RuntimeError when ours and the bare loop do not answer (nearly) alike."""
    offline_environment()
    with scratch() as box:
        root = finished(options, box)
        with pinned(options.threads):
            return [measure(prepared(root, options, box), options)]


def finished(options: argparse.Namespace, box: Path) -> Path:
    """The root given, or one of the recipe with an export."""
    from flows.running.run import recipe_steps

    if options.root is not None:
        return read_root(options.root, options.recipe, "export*", "shards_instruct")
    export = "export_early" if "export_early" in recipe_steps(options.recipe, {}) else "export"
    anyloom("run", export, "shards_instruct", "--recipe", options.recipe, "--root", str(box / "runs"), "--no-prefect", "--no-ray")
    return box / "runs"


def prepared(root: Path, options: argparse.Namespace, box: Path) -> Work:
    """The recipe's export in a root, the questions and the task. Raises AnyloomError when the root does not have them."""
    import torch

    from mmcore.inference.generator import Generator

    torch.set_num_threads(options.threads)
    rows = artifacts(options.recipe, root, {})
    export, generation = rows.get("export_early") or rows.get("export"), rows.get("shards_instruct")
    if export is None or generation is None:
        raise AnyloomError(f"{root} has no export of the recipe as it is now; make it first: anyloom run export --recipe {options.recipe} --root {root}")
    shards = ShardSet(generation.path, root / "stores")
    read = questions_of(asked_records(generation.path, root / "stores", LIST, "image")[0])
    once = list({(question.image, question.question): question for question in read}.values())
    questions = draw_questions(once, min(options.questions, len(once)), options.seed)
    parquet = box / "questions.parquet"
    write_vqav2_parquet(questions, shards.media, parquet)
    write_task_dir(box / "task", parquet, TASK, cache_dir=box / "datasets")
    what = {"generator": Generator.load(export.path), "export": export.path, "digest": export.record.digest}
    return Work(**what, questions=questions, shards=shards, chunk=options.chunk, box=box)


def measure(work: Work, options: argparse.Namespace) -> dict:
    """Interleaved rounds of ours and the bare loop, then the peer and the breakdown once."""
    questions, batches = work.questions, batches_of(work, work.questions)
    bare(work, [batches[0][:8]])  # libraries, weights and the page cache are warm from here on
    if list(harness(work)[2]) != [question.question_id for batch in batches for question in batch]:
        raise RuntimeError("the bare loop does not have the batches that the adapter makes: batches_of must order as it does")
    seconds: dict[str, list[float]] = {"ours": [], "limit": []}
    within: list[float] = []
    ours: Answers = {}
    plain: Answers = {}
    for number in range(options.rounds):
        for side in ("ours", "limit") if number % 2 == 0 else ("limit", "ours"):
            if side == "ours":
                spent, all_of_it, ours = harness(work)
                within.append(spent / all_of_it)
            else:
                spent, plain = timed(bare, work, batches)
            seconds[side].append(spent)
    same = agreement(ours, plain)
    if same < 0.9:
        raise RuntimeError(f"only {same:.1%} of the answers of the two sides are equal: they do not do the same work")
    part = draw_questions(list(questions), min(options.peer_questions, len(questions)), options.seed)
    lines = breakdown(work, part, ours)
    seconds["peer"] = [lines["one at a time"]["seconds"] * len(questions) / len(part)] * options.rounds
    lengths = [(answer.num_input_tokens, len(answer.token_ids)) for answer in plain.values()]
    note = {
        "recipe": options.recipe,
        "questions": len(questions),
        "pictures": len({question.image for question in questions}),
        "prompt_tokens": told([tokens for tokens, _ in lengths]),
        "answer_tokens": told([tokens for _, tokens in lengths]),
        "caption_turn": work.generator.caption_turn,
        "chunk": work.chunk,
        "threads": options.threads,
        "answers equal to the bare loop's": round(same, 4),
        "share of the harness's whole run": round(statistics.median(within), 3),
        "breakdown": lines,
        "peer": f"single-run over {len(part)} questions, scaled",
    }
    return rates("eval_generate", seconds, len(questions), "answers/s", options.seed, note)


def told(lengths: Sequence[int]) -> str:
    """Median and range."""
    return f"median {statistics.median(lengths):g}, {min(lengths)} to {max(lengths)}"


def timed(side: Callable[..., Answers], *arguments: Any) -> tuple[float, Answers]:
    """(seconds, answers)."""
    started = time.perf_counter()
    answers = side(*arguments)
    return time.perf_counter() - started, answers


def agreement(first: Answers, second: Answers) -> float:
    """Share of the questions of the second that the first answers in the same words."""
    return sum(first[number].text == answer.text for number, answer in second.items()) / len(second)


# ---- the sides ------------------------------------------------------------------------------------------------------


def harness(work: Work) -> tuple[float, float, Answers]:
    """Ours: (seconds inside generate_until, seconds of the whole run, answers in the order they were given)."""
    from evals.harness.adapter import AnyloomLmms, run_lmms

    class Timed(AnyloomLmms):
        seconds = 0.0

        def generate_until(self, requests: list[Any]) -> Any:
            started = time.perf_counter()
            found = super().generate_until(requests)
            Timed.seconds += time.perf_counter() - started
            return found

    for name in ("stores", "answers.jsonl"):
        shutil.rmtree(work.box / name, ignore_errors=True)
        (work.box / name).unlink(missing_ok=True)
    from evals.harness.features import KeptFeatures, exported_encoder

    model = Timed(generator=work.generator, digest=work.digest, answers=work.box / "answers.jsonl", chunk=work.chunk)
    model.images = type(model.images)(lambda data: work.generator.encode("image", data), (), KeptFeatures(work.box / "stores", *exported_encoder(work.export)))
    started = time.perf_counter()
    results = run_lmms(work.box / "task", TASK, model, scratch=work.box / "scratch")
    spent = time.perf_counter() - started
    number = {model.asked["validation", sample["doc_id"]]: sample["doc"]["question_id"] for sample in results["samples"]}
    return Timed.seconds, spent, {number[key]: reply for key, reply in model.answers.replies.items()}


def batches_of(work: Work, questions: Sequence[QuestionRow]) -> list[list[QuestionRow]]:
    """The batches that the adapter makes: pictures with equally many questions, about as long, stand together.

    Raises RuntimeError when two questions are the same to it, which it would ask once.
    """
    from evals.harness.asks import BUCKET

    shown = {question.image: hashlib.sha256(work.image(question)).hexdigest() for question in questions}
    if len({(shown[question.image], question.question) for question in questions}) < len(questions):
        raise RuntimeError("a question is there twice about the same picture: the sides would not answer equally many")
    count, characters = Counter[str](), Counter[str]()
    for question in questions:
        count[shown[question.image]] += 1
        characters[shown[question.image]] += len(question.question)

    def order(question: QuestionRow) -> tuple[int, int, str, str]:
        picture = shown[question.image]
        return count[picture], characters[picture] // BUCKET, picture, question.question

    ordered = sorted(questions, key=order)
    return [ordered[start : start + work.chunk] for start in range(0, len(ordered), work.chunk)]


def bare(work: Work, batches: Sequence[Sequence[QuestionRow]]) -> Answers:
    """The limit: features once per picture, then batch after batch."""
    features = {}
    for question in (question for batch in batches for question in batch):
        if question.image not in features:
            features[question.image] = work.generator.encode("image", work.image(question))
    return in_batches(work, batches, features)


def in_batches(work: Work, batches: Sequence[Sequence[QuestionRow]], features: dict[str, Any]) -> Answers:
    """Batch after batch, with features at hand."""
    answers: Answers = {}
    for batch in batches:
        found = work.generator.answer([work.item(question, features[question.image]) for question in batch], max_new_tokens=LIMIT)
        answers |= {question.question_id: answer for question, answer in zip(batch, found, strict=True)}
    return answers


def breakdown(work: Work, questions: Sequence[QuestionRow], ours: Answers) -> dict[str, dict[str, Any]]:
    """What each way of saving work brings, one added after the other: seconds, answers per second, gain over the line before, answers equal to ours."""
    features = {question.image: work.generator.encode("image", work.image(question)) for question in questions}
    batches, together = batches_of(work, questions), dict[str, list[QuestionRow]]()
    for question in questions:
        together.setdefault(question.image, []).append(question)

    def alone(decode: bool) -> Answers:
        answers: Answers = {}
        for question in questions:
            seen = work.generator.encode("image", work.image(question)) if decode else features[question.image]
            (answers[question.question_id],) = work.generator.answer([work.item(question, seen)], max_new_tokens=LIMIT)
        return answers

    def shared() -> Answers:
        answers: Answers = {}
        for group in together.values():
            found = work.generator.answer([work.item(question, features[question.image]) for question in group], max_new_tokens=LIMIT)
            answers |= {question.question_id: answer for question, answer in zip(group, found, strict=True)}
        return answers

    sides: dict[str, Callable[[], Answers]] = {
        "one at a time": lambda: alone(True),
        "+ features at hand": lambda: alone(False),
        "+ shared prefixes": shared,
        "+ batches of pictures": lambda: in_batches(work, batches, features),
    }
    lines: dict[str, dict[str, Any]] = {}
    before = None
    for name, side in sides.items():
        seconds, answers = timed(side)
        lines[name] = {
            "seconds": round(seconds, 3),
            "answers_per_s": round(len(questions) / seconds, 2),
            "gain": round(before / seconds, 2) if before else 1.0,
            "equal": round(agreement(ours, answers), 4),
        }
        before = seconds
    return lines
