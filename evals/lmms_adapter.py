"""The only file that imports lmms_eval: our model behind its interface, and its evaluator behind one function.

Owns AnyloomLmms (requests of the harness -> Generator.answer, grouped by picture, persisted chunk by chunk) and run_lmms.
Input: a task directory (evals.suites) and an export directory or a generator object. Output: answers in a file that survives a
kill, and the harness's result dict. Refuses to know how a task scores or what a result means.

`infra.settings.offline_environment()` must have run before this module is imported: lmms_eval and datasets read it at import.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from evals.answers import AnswerFile, Reply
from infra.step import AnyloomError
from infra.storage import digest_tree

CONDITIONS = ("right", "blank", "shuffled")
_FEATURES_KEPT = 4096  # pictures whose encoder features stay in memory


def manifest() -> Any:
    """Payload of the entry point `anyloom` in the group lmms_eval.models.

    A function, because the harness loads entry points while its model registry is still being imported.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="anyloom", simple_class_path="evals.lmms_adapter.AnyloomLmms")


class GeneratorLike(Protocol):
    """What the adapter needs of mmcore.generate.Generator."""

    def encode(self, modality: str, data: bytes) -> np.ndarray: ...

    def answer(self, items: list[Any], *, max_new_tokens: int = 16, caption_turn: bool | None = None) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request as the model sees it."""

    key: str
    shown: str
    """sha256 of the PNG that is shown; "" without a picture."""
    text: str
    until: tuple[str, ...]
    max_new_tokens: int


class AnyloomLmms(lmms):
    """An exported Anyloom model, or any GeneratorLike, as an lmms-eval model.

    path: export directory; base: its language model's weights, when it was packed without them; caption_turn: auto (as exported), true or
    false; condition: right, blank (white picture) or shuffled
    (another picture of the task, seeded); answers: file that keeps answers over a kill; chunk: questions per persisted batch;
    digest: identity of the model's bytes (hashed from `path` when left out). Other keywords of the harness are accepted and unused.
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
        if generator is None:
            if not path or not Path(path, "anyloom.json").is_file():
                raise AnyloomError(f"path={path or '(none)'} is not an export: give the directory that holds anyloom.json")
            from mmcore.generate import Generator

            generator = Generator.load(Path(path), threads=threads, device=str(device or "cpu"), base=Path(base) if base else None)
            digest = digest or digest_tree(Path(path))
        self._generator = generator
        self.caption_turn, self.condition, self.seed, self.chunk = modes[str(caption_turn).lower()], condition, int(seed), int(chunk)
        self.digest, self.answers, self._progress = digest, AnswerFile(Path(answers) if answers else None), progress
        self.batch_size_per_gpu = 1
        self.asked: dict[tuple[str, int], str] = {}
        """(split, doc_id) -> key of the answer file, of the last run."""
        self._pictures: dict[str, bytes] = {}
        self._features: dict[str, np.ndarray] = {}

    def under(self, condition: str, caption_turn: bool | None, progress: Callable[[int, int], None] | None = None) -> AnyloomLmms:
        """The same loaded model, answers and encoded pictures, asked under another condition."""
        other = AnyloomLmms(
            caption_turn="auto" if caption_turn is None else caption_turn,
            condition=condition,
            seed=self.seed,
            chunk=self.chunk,
            generator=self._generator,
            digest=self.digest,
            progress=progress,
        )
        other.answers, other._features = self.answers, self._features
        return other

    def clean(self) -> None:
        """Keep the model: the harness would delete its modules after the first task."""
        self._pictures.clear()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise AnyloomError("this task scores log-likelihoods; the anyloom model answers generate_until tasks: choose such a task")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise AnyloomError("this task needs several rounds; the anyloom model answers generate_until tasks: choose such a task")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in request order. Equal (picture, question) pairs are asked once; what the answer file holds is not asked again.

        The chunks are a function of all requests, and a chunk is done whole or not at all, so a continued run meets the same batches. Pictures with
        equally many questions stand together: their rows are equally long.
        """
        asks = self._asks(requests)
        by_key = {ask.key: ask for ask in asks}
        num_asked = Counter(ask.shown for ask in by_key.values())
        distinct = sorted(by_key.values(), key=lambda ask: (ask.max_new_tokens, num_asked[ask.shown], ask.shown, ask.text))
        for start in range(0, len(distinct), self.chunk):
            batch = distinct[start : start + self.chunk]
            if any(ask.key not in self.answers.replies for ask in batch):
                self.answers.add(self._answer(batch))
            if self._progress is not None:
                self._progress(min(start + self.chunk, len(distinct)), len(distinct))
        results = []
        for ask in asks:
            reply = self.answers.replies[ask.key]
            text = min((reply.text.split(stop)[0] for stop in ask.until if stop), key=len, default=reply.text)
            results.append(GenerationResult(text=text, token_counts=TokenCounts(input_tokens=reply.num_input_tokens, output_tokens=reply.num_tokens)))
        return results

    def _asks(self, requests: list[Instance]) -> list[_Ask]:
        own = [self._picture(request) for request in requests]
        shown = _shown(self._pictures, own, self.condition, self.seed)
        asks = []
        for request, picture in zip(requests, shown, strict=True):
            text, options, _, doc_id, _, split = request.args
            until = options.get("until") or ()
            limit = int(options.get("max_new_tokens", 128))
            identity = json.dumps([picture, text, limit, self.condition, self.caption_turn, self.digest])
            ask = _Ask(hashlib.sha256(identity.encode()).hexdigest(), picture, text, (until,) if isinstance(until, str) else tuple(until), limit)
            self.asked[split, doc_id] = ask.key
            asks.append(ask)
        return asks

    def _picture(self, request: Instance) -> str:
        """sha256 of the request's picture as PNG bytes, which are kept; "" when it has none."""
        _, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) > 1 or (visuals and not hasattr(visuals[0], "convert")):
            raise AnyloomError(f"{task} document {doc_id}: the anyloom model takes one picture per question, not {len(visuals)} media")
        return self._keep(visuals[0]) if visuals else ""

    def _keep(self, picture: Any) -> str:
        data = _png(picture)
        sha = hashlib.sha256(data).hexdigest()
        self._pictures[sha] = data
        return sha

    def _answer(self, batch: Sequence[_Ask]) -> dict[str, Reply]:
        from mmcore.types import Question

        items = [
            Question(text=ask.text, media_key=ask.shown, modality="image" if ask.shown else None, features_NE=self._encoded(ask.shown) if ask.shown else None)
            for ask in batch
        ]
        limits = {ask.max_new_tokens for ask in batch}
        found = self._generator.answer(items, max_new_tokens=max(limits), caption_turn=self.caption_turn)
        return {
            ask.key: Reply(text=answer.text, caption=answer.caption or "", num_input_tokens=int(answer.num_input_tokens), num_tokens=len(answer.token_ids))
            for ask, answer in zip(batch, found, strict=True)
        }

    def _encoded(self, sha: str) -> np.ndarray:
        if sha not in self._features:
            if len(self._features) >= _FEATURES_KEPT:
                self._features.pop(next(iter(self._features)))
            self._features[sha] = self._generator.encode("image", self._pictures[sha])
        return self._features[sha]


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _shown(pictures: dict[str, bytes], own: list[str], condition: str, seed: int) -> list[str]:
    """The picture each request gets under a condition; adds the blank pictures to `pictures`.

    shuffled: one cycle through all distinct pictures in seeded order, so nobody keeps its own and every picture is shown as often
    as another one's questions ask. blank: white, in the size of the picture it replaces.
    """
    if condition == "right":
        return own
    distinct = sorted({sha for sha in own if sha})
    if condition == "shuffled":
        if len(distinct) == 1:
            raise AnyloomError("condition=shuffled needs questions about at least two different pictures")
        order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
        other = dict(zip(order, order[1:] + order[:1], strict=True))
    else:
        other = {sha: _blank(pictures, sha) for sha in distinct}
    return [other[sha] if sha else "" for sha in own]


