"""Lists as the steps of the data make shards of them: the recipe's, and files of the user's in their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_steps import run_step

from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig

SUFFIX = {"cc3m": "tsv", "instruct": "json"}


def sharded(root: Path, lists: Path, datasets: Mapping[str, str], group: str = "instruct", own: Mapping[str, Path] | None = None) -> Path:
    """The shards of datasets (name -> split) below root; their store is root/stores. lists: root of the recipe's lists; own: files given with --list."""
    root.mkdir(parents=True, exist_ok=True)
    specs = tuple(DatasetSpec(name=name, format=group, path=f"{group}/{name}.{SUFFIX[group]}", split=split, licence="MIT") for name, split in datasets.items())
    given = {"lists": str(lists)}
    run_step(root, f"manifest_{group}", "pipelines.shards.manifest:run", ManifestConfig(datasets=specs), given, sources=dict(own or {}))
    inputs = {"manifest": f"manifest_{group}", **given}
    run_step(root, f"shards_{group}", "pipelines.shards.plan:run", ShardsConfig(max_lost=1.0), inputs, sources=dict(own or {}))
    return root / f"shards_{group}"
