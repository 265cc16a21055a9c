"""The only file that imports lmms_eval: our model behind its interface, its evaluator and its scorers behind functions.

Owns AnyloomLmms (requests of the harness -> Generator.answer, grouped by image, persisted batch by batch), run_lmms and mmbench_hits.
Input: a task directory (evals.suites.task_files) and an export directory or a generator object. Output: answers in a file that survives a
kill, and the harness's result dict.

`infra.settings.offline_environment()` must have run before this module is imported: lmms_eval and datasets read it at import.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from evals.harness.answers import AnswerFile, Reply
from evals.harness.asks import BUCKET, Ask, batches_of, image_files
from evals.harness.features import FeatureSource, KeptFeatures, StoredFeatures, exported_encoder
from evals.harness.shown import CONDITIONS, ShownImages
from infra.artifact import refuse_damaged
from infra.fingerprint import fingerprint
from infra.step import AnyloomError
from infra.storage import digest_tree
from mmcore.inference.generator import Generator
from mmcore.types import Question

__all__ = ["CONDITIONS", "AnyloomLmms", "harness_version", "manifest", "mmbench_hits", "run_lmms"]
MAX_NEW_TOKENS = 128
"""Limit of an answer where the task sets none."""


def manifest() -> Any:
    """Payload of the entry point `anyloom` in the group lmms_eval.models.

    A function, because the harness loads entry points while its model registry is still being imported.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="anyloom", simple_class_path="evals.harness.adapter.AnyloomLmms")


class GeneratorLike(Protocol):
    """What the adapter needs of mmcore.inference.generator.Generator."""

    def encoder(self, modality: str) -> Any: ...

    def encode(self, modality: str, data: bytes) -> np.ndarray: ...

    def answer(self, items: list[Any], *, max_new_tokens: int = 16, caption_turn: bool | None = None) -> list[Any]: ...


