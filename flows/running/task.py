"""The Prefect task: one step of the DAG as one task run, and which failures are worth another try."""

from __future__ import annotations

from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from flows.running.graph import RUNS, NotRun
from infra.step import StepDied

RETRIES = 2
BACKOFF_S = 2
"""Delay before the first retry; each further one waits twice as long, all of them up to half as long again (jitter)."""
INFRASTRUCTURE = frozenset({"ray", "aiohttp", "botocore", "google", "azure", "requests", "urllib3", "httpx"})
"""Packages whose exceptions speak of a lost worker, node or connection. A step's own exception comes through Ray as it was."""
_ABOUT_FILES = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def of_infrastructure(error: BaseException) -> bool:
    """True for a dead process, a lost worker, a network or a storage error; retrying does not help bad input or bugs."""
    if isinstance(error, StepDied):
        return True
    if isinstance(error, OSError):
        return not isinstance(error, _ABOUT_FILES)
    return any(kind.__module__.split(".")[0] in INFRASTRUCTURE for kind in type(error).__mro__)


def _worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    return of_infrastructure(state.result(raise_on_failure=False))


@task(
    name="materialize",
    task_run_name="{step}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(BACKOFF_S),
    retry_jitter_factor=0.5,
    retry_condition_fn=_worth_retrying,
)
def materialize_step(run_id: str, step: str) -> None:
    """Materialize `step` of the live run `run_id`. Raises what the step raised, or NotRun."""
    run = RUNS[run_id]
    try:
        run.materialize(step)
    except NotRun:
        raise
    except BaseException as error:
        if "the run" in run.errors:
            raise NotRun(f"{step} was interrupted") from error
        if not of_infrastructure(error) or runtime.task_run.run_count > RETRIES:
            run.errors[step] = error
        raise
