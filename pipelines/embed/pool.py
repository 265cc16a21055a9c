"""Pools of embedding workers: a Ray Data actor pool, or threads of this process. They only schedule; the bytes are the same.

Owns how many workers there are, on which device, and how many threads decode for each: one worker per GPU where there are GPUs (decoding shared out
over the CPU threads), else one single-threaded worker per CPU thread. Input: part tasks; output: a PartDone for each, in any order.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from infra import ray_session
from infra.settings import cluster_is_given
from infra.step import Resources
from mmcore.encoder_config import EncoderConfig
from pipelines.embed.worker import PartBuilder, PartDone, PartTask

IN_PROCESS_S = 15.0
"""How long a machine without GPUs works before it asks whether actors are worth their start."""
WORTH_ACTORS_S = 90.0
"""Work that must be left for them, at the rate so far: starting them takes about IN_PROCESS_S of every CPU, and less is won back on fewer."""


def build_parts(tasks: Sequence[PartTask], spec: EncoderConfig, weights_dir: Path, stores: Path, resources: Resources) -> Iterator[PartDone]:
    """Build every part; yields as each is committed, in any order."""
    left, arguments = list(tasks), (spec, weights_dir, stores)
    spread = resources.use_ray and (cluster_is_given() or (len(tasks) > 1 and (resources.gpus or resources.workers) > 1))
    if not spread:
        yield from _with_threads(left, arguments, resources)
        return
    if not (cluster_is_given() or resources.gpus) and IN_PROCESS_S:
        left = yield from _with_threads(left, arguments, resources, may_stop=True)
    if left:
        yield from _with_actors(left, arguments, resources)


class PartActor:
    """A PartBuilder as Ray Data wants it: a row holds a task and what the builder is made from, the row that comes back what became of it.

    Ray Data wraps what a worker raises and loses its type on the way; here it travels as a value and is raised by the driver. The builder is made by
    the first row and not by the constructor, whose arguments Ray could not hand to a restarted worker.
    """

    _builder: PartBuilder | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"task": PartTask, "builder": arguments of PartBuilder} -> {"outcome": PartDone, or the exception}."""
        try:
            self._builder = self._builder or PartBuilder(*row["builder"])
            return {"outcome": self._builder.build(row["task"])}
        except Exception as error:
            return {"outcome": error}


def _with_actors(tasks: Sequence[PartTask], arguments: tuple[EncoderConfig, Path, Path], resources: Resources) -> Iterator[PartDone]:
    """Ray Data: a fixed pool of actors over the cluster (or this machine). A part that is built twice, after a lost node, has equal bytes."""
    ray_session.start(resources.threads)
    import ray
    import ray.data

    found = ray.cluster_resources()
    gpus = int(found.get("GPU", 0))
    cpus = int(found.get("CPU", 1)) if cluster_is_given() else max(resources.threads, resources.workers)
    workers = min(gpus or cpus, len(tasks))
    decoders = max(1, cpus // workers - 1) if gpus else 1
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised below, in one line
    builder = (*arguments, "cuda:0" if gpus else "cpu", decoders)
    rows = ray.data.from_items([{"task": task, "builder": builder} for task in tasks], override_num_blocks=len(tasks))
    done = rows.map(
        PartActor,  # type: ignore[arg-type]  # Ray Data makes one object of it per worker; its types know functions of a row only
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=decoders if gpus else 1,
        num_gpus=1 if gpus else 0,
        ray_remote_args_fn=lambda: {"max_restarts": 1, "max_task_retries": 1},  # a worker that keeps dying is a failure, not a loop
    )
    for row in done.iter_rows():
        if isinstance(row["outcome"], Exception):
            raise row["outcome"]
        yield replace(row["outcome"], workers=workers)


def _with_threads(
    tasks: Sequence[PartTask], arguments: tuple[EncoderConfig, Path, Path], resources: Resources, may_stop: bool = False
) -> Generator[PartDone, None, list[PartTask]]:
    """Each thread has an encoder copy for itself while it builds a part; torch lets go of the interpreter while it computes.

    may_stop: it begins no part once the rest is worth actors. Returns the tasks that are left.
    """
    if not tasks:
        return []
    import torch

    gpus = min(resources.gpus, torch.cuda.device_count())
    threads = max(resources.threads, resources.workers)
    workers = max(1, min(gpus or threads, len(tasks)))
    decoders = max(1, threads // workers) if gpus else 1
    before = torch.get_num_threads()
    free: SimpleQueue[PartBuilder] = SimpleQueue()
    opening, opened = Lock(), set[int]()
    left: list[PartTask] = []
    num_done = 0
    start = math.inf

    def worth_actors() -> bool:
        elapsed = time.monotonic() - start
        return elapsed > IN_PROCESS_S and (len(tasks) - num_done) * elapsed > WORTH_ACTORS_S * num_done

    def build(task: PartTask) -> PartDone | None:
        if may_stop and (left or worth_actors()):
            left.append(task)
            return None
        builder = free.get()
        try:
            with nullcontext() if id(builder) in opened else opening:  # some encoders open their models with the first item
                done = builder.build(task)
            opened.add(id(builder))
            return replace(done, workers=workers)
        finally:
            free.put(builder)

    try:
        for number in range(workers):  # one after the other: transformers changes torch for every thread while it builds a model
            free.put(PartBuilder(*arguments, f"cuda:{number}" if gpus else "cpu", decoders))
        start = time.monotonic()
        if workers == 1:
            yield from filter(None, map(build, tasks))
            return left
        with ThreadPoolExecutor(workers, "encode") as pool:
            futures = [pool.submit(build, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    if done := future.result():
                        num_done += 1
                        yield done
            finally:
                for future in futures:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
    return left
