"""end-to-end: from source lists to the report, the flow behind `make demo` and `anyloom run`."""

from __future__ import annotations

from prefect import flow

from flows.deployments.alerts import HOOKS
from flows.deployments.deployed import run_flow
from flows.deployments.parameters import Files, Overrides, RecipeName, described


@flow(name="end-to-end", flow_run_name="end-to-end {recipe}", **HOOKS)
@described
def end_to_end(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    targets: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
    use_ray: bool | None = None,
) -> dict[str, str]:
    """Everything: lists, shards, embeddings, stages, evaluation, history, report. What is done is kept."""
    return run_flow(recipe, targets, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads, use_ray=use_ray)
