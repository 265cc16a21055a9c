"""What every flow does: run steps, say so in the flow run's log, leave artifacts in Prefect's UI."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from prefect.logging import get_run_logger
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED

from flows.deployments.results import publish
from flows.running.display import Display
from flows.running.run import run_steps
from infra.settings import Settings, load_settings
from infra.step import Step
from pipelines.recipes.files import check_allowed


def deployed_settings(recipe: str, **parameters: object) -> Settings:
    """The settings of a deployed flow: its parameters, else the worker's environment. Raises AnyloomError for a recipe's file that is below none of the
    directories that the worker names: the file is code, and whoever may start a flow run chooses its parameters."""
    settings = load_settings(**parameters)
    check_allowed(recipe, [Path(directory) for directory in settings.recipe_dirs.split(os.pathsep) if directory])
    return settings


def run_and_publish(recipe: str, steps: list[Step], settings: Settings, force: Sequence[str] = ()) -> dict[str, str]:
    """Materialize steps and show what came out. Call inside a flow. Returns step -> what happened; raises the first step's error."""
    log = None
    if PREFECT_LOGGING_TO_API_ENABLED.value():
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).setLevel(logging.INFO)  # what is said in a run is for the UI, however quiet the libraries are
        log = get_run_logger().info
    display = Display(log=log)
    return run_steps(steps, settings, force=force, display=display, finished=lambda run, rows: publish(recipe, run, rows))
