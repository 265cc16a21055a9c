"""end-to-end: from source lists to the report, the flow behind `make demo` and `anyloom run`."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run import run_targets
from infra.settings import load_settings


@flow(name="end-to-end", flow_run_name="end-to-end {recipe}", log_prints=False)
def end_to_end(
    recipe: str = "smol",
    root: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: list[str] | None = None,
    targets: list[str] | None = None,
    lists: dict[str, str] | None = None,
    weights: dict[str, str] | None = None,
    threads: int | None = None,
    use_ray: bool | None = None,
) -> dict[str, str]:
    """Materialize a recipe.

    recipe: a name from `anyloom recipes`; root: where everything is kept; overrides: `{"stage3.lr": 1e-4}`; force: steps to run again;
    targets: only these steps and what they need; lists: dataset -> list file of your own; weights: model -> weights file of your own (imagebind).
    Returns step name -> what happened (executed, reused, same bytes).
    """
    settings = load_settings(root=root, threads=threads, use_ray=use_ray)
    return run_targets(recipe, overrides=overrides, targets=targets, force=force or [], lists=lists, weights=weights, settings=settings)
