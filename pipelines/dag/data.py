"""Data: carried out of pipelines/dag/build.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.step import Step
from pipelines.dag.own_files import OWN
from pipelines.dag.weights import _weights
from pipelines.demo.config import QUESTIONS, AssetsConfig, SmolListsConfig, TinyListsConfig
from pipelines.recipes.recipe import Recipe, asked_about
from pipelines.shards.config import DATASET_TEMPLATES, DatasetSpec, ManifestConfig, ShardsConfig

GROUPS = ("cc3m", "webvid", "audiocaps", "instruct")

GROUP_OF = {"image": "cc3m", "video": "webvid", "audio": "audiocaps"}
"""Modality -> the group of its captions; pictures, and in the user's own lists clips and sounds too, are also in instructions."""

SUFFIX = {"cc3m": "tsv", "webvid": "csv", "audiocaps": "csv", "instruct": "json"}


def _add_shards(recipe: Recipe, steps: dict[str, Step], lists: Step | None, own_lists: Mapping[str, Path]) -> dict[str, Step]:
    """manifest_* and shards_*. Returns the shards by group; without lists of the recipe's own making only those of groups that have datasets."""
    shards = {}
    made = {} if lists is None else {"lists": lists}
    for group in GROUPS if lists is not None else sorted({d.group for d in recipe.datasets}, key=GROUPS.index):
        own = {d.name: own_lists[d.name] for d in recipe.datasets if d.group == group and d.name in own_lists}
        name = f"manifest_{group}"
        steps[name] = Step(name=name, run="pipelines.shards.manifest:run", config=_manifest_config(recipe, group), inputs=made, sources=own)
        shards[group] = steps[f"shards_{group}"] = Step(
            name=f"shards_{group}",
            run="pipelines.shards.plan:run",
            config=ShardsConfig(samples_per_shard=recipe.samples_per_shard),
            inputs={"manifest": steps[name], **made},
            sources=own,
            threads=0,
            spread=True,
            isolate=False,
        )
    return shards


def _add_sources(recipe: Recipe, steps: dict[str, Step], own_weights: Mapping[str, Path]) -> Step | None:
    """assets, weights_*, lists. Returns lists; None when every list is the user's."""
    inputs: dict[str, Step] = {}
    if recipe.weights.kind == "pretrained":
        steps["assets"] = Step(name="assets", run="pipelines.demo.assets:run", config=AssetsConfig())
        inputs = {"assets": steps["assets"]}
    own = recipe.weights.kind == OWN
    for part in ("lm", "image", *(["audio"] if recipe.audio is not None else []), *([] if own else ["text"])):
        steps[f"weights_{part}"] = _weights(recipe, part, inputs, own_weights)
    if recipe.lists == OWN:
        return None
    asked = any(asked_about(recipe, modality) for modality in QUESTIONS)
    smol = SmolListsConfig(heldout=recipe.heldout, clips=recipe.clips, pictures=recipe.easyvqa_pictures, media_questions=asked, restate=recipe.restate)
    config = smol if recipe.lists == "smol" else TinyListsConfig(media_questions=asked)
    steps["lists"] = Step(name="lists", run=f"pipelines.demo.{recipe.lists}:run", config=config, inputs=inputs if recipe.lists == "smol" else {})
    return steps["lists"]


def _manifest_config(recipe: Recipe, group: str) -> ManifestConfig:
    return ManifestConfig(
        datasets=tuple(
            DatasetSpec(
                name=d.name,
                format=group,
                path=f"{group}/{d.name}.{SUFFIX[group]}",
                split=d.split,
                licence=d.licence,
                media_template=DATASET_TEMPLATES.get(d.name, ""),
            )
            for d in recipe.datasets
            if d.group == group
        )
    )
