"""evaluate: evaluation, history and report. Steps it needs are made if they are missing."""

from __future__ import annotations

from prefect import flow

from flows.deployments.alerts import HOOKS
from flows.deployments.deployed import run_flow
from flows.deployments.parameters import Files, Overrides, RecipeName, described
from flows.running.run import EVALUATE


@flow(name="evaluate", flow_run_name="evaluate {recipe}", **HOOKS)
@described
def evaluate(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Evaluate the recipe's model, add the scores to the benchmark history, write the report."""
    return run_flow(recipe, EVALUATE, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads)
