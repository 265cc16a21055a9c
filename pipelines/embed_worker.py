"""Workers of the embedding store: one part after the other, each committed on its own.

Owns the loop decode -> encode -> commit, and the two ways to run several of them: Ray actors, or threads of this process. Every torch call of an
encoder uses one thread, and a part's batches are fixed by its task, so the bytes are the same with one worker or many, with Ray or without.
Refuses to know which parts are needed.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import io
import shutil
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra import ray_session
from infra.settings import offline_environment, thread_environment
from infra.step import AnyloomError, Resources
from infra.storage import commit_entry, disk_errors, write_atomic
from mmcore.config import EncoderSpec
from mmcore.data.embeddings import PART_SCHEMA
from mmcore.data.media import MediaError
from mmcore.data.shards import ShardSet
from pipelines.shard_build import write_parquet

AHEAD = 2
"""Batches decoded ahead of the encoder."""
RECORDED = ("torch", "timm", "transformers", "av", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing to encode: a sample's medium, or a text."""

    address: str
    """Name in the store: the medium's sha256 (with its span), or the text's."""
    generation: str = ""
    """Directory of the shards artifact that holds the medium; "" for a text."""
    value: str = ""
    """Sample key, or the text itself."""
    start_s: float = 0.0
    end_s: float | None = None
    """Span of the medium in seconds; None: to its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartTask:
    """One part to encode; plain values, so that it can travel to another process."""

    items: tuple[Item, ...]
    entry: Path
    staging: Path
    """Scratch directory of this part on the same file system."""


class PartBuilder:
    """One encoder copy that turns tasks into committed parts. Not for use by several threads at once."""

    def __init__(self, spec: EncoderSpec, weights_dir: Path, stores: Path):
        offline_environment()
        keep_freed_memory()
        import torch

        from mmcore.encoders import load_encoder

        torch.set_num_threads(1)
        self._encoder = load_encoder(spec, weights_dir)
        self._spec, self._stores = spec, stores
        self._shards: dict[str, ShardSet] = {}

    def build(self, task: PartTask) -> int:
        """Encode and commit one part; returns its number of items. Raises AnyloomError when an item cannot be decoded or the disk is full."""
        import torch

        torch.set_num_threads(1)  # the setting belongs to the thread that computes
        features = self._encode(task.items)
        shutil.rmtree(task.staging, ignore_errors=True)
        try:
            with disk_errors(task.entry):
                task.staging.mkdir(parents=True)
                self._write(task, features)
                commit_entry(task.entry, task.staging, {"items": len(features), "libraries": {name: importlib.metadata.version(name) for name in RECORDED}})
        finally:
            shutil.rmtree(task.staging, ignore_errors=True)
        return len(features)

    def _encode(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Features [N_i, E] of every item; one thread decodes ahead of the encoder."""
        batches = [items[start : start + self._spec.batch] for start in range(0, len(items), self._spec.batch)]
        features: list[np.ndarray] = []
        waiting: deque[Future[list[Any]]] = deque()
        with ThreadPoolExecutor(1, "decode") as decoder:
            upcoming = iter(batches)
            for batch in islice(upcoming, AHEAD):
                waiting.append(decoder.submit(self._prepare, batch))
            while waiting:
                prepared = waiting.popleft().result()
                following = next(upcoming, None)
                if following is not None:
                    waiting.append(decoder.submit(self._prepare, following))
                features += self._encoder.forward(prepared)
        return features

    def _prepare(self, items: Sequence[Item]) -> list[Any]:
        return [self._prepare_one(item) for item in items]

    def _prepare_one(self, item: Item) -> Any:
        if not item.generation:
            return self._encoder.prepare(item.value.encode())
        if item.generation not in self._shards:
            self._shards[item.generation] = ShardSet(Path(item.generation), self._stores)
        try:
            return self._encoder.prepare(self._shards[item.generation].media(item.value), item.start_s, item.end_s)
        except MediaError as error:
            raise AnyloomError(
                f"sample {item.value} cannot be decoded ({error}), though its shard took it in: run the shards step again with --force"
            ) from error

    def _write(self, task: PartTask, features: list[np.ndarray]) -> None:
        """features.npy [all tokens, E] and rows.parquet."""
        lengths = np.array([len(rows) for rows in features], np.int64)
        together = np.concatenate(features)
        if together.shape[1] != self._spec.width or not np.isfinite(together).all():
            raise ValueError(f"encoder {self._spec.arch} gave features of shape {together.shape}, finite: {bool(np.isfinite(together).all())}")
        buffer = io.BytesIO()
        np.save(buffer, together, allow_pickle=False)
        write_atomic(task.staging / "features.npy", buffer.getvalue())
        columns = {"media_sha256": [item.address for item in task.items], "offset": np.cumsum(lengths) - lengths, "length": lengths}
        write_parquet(pa.table(columns, schema=PART_SCHEMA), task.staging / "rows.parquet")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving them back to the kernel at once.

    Activations are tens of megabytes, so by default every layer maps fresh zeroed pages: half of the time of a small convolutional encoder.
    Changes no values. Does nothing where the C library has no mallopt.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_arena_max, 1)  # arenas of further threads are limited to 64 MB


def build_parts(tasks: Sequence[PartTask], spec: EncoderSpec, weights_dir: Path, stores: Path, resources: Resources) -> Iterator[int]:
    """Build every part; yields the number of items of each as it is done, in any order."""
    if resources.use_ray and resources.workers > 1 and len(tasks) > 1:
        return _with_actors(tasks, (spec, weights_dir, stores), min(resources.workers, len(tasks)))
    return _with_threads(tasks, (spec, weights_dir, stores), max(1, min(max(resources.threads, resources.workers), len(tasks))))


def _with_actors(tasks: Sequence[PartTask], arguments: tuple[Any, ...], workers: int) -> Iterator[int]:
    ray_session.start(workers)
    import ray
    from ray.util import ActorPool

    thread_environment(1)
    remote = ray.remote(num_cpus=1, max_restarts=0)(PartBuilder)
    actors = [remote.remote(*arguments) for _ in range(workers)]
    try:
        yield from ActorPool(actors).map_unordered(lambda actor, task: actor.build.remote(task), tasks)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    finally:
        for actor in actors:
            ray.kill(actor)


def _with_threads(tasks: Sequence[PartTask], arguments: tuple[Any, ...], workers: int) -> Iterator[int]:
    """Each thread has its own encoder copy; torch lets go of the interpreter while it computes."""
    import torch

    before = torch.get_num_threads()
    own = threading.local()

    def build(task: PartTask) -> int:
        if not hasattr(own, "builder"):
            own.builder = PartBuilder(*arguments)
        return own.builder.build(task)

    try:
        if workers == 1:
            yield from map(build, tasks)
            return
        with ThreadPoolExecutor(workers, "encode") as pool:
            futures = [pool.submit(build, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
