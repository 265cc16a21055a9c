"""What every flow does: run steps, say so in the flow run's log, leave artifacts in Prefect's UI."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.logging import get_run_logger
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED

from flows.deployments.results import publish
from flows.running.display import Display
from flows.running.run import recipe_steps, run_steps, select
from infra.settings import Settings, load_settings
from infra.step import Step


def run_flow(
    recipe: str,
    targets: Sequence[str] | None,
    *,
    root: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: Sequence[str] | None = None,
    lists: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
    threads: int | None = None,
    use_ray: bool | None = None,
) -> dict[str, str]:
    """Materialize the targets (all when None). Call inside a flow. Returns step -> what happened; raises the first step's error."""
    steps = select(recipe_steps(recipe, overrides or {}, lists, weights), targets)
    return run_and_publish(recipe, steps, load_settings(root=root or None, threads=threads, use_ray=use_ray), force or ())


def run_and_publish(recipe: str, steps: list[Step], settings: Settings, force: Sequence[str] = ()) -> dict[str, str]:
    """Materialize steps and show what came out. Call inside a flow. Returns step -> what happened; raises the first step's error."""
    log = None
    if PREFECT_LOGGING_TO_API_ENABLED.value():
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).setLevel(logging.INFO)  # what is said in a run is for the UI, however quiet the libraries are
        log = get_run_logger().info
    display = Display(log=log)
    return run_steps(steps, settings, force=force, display=display, finished=lambda run, rows: publish(recipe, run, rows))
