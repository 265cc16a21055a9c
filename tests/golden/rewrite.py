"""Rewrites the golden files: the resolved JSON of every recipe; with --losses also the losses of the recipe tiny. Look at the diff before committing."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
LOSSES = HERE / "losses" / "tiny.json"
STEPS = 20
"""Optimizer steps of each stage whose losses are kept."""
STAGES = ("stage1", "states", "stage2", "stage3")


def resolved() -> dict[str, str]:
    """Recipe name -> its resolved JSON."""
    from infra.fingerprint import to_plain
    from pipelines.recipes import RECIPES

    return {name: json.dumps(to_plain(make()), indent=1, sort_keys=True, ensure_ascii=False) + "\n" for name, make in RECIPES.items()}


def train_tiny(root: Path, force: bool = False) -> dict[str, Any]:
    """Run the tiny recipe with STEPS steps a stage up to stage 3, in this process on one thread. Returns name -> Outcome of STAGES; force: run these again."""
    from infra.materialize import Place, materialize
    from infra.plan import topological
    from infra.step import Resources
    from pipelines.dag.build import build
    from pipelines.recipes import get_recipe

    steps = build(get_recipe("tiny", {f"{stage}.steps": STEPS for stage in STAGES if stage != "states"}))
    outcomes: dict[str, Any] = {}
    for step in topological([steps["stage3"]]):
        inputs = {name: outcomes[of.name].artifact for name, of in step.inputs.items()}
        outcomes[step.name] = materialize(step, inputs, Place(root=root), resources=Resources(threads=1, use_ray=False), force=force and step.name in STAGES)
    return {name: outcomes[name] for name in STAGES}


def losses(outcomes: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Stage -> column of its loss log (the loss, its parts, the gradient's norm) -> a value a step, to seven digits."""
    import pyarrow.parquet as pq

    found = {}
    for stage in STAGES:
        if stage != "states":
            columns = pq.read_table(outcomes[stage].artifact.path / "losses.parquet").to_pydict()
            kept = {name: values for name, values in columns.items() if name.startswith("loss") or name == "gradient_norm"}
            found[stage] = {name: [None if value is None else float(f"{value:.7g}") for value in values] for name, values in kept.items()}
    return found


def write(path: Path, text: str) -> None:
    """Write a golden file and say whether it changed."""
    path.parent.mkdir(exist_ok=True)
    print("changed  " if not path.exists() or path.read_text() != text else "unchanged", path.name)
    path.write_text(text)


if __name__ == "__main__":
    for recipe, text in resolved().items():
        write(HERE / "recipes" / f"{recipe}.json", text)
    if "--losses" in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            write(LOSSES, json.dumps(losses(train_tiny(Path(folder))), indent=1, sort_keys=True) + "\n")