def _blank(pictures: dict[str, bytes], sha: str) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(pictures[sha])) as picture:
        data = _png(Image.new("RGB", picture.size, "white"))
    blank = hashlib.sha256(data).hexdigest()
    pictures[blank] = data
    return blank


def run_lmms(task_yaml_dir: Path, task: str, model: AnyloomLmms, limit: int | None = None) -> dict[str, Any]:
    """Run one task of a task directory through lmms-eval and return its result dict with `samples` in document order.

    The model stays usable afterwards. Its own bootstrap is off (evals.statistics resamples pictures) and scoring runs in one thread
    because some scorers draw at random. Raises AnyloomError when the directory has no such task.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(verbosity="ERROR", include_path=str(task_yaml_dir.resolve()), include_defaults=False, model_name="anyloom")
    if task not in manager.all_tasks:
        raise AnyloomError(f"{task_yaml_dir} has no lmms_task called {task}; it has: {', '.join(manager.all_tasks) or 'none'}")
    with _without_bars():
        results = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
            process_docs_parallel=1,
            limit=limit,
            verbosity="ERROR",
        )
    results["samples"] = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return results


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the harness's own progress bars, which no setting reaches; the step shows one of its own."""
    import lmms_eval.api.task
    import lmms_eval.evaluator

    class Silent(lmms_eval.evaluator.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": True})

    modules = (lmms_eval.evaluator, lmms_eval.api.task)
    kept = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = Silent
    try:
        yield
    finally:
        for module, bar in zip(modules, kept, strict=True):
            module.tqdm = bar


def harness_version() -> str:
    """Version of the installed lmms-eval; its own result dict says "unknown" for a wheel."""
    return version("lmms-eval")
