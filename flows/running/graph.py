"""The one Prefect task, and the graph runner around it.

`run_graph` materializes steps inputs first. Steps that do not depend on each other run side by side within the thread budget, each in a process that
runs nothing else meanwhile: a Ray worker, or without Ray one of a pool. This process runs no step; with Prefect each waits for its own in a task run of
`materialize_step`, without in a plain thread. Prefect gives retries, schedules and the UI; it caches nothing (NO_CACHE): the record on storage decides
what is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.running.display import Display
from flows.running.interrupts import GRACE_S, leave
from infra.materialize import EXECUTED, Outcome, Place, materialize
from infra.progress import FileProgress, relay
from infra.settings import Settings
from infra.step import ALL_BUT_ONE, ALL_GPUS, Resources, Step, StepContext
from infra.step_pool import StepPool


class NotRun(Exception):
    """A step was left out because something before it failed, or the run was interrupted."""


class Budget:
    """Hands out CPU threads and GPUs; a step waits until its share of both is free."""

    def __init__(self, threads: int, gpus: int = 0):
        self.threads, self.gpus = threads, gpus
        self.free_threads, self.free_gpus, self.changed = threads, gpus, threading.Condition()

    @contextmanager
    def share(self, step: Step) -> Iterator[tuple[int, int]]:
        """Hold the threads and GPUs a step asks for (0 threads, ALL_GPUS or too many: all of them; ALL_BUT_ONE: at least one)."""
        threads = max(1, self.threads - 1) if step.threads == ALL_BUT_ONE else min(step.threads, self.threads) or self.threads
        gpus = self.gpus if step.gpus == ALL_GPUS else min(step.gpus, self.gpus)
        with self.changed:
            self.changed.wait_for(lambda: self.free_threads >= threads and self.free_gpus >= gpus)
            self.free_threads -= threads
            self.free_gpus -= gpus
        try:
            yield threads, gpus
        finally:
            with self.changed:
                self.free_threads += threads
                self.free_gpus += gpus
                self.changed.notify_all()


@dataclass
class GraphRun:
    """The state of one run: what its steps' threads share."""

    steps: list[Step]
    place: Place
    settings: Settings
    display: Display
    force: frozenset[str] = frozenset()
    threads: int = 1
    """CPU threads of the machine, or as many of them as one node of the cluster has."""
    gpus: int = 0
    """GPUs of the machine, or of the cluster."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    """Steps at work this instant."""
    used: Callable[[Path], None] = lambda _: None
    """Told of every artifact that the run has made or met, so that it is not collected while the run lives."""

    def __post_init__(self) -> None:
        self.budget, self.beside = Budget(self.threads, self.gpus), Budget(max(1, self.threads - 1))
        self.by_name = {step.name: step for step in self.steps}
        self.log = self.place.root / "logs" / "run.log"
        self.pool = StepPool(self.log)

    def materialize(self, name: str) -> None:
        """Materialize one step whose inputs have been waited for. Raises NotRun when one of them failed, else what the step raised."""
        step = self.by_name[name]
        missing = [s.name for s in step.inputs.values() if s.name not in self.outcomes]
        if missing:
            raise NotRun(f"{name} needs {missing[0]}")
        inputs = {key: self.outcomes[s.name].artifact for key, s in step.inputs.items()}
        with (self.beside if self.in_background(step) else self.budget).share(step) as (threads, gpus):
            if self.errors:
                raise NotRun(f"{name} was left out because {next(iter(self.errors))} failed")
            started = time.monotonic()
            self.running.add(name)
            self.display.start(name)
            resources = Resources(threads=threads, workers=threads if step.spread else 1, gpus=gpus, use_ray=self.settings.use_ray)
            try:
                outcome = materialize(
                    step,
                    inputs,
                    self.place,
                    resources=resources,
                    force=name in self.force,
                    call=self.call,
                    say=self.display.say,
                    used=self.used,
                    progress=lambda done, total, note="": self.display.update(name, done, total, note),
                )
            except BaseException:
                self.display.finish(name, "failed", time.monotonic() - started)
                raise
            finally:
                self.running.discard(name)
            self.outcomes[name] = outcome
            self.display.finish(name, "done" if outcome.status == EXECUTED else outcome.status, outcome.seconds)

    def interrupt(self, error: BaseException) -> None:
        """Stop everything because of `error`: no further step, no process of one, and no waiting for what in this process does not end soon."""
        self.errors.setdefault("the run", error)
        self.pool.stop()
        if self.settings.use_ray:
            from infra import ray_session

            ray_session.interrupt()
        patience = time.monotonic() + GRACE_S
        while self.running and time.monotonic() < patience:
            time.sleep(0.05)
        if self.running:
            self.display.bars.stop()
            leave(error)

    def in_background(self, step: Step) -> bool:
        """True when the step runs beside the thread budget, at the lowest priority and with a budget of its own: one thread less than there are, which is what
        a long step before them leaves. More of them at once would only take turns, and the caches with them."""
        return step.background and step.isolate and self.settings.use_ray and not (step.gpus and self.gpus)

    def call(self, step: Step, context: StepContext[Any]) -> Mapping[str, Any]:
        """Run the step's function in a process that runs nothing else meanwhile: a Ray task, or without Ray one of the pool."""
        path, resources = context.work.with_suffix(".progress"), context.resources
        job = (run_step, replace(step, inputs={}), replace(context, progress=FileProgress(path)), self.log)

        def poll() -> None:
            relay(path, context.progress)

        try:
            if not self.settings.use_ray:
                return self.pool.run(step.name, *job, threads=resources.threads, gpus=resources.gpus, on_poll=poll)
            from infra.ray_session import run_isolated

            background = self.in_background(step)
            return run_isolated(step.name, *job, threads=resources.threads, gpus=resources.gpus, holds=step.isolate, background=background, on_poll=poll)
        finally:
            path.unlink(missing_ok=True)


def run_step(step: Step, context: StepContext[Any], log: Path) -> dict[str, Any]:
    """What a step's process does."""
    from infra.logs import quiet
    from infra.settings import offline_environment

    offline_environment()
    quiet(log)
    return dict(step.load()(context))


RUNS: dict[str, GraphRun] = {}
"""Live runs by id: a task run names its step, the objects stay here."""
