"""train-stage1, train-stage2, train-stage3: one training stage each. Steps it needs are made if they are missing."""

from __future__ import annotations

from prefect import flow

from flows.deployments.alerts import HOOKS
from flows.deployments.deployed import run_flow
from flows.deployments.parameters import Files, Overrides, RecipeName, described
from flows.running.run import stage_targets


@flow(name="train-stage1", flow_run_name="train-stage1 {recipe}", **HOOKS)
@described
def train_stage1(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Train stage 1: the input projectors, on captions. What it needs is made if it is missing; the recipe's last stage is exported."""
    targets = stage_targets(recipe, overrides, "stage1")
    return run_flow(recipe, targets, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads)


@flow(name="train-stage2", flow_run_name="train-stage2 {recipe}", **HOOKS)
@described
def train_stage2(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Train stage 2: the output projectors and signal tokens. What it needs is made if it is missing; the recipe's last stage is exported."""
    targets = stage_targets(recipe, overrides, "stage2")
    return run_flow(recipe, targets, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads)


@flow(name="train-stage3", flow_run_name="train-stage3 {recipe}", **HOOKS)
@described
def train_stage3(
    recipe: RecipeName = "smol",
    root: str | None = None,
    overrides: Overrides = None,
    force: list[str] | None = None,
    lists: Files = None,
    weights: Files = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Train stage 3: LoRA and the new token rows, on instructions. What it needs is made if it is missing; the recipe's last stage is exported."""
    targets = stage_targets(recipe, overrides, "stage3")
    return run_flow(recipe, targets, root=root, overrides=overrides, force=force, lists=lists, weights=weights, threads=threads)
