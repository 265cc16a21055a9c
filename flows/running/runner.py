"""Runner: brings a run's steps to their end, inputs first, in threads or Prefect task runs that wait for the steps' processes.

Input: steps, where they live, settings. Output: the GraphRun with an outcome of every step. Raises: the first step's error, or the interrupt.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from flows.running.display import Display
from flows.running.graph import RUNS, GraphRun, NotRun
from flows.running.interrupts import ending_begins, is_run, never_missed
from infra.garbage import live_run
from infra.materialize import Place
from infra.plan import topological
from infra.settings import Settings
from infra.step import AnyloomError, Step

MAX_STEPS_AT_ONCE = 64  # threads of the runner; waiting steps sleep in one each, the thread budget limits the work


def run_graph(steps: list[Step], place: Place, settings: Settings, display: Display, *, force: frozenset[str] = frozenset()) -> GraphRun:
    """Materialize `steps` and all they need. Inside a Prefect flow every step becomes a task run.

    Raises the first step's error after everything that was running has ended; what is complete stays complete.
    """
    ordered, gpus, threads = topological(steps), settings.num_gpus, settings.num_threads
    unknown = force - {step.name for step in ordered}
    if unknown:
        raise AnyloomError(f"--force {sorted(unknown)[0]}: no such step; the steps are: {', '.join(step.name for step in ordered)}")
    if settings.use_ray:
        from flows.running.leftovers import watch
        from infra import ray_session

        watch()
        ray_session.start(settings.num_threads, gpus)
        gpus, threads = ray_session.num_gpus(gpus), min(threads, ray_session.cpus_of_a_node(threads))
    run = GraphRun(steps=ordered, place=place, settings=settings, display=display, force=force, threads=threads, gpus=gpus)
    try:
        with never_missed() if is_run() else nullcontext(), ending_begins(), live_run(place.root) as run.used:
            (_submit_prefect if settings.use_prefect else _submit_threads)(run)
    except BaseException as error:  # SIGTERM, Ctrl-C; what a step raises is in run.errors
        run.interrupt(error)
        raise
    finally:
        run.pool.close()
    if run.errors:
        name, first = next(iter(run.errors.items()))
        if not isinstance(first, AnyloomError):
            first.add_note(f"step {name}")
        raise first
    return run


def _submit_threads(run: GraphRun) -> None:
    with ThreadPoolExecutor(MAX_STEPS_AT_ONCE) as pool:
        futures: dict[str, Future[None]] = {}

        def job(step: Step) -> None:
            for source in step.inputs.values():
                futures[source.name].exception()  # wait; whether it failed is looked up in the run
            try:
                run.materialize(step.name)
            except NotRun:
                return  # the step that failed is in run.errors
            except BaseException as error:
                run.errors[step.name] = error

        for step in run.steps:
            futures[step.name] = pool.submit(job, step)


def _submit_prefect(run: GraphRun) -> None:
    from uuid import uuid4

    from prefect import allow_failure

    from flows.running.task import materialize_step

    run_id = uuid4().hex
    RUNS[run_id] = run
    try:
        futures: dict[str, Any] = {}
        for step in run.steps:
            waits = [allow_failure(futures[source.name]) for source in step.inputs.values()]
            futures[step.name] = materialize_step.submit(run_id, step.name, wait_for=waits, return_state=False)
        for future in futures.values():
            future.wait()
    finally:
        del RUNS[run_id]
