"""The flows that run part of a recipe, or all of it: one row each. Steps they need are made if they are missing.

Input: the parameters of a flow run. Output: step -> what happened. Raises: the first step's error. A deployed flow makes its settings from its
parameters and the worker's environment; the flow of a run on this machine is built with the settings it is given, and its parameters only tell of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import Flow, flow

from flows.deployments.alerts import hooks
from flows.deployments.deployed import deployed_settings, run_and_publish
from flows.deployments.parameters import Files, Overrides, RecipeName, described
from flows.running.run import EMBED, EVALUATE, PREPARE_DATA, made_recipe, recipe_steps, select, stage_targets
from infra.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowRow:
    """One flow, called like its deployment."""

    name: str
    about: str
    """What the form says of it."""
    targets: Sequence[str] | None = None
    """Its steps by name or prefix*; None: all of them."""
    stage: str = ""
    """The training stage whose steps it runs, in place of targets."""
    more: tuple[str, ...] = ()
    """Parameters that it has and the others have not."""


_TRAINED = "What it needs is made if it is missing; the recipe's last stage is exported."
PREPARE_DATA_ROW = FlowRow(
    name="prepare-data",
    about="Source lists -> manifests -> WebDataset shards, and the check for overlap of training and test data.",
    targets=PREPARE_DATA,
)
EMBED_ROW = FlowRow(name="embed", about="Shards -> the frozen encoders' features and the decoders' targets in the embedding store.", targets=EMBED)
STAGE1 = FlowRow(name="train-stage1", about=f"Train stage 1: the input projectors, on captions. {_TRAINED}", stage="stage1")
STAGE2 = FlowRow(name="train-stage2", about=f"Train stage 2: the output projectors and signal tokens. {_TRAINED}", stage="stage2")
STAGE3 = FlowRow(name="train-stage3", about=f"Train stage 3: LoRA and the new token rows, on instructions. {_TRAINED}", stage="stage3")
EVALUATE_ROW = FlowRow(name="evaluate", about="Evaluate the recipe's model, add the scores to the benchmark history, write the report.", targets=EVALUATE)
END_TO_END = FlowRow(
    name="end-to-end",
    about="Everything: lists, shards, embeddings, stages, evaluation, history, report. What is done is kept.",
    more=("targets", "use_ray"),
)


def build_flow(row: FlowRow, settings: Settings | None = None, whole: Mapping[str, Any] | None = None) -> Flow[..., dict[str, str]]:
    """The Prefect flow of a row. settings, whole: the settings and overrides of a run on this machine; None: made from the flow run's parameters and the
    environment. The parameters of a run here, which Prefect keeps, show overrides without their credentials."""

    def body(
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
        changes = (overrides or {}) if whole is None else whole
        chosen = settings or deployed_settings(recipe, root=root or None, threads=threads, use_ray=use_ray)
        wanted = stage_targets(recipe, changes, row.stage, lists) if row.stage else targets or row.targets
        steps = select(recipe_steps(recipe, changes, lists, weights), wanted)
        return run_and_publish(made_recipe(recipe, changes, lists).name, steps, chosen, force or ())

    every = inspect.signature(body, eval_str=True)
    own = [one for name, one in every.parameters.items() if name in row.more or name not in END_TO_END.more]
    body.__signature__ = every.replace(parameters=own)  # type: ignore[attr-defined]
    body.__name__, body.__qualname__, body.__doc__ = (row.name.replace("-", "_"),) * 2 + (row.about,)
    options: dict[str, Any] = {"name": row.name, "flow_run_name": f"{row.name} {{recipe}}", **hooks(settings)}
    return flow(**options)(described(body))


prepare_data = build_flow(PREPARE_DATA_ROW)
embed = build_flow(EMBED_ROW)
train_stage1 = build_flow(STAGE1)
train_stage2 = build_flow(STAGE2)
train_stage3 = build_flow(STAGE3)
evaluate = build_flow(EVALUATE_ROW)
end_to_end = build_flow(END_TO_END)
