"""Pinned: the part of a recipe's DAG that judges an export that exists already.

Input: a recipe's steps and the record of an export. Output: history and report of that export, in which the export and everything it was made from
are the artifacts themselves, whatever today's recipe would make. An export of today's recipe gives the very steps that `evaluate` has, so what is
judged once is not judged again. Nothing runs here, and nothing is trained: what would have to be trained first is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.config import HistoryConfig
from infra.artifact import ArtifactRecord, all_records, read_record
from infra.fingerprint import to_plain
from infra.plan import topological
from infra.step import AnyloomError, Step

TRAINING = "pipelines.training.train:run"


def newest_export(steps: Mapping[str, Step], root: Path) -> tuple[Path, ArtifactRecord]:
    """The export of this recipe's model that was finished last. Raises AnyloomError when there is none."""
    found = [(path, record) for path, record in all_records(root) if record.name == "export" and of_this_model(steps, record)]
    if not found:
        raise AnyloomError(f"no export of this recipe's model below {root}: train it first (anyloom run, or the deployment end-to-end)")
    return found[-1]


def of_this_model(steps: Mapping[str, Step], record: ArtifactRecord) -> bool:
    """True for an export whose model is built like the recipe's."""
    if "export" not in steps:
        raise AnyloomError("this recipe has no export to evaluate")
    return bool(record.payload["config"]["model"] == to_plain(steps["export"].config)["model"])


def judged(steps: Mapping[str, Step], root: Path, record: ArtifactRecord) -> dict[str, Step]:
    """history and report of the export. Raises AnyloomError for a recipe without an evaluation."""
    if not {"history", "report"} <= set(steps):
        raise AnyloomError("this recipe has no evaluation")
    pinned, seeds = _pins(root, record)
    remade: dict[str, Step] = {}
    for step in topological([steps["history"], steps["report"]]):
        remade[step.name] = pinned.get(step.name) or replace(step, inputs={key: remade[source.name] for key, source in step.inputs.items()})
    untrained = {name for name, step in remade.items() if any(s.run == TRAINING for s in topological([step]))}
    history = replace(remade["history"], config=_config(remade["history"].config, seeds), inputs=_without(remade["history"], untrained))
    report = replace(remade["report"], inputs=_without(remade["report"], untrained - {"history"}) | {"history": history})
    return {"history": history, "report": report}


def _pins(root: Path, record: ArtifactRecord) -> tuple[dict[str, Step], dict[str, int]]:
    """(pinned steps: the export and those it was made from, seeds of its stages)."""
    pinned, seeds = {"export": Step(name="export", config=None, run="", pinned=record.fingerprint)}, {}
    for reference in record.inputs.values():
        name, mark = reference.split("/")
        source = read_record(root / "artifacts" / name / mark)
        if source is not None:
            pinned[name] = Step(name=name, config=None, run="", pinned=source.fingerprint)
            stage = (source.payload["config"] or {}).get("stage")
            if isinstance(stage, Mapping) and "seed" in stage:
                seeds[name] = int(stage["seed"])
    return pinned, seeds


def _config(config: HistoryConfig, seeds: Mapping[str, int]) -> HistoryConfig:
    return replace(config, seeds=tuple((name, seeds.get(name, seed)) for name, seed in config.seeds))


def _without(step: Step, names: set[str]) -> dict[str, Any]:
    return {key: source for key, source in step.inputs.items() if source.name not in names}