class AnyloomLmms(lmms):
    """An exported Anyloom model, or any GeneratorLike, as an lmms-eval model.

    path: export directory; base: its language model's weights, when it was packed without them; digest: identity of the model's bytes (hashed from
    `path` when left out); caption_turn: auto (as exported), true or false; condition: right, blank (white image) or shuffled (another image of the
    task, seeded); answers: file that keeps answers over a kill; chunk: questions per persisted batch; embeddings: an embed artifact whose features are
    used; sources: more of the kind; features: directory of stores where encoded images are kept; media_threads: threads that prepare images ahead;
    by_bytes: False knows images by their pixels as PNG, and bucket=0 orders batches by image alone, as eval_vqa always had it.
    Other keywords of the harness are accepted and unused.
    """

    is_simple = True

    def __init__(
        self,
        path: str = "",
        caption_turn: str | bool = "auto",
        condition: str = "right",
        seed: int = 0,
        answers: str | Path = "",
        chunk: int = 64,
        threads: int | None = None,
        generator: GeneratorLike | None = None,
        digest: str = "",
        base: str = "",
        embeddings: str | Path = "",
        sources: Sequence[FeatureSource] = (),
        features: str | Path = "",
        media_threads: int = 2,
        by_bytes: bool = True,
        bucket: int = BUCKET,
        progress: Callable[[int, int], None] | None = None,
        batch_size: Any = None,
        device: Any = None,
        max_batch_size: Any = None,
    ):
        super().__init__()
        modes = {"auto": None, "true": True, "false": False}
        if str(caption_turn).lower() not in modes:
            raise AnyloomError(f"caption_turn is {caption_turn!r}: use auto, true or false")
        if condition not in CONDITIONS:
            raise AnyloomError(f"condition is {condition!r}: use {', '.join(CONDITIONS)}")
        kept = None
        if generator is None:
            if path and not digest:  # a step has looked at it already
                refuse_damaged(Path(path))
            generator = _loaded(Path(path) if path else None, threads, device, base)
            digest = digest or digest_tree(Path(path))
            if embeddings:
                refuse_damaged(Path(embeddings))
                sources = (*sources, StoredFeatures(Path(embeddings), Path(embeddings).resolve().parents[2] / "stores", Path(path)))
            kept = KeptFeatures(Path(features), *exported_encoder(Path(path))) if features else None
        self._generator = generator
        self.caption_turn, self.condition, self.seed, self.chunk = modes[str(caption_turn).lower()], condition, int(seed), int(chunk)
        self.digest, self.answers, self._progress = digest, AnswerFile(Path(answers) if answers else None), progress
        self.images = ShownImages(partial(generator.encode, "image"), sources, kept, int(media_threads))
        self._by_bytes, self._bucket = by_bytes, int(bucket)
        self.batch_size_per_gpu = 1
        self.asked: dict[tuple[str, int], str] = {}
        """(split, doc_id) -> key of the answer file, of the last run."""
        self.prompts: dict[tuple[str, int], str] = {}
        """(split, doc_id) -> the text that was asked."""
        self._task: Any = None

    def under(self, condition: str, caption_turn: bool | None, progress: Callable[[int, int], None] | None = None) -> AnyloomLmms:
        """The same loaded model, answers and encoded images, asked under another condition."""
        other = AnyloomLmms(
            caption_turn="auto" if caption_turn is None else caption_turn,
            condition=condition,
            seed=self.seed,
            chunk=self.chunk,
            generator=self._generator,
            digest=self.digest,
            by_bytes=self._by_bytes,
            bucket=self._bucket,
            progress=progress,
        )
        other.answers, other.images = self.answers, self.images
        return other

    def take(self, image: bytes) -> None:
        """Raises MediaError for an image that the model's encoder cannot take."""
        self._generator.encoder("image").prepare(image)

    def clean(self) -> None:
        """Keep the model: the harness would delete its modules after the first task."""
        self.images.forget()

    def packaged_score(self, metric: str, item: Any) -> float:
        """What the last task's packaged scorer gives one answer: its number, or its aggregation over that answer alone."""
        return float(self._task.aggregation()[metric]([item]) if isinstance(item, Mapping) else item)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise AnyloomError("this task scores log-likelihoods; the anyloom model answers generate_until tasks: choose such a task")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise AnyloomError("this task needs several rounds; the anyloom model answers generate_until tasks: choose such a task")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in request order. Equal (image, question) pairs are asked once; what the answer file holds is not asked again.

        The batches are a function of all requests, and a batch is done whole or not at all, so a continued run meets the same ones. The images of the
        next batch are decoded and encoded meanwhile.
        """
        asks = self._asks(requests)
        batches = batches_of(asks, self.chunk, self._bucket)
        total = sum(map(len, batches))
        todo = [any(ask.key not in self.answers.replies for ask in batch) for batch in batches]
        done = 0
        with self.images.ahead():
            for number, batch in enumerate(batches):
                if todo[number]:
                    following = next((batches[n] for n in range(number + 1, len(batches)) if todo[n]), [])
                    self.images.prepare(ask.shown for ask in (*batch, *following))
                    self.answers.begin([ask.key for ask in batch])
                    self.answers.add(self._answer(batch))
                    self.images.flush()
                done += len(batch)
                if self._progress is not None:
                    self._progress(done, total)
        return [self._result(ask) for ask in asks]

    def _result(self, ask: Ask) -> GenerationResult:
        reply = self.answers.replies[ask.key]
        text = min((reply.text.split(stop)[0] for stop in ask.until if stop), key=len, default=reply.text)
        return GenerationResult(text=text, token_counts=TokenCounts(input_tokens=reply.num_input_tokens, output_tokens=reply.num_tokens))

    def _asks(self, requests: list[Instance]) -> list[Ask]:
        """Every request with its identity: checkpoint, task file, harness, prompt, image, decoding. Raises AnyloomError for a task that samples."""
        files: dict[tuple[str, str], Callable[[int], list[Callable[[], bytes]]]] = {}
        shown = self.images.under([self._image(request, files) for request in requests], self.condition, self.seed)
        tasks: dict[int, str] = {}
        asks = []
        for request, image in zip(requests, shown, strict=True):
            text, options, doc_to_visual, doc_id, name, split = request.args
            if options.get("do_sample") and options.get("temperature") != 0:
                raise AnyloomError(f"{name} draws its answers at random; the anyloom model writes the likeliest tokens: set do_sample to false in the task")
            task = getattr(doc_to_visual, "__self__", None)
            if id(task) not in tasks:
                tasks[id(task)], self._task = _task_identity(task), task
            until, limit = options.get("until") or (), int(options.get("max_new_tokens", MAX_NEW_TOKENS))
            identity = [image, text, limit, self.condition, self.caption_turn, self.digest, tasks[id(task)]]
            ask = Ask(fingerprint(identity), image, text, (until,) if isinstance(until, str) else tuple(until), limit)
            self.asked[split, doc_id], self.prompts[split, doc_id] = ask.key, text
            asks.append(ask)
        return asks

    def _image(self, request: Instance, files: dict[tuple[str, str], Callable[[int], list[Callable[[], bytes]]]]) -> str:
        _, _, doc_to_visual, doc_id, task, split = request.args
        documents = self.task_dict[task][split]
        if (task, split) not in files:
            files[task, split] = image_files(documents) if self._by_bytes else lambda _: []
        return self.images.known(f"{task} document {doc_id}", lambda: doc_to_visual(documents[doc_id]) or [], files[task, split](doc_id))

    def _answer(self, batch: Sequence[Ask]) -> dict[str, Reply]:

        items = [
            Question(
                text=ask.text,
                media_key=ask.shown,
                modality="image" if ask.shown else None,
                features_NE=self.images.features(ask.shown) if ask.shown else None,
            )
            for ask in batch
        ]
        found = self._generator.answer(items, max_new_tokens=batch[0].max_new_tokens, caption_turn=self.caption_turn)
        return {
            ask.key: Reply(
                text=answer.text,
                caption=answer.caption or "",
                num_input_tokens=int(answer.num_input_tokens),
                num_tokens=len(answer.token_ids),
                unread=answer.unread,
            )
            for ask, answer in zip(batch, found, strict=True)
        }


def _loaded(path: Path | None, threads: int | None, device: Any, base: str) -> GeneratorLike:
    if path is None or not (path / "anyloom.json").is_file():
        raise AnyloomError(f"path={path or '(none)'} is not an export: give the directory that holds anyloom.json")

    return Generator.load(path, threads=threads, device=str(device or "cpu"), base=Path(base) if base else None)


def _task_identity(task: Any) -> str:
    """Hash of a task's file as the harness read it, without where its data is (the image and the prompt say what the data is), and of the harness."""
    config = task.config.to_dict() if task is not None else {}
    told = {key: value for key, value in config.items() if not key.startswith("dataset_")}
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(told, sort_keys=True, default=str))
    return hashlib.sha256(f"{harness_version()}\n{text}".encode()).hexdigest()


