"""train-stages: the three training stages and the exported model. Steps it needs are made if they are missing."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run import TRAIN_STAGES, run_targets


@flow(name="train-stages", flow_run_name="train-stages {recipe}", log_prints=False)
def train_stages(recipe: str = "smol", root: str | None = None, overrides: dict[str, Any] | None = None, force: list[str] | None = None) -> dict[str, str]:
    """Materialize the three training stages and the exported model. Arguments and result as in flows.end_to_end."""
    return run_targets(recipe, root=root, overrides=overrides or {}, targets=TRAIN_STAGES, force=force or [])
