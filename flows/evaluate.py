"""evaluate: evaluation, history and report. Steps it needs are made if they are missing."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run import EVALUATE, run_targets


@flow(name="evaluate", flow_run_name="evaluate {recipe}", log_prints=False)
def evaluate(recipe: str = "smol", root: str | None = None, overrides: dict[str, Any] | None = None, force: list[str] | None = None) -> dict[str, str]:
    """Materialize evaluation, history and report. Arguments and result as in flows.end_to_end."""
    return run_targets(recipe, root=root, overrides=overrides or {}, targets=EVALUATE, force=force or [])
