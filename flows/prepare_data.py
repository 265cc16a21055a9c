"""prepare-data: from source lists to shards and embeddings. Steps it needs are made if they are missing."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run import PREPARE_DATA, run_targets


@flow(name="prepare-data", flow_run_name="prepare-data {recipe}", log_prints=False)
def prepare_data(recipe: str = "smol", root: str | None = None, overrides: dict[str, Any] | None = None, force: list[str] | None = None) -> dict[str, str]:
    """Materialize from source lists to shards and embeddings. Arguments and result as in flows.end_to_end."""
    return run_targets(recipe, root=root, overrides=overrides or {}, targets=PREPARE_DATA, force=force or [])
