"""The Prefect task: one step of the DAG as one task run."""

from __future__ import annotations

from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE

from flows.materialize import RUNS, NotRun
from infra.step import AnyloomError

RETRIES = 1
FINAL = (AnyloomError, NotRun, TypeError, ValueError, KeyError, AttributeError, ImportError)
"""Wrong input or wrong code stays wrong; anything else (a lost worker, a network error) is tried once more."""


def _worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    return not isinstance(state.result(raise_on_failure=False), FINAL)


@task(
    name="materialize",
    task_run_name="{step}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=2,
    retry_condition_fn=_worth_retrying,
)
def materialize_step(run_id: str, step: str) -> None:
    """Materialize `step` of the live run `run_id`."""
    run = RUNS[run_id]
    try:
        run.materialize(step)
    except NotRun:
        raise
    except BaseException as error:
        if isinstance(error, FINAL) or runtime.task_run.run_count > RETRIES:
            run.errors[step] = error
        raise