def run_lmms(task_yaml_dir: Path, task: str, model: lmms, limit: int | None = None, scratch: Path | None = None) -> dict[str, Any]:
    """Run one task of a task directory through lmms-eval and return its result dict with `samples` in document order.

    The model stays usable afterwards. Its own bootstrap is off (evals.statistics resamples images) and scoring runs in one thread
    because some scorers draw at random. scratch: where scorers write files of their own, and documents are scored without decoding their images again;
    None: the working directory. limit: first rows to ask, for trying out; a fraction is refused because the harness carries it from task to task, and what is
    sampled is drawn before (evals.suites.rows). Raises AnyloomError when the directory has no such task.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise AnyloomError(f"limit is {limit}: give a whole number of rows, or draw whole groups with num_questions")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(verbosity="ERROR", include_path=str(task_yaml_dir.resolve()), include_defaults=False, model_name="anyloom")
    if task not in manager.all_tasks:
        raise AnyloomError(f"{task_yaml_dir} has no lmms_task called {task}; it has: {', '.join(manager.all_tasks) or 'none'}")
    options = None if scratch is None else argparse.Namespace(output_path=str(scratch), process_with_media=False)
    results = simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        process_docs_parallel=1,
        limit=limit,
        verbosity="ERROR",
        cli_args=options,
    )
    results["samples"] = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return results


def mmbench_hits(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(1 where the row's own answer is right, 1 where all rows of its group are) by the packaged static judge, in the order of the rows.

    rows: what the packaged process_results makes of a document. It is the judge behind gpt_eval_score, asked row by row and group by group.
    """
    import pandas
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    table = pandas.DataFrame([{**row, "prediction": str(row["prediction"])} for row in rows])
    truth = dict(zip(table["index"], table["answer"], strict=True))

    def judged(part: Any) -> float:
        return float(mmbench_evaluator.eval_sub_data(part, truth, static_only=True))

    groups = {group: judged(part.sort_values(by="index")) for group, part in table.groupby(table["index"] % 10**6)}
    return [(judged(table.iloc[[place]]), groups[row["index"] % 10**6]) for place, row in enumerate(rows)]


def harness_version() -> str:
    """Version of the installed lmms-eval; its own result dict says "unknown" for a wheel."""
    return version("lmms-eval")
