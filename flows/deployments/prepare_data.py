"""prepare-data and embed: from source lists to shards, and from shards to stored embeddings. Steps they need are made if they are missing."""

from __future__ import annotations

from prefect import flow

from flows.deployments.alerts import HOOKS
from flows.deployments.deployed import run_flow
from flows.deployments.parameters import Files, Overrides, RecipeName, described
from flows.running.run import EMBED, PREPARE_DATA


@flow(name="prepare-data", flow_run_name="prepare-data {recipe}", **HOOKS)
@described
def prepare_data(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Source lists -> manifests -> WebDataset shards, and the check for overlap of training and test data."""
    return run_flow(recipe, PREPARE_DATA, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads)


@flow(name="embed", flow_run_name="embed {recipe}", **HOOKS)
@described
def embed(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Shards -> the frozen encoders' features and the decoders' targets in the embedding store."""
    return run_flow(recipe, EMBED, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads)
