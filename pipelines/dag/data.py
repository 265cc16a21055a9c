"""Data: from source lists to shards.

Input: a Recipe and the user's files. Output: the steps assets, lists, manifest_*, shards_* and overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.step import AnyloomError, Step
from pipelines.dag.parts import Data, Given
from pipelines.demo.config import QUESTIONS, AssetsConfig, SmolListsConfig, TinyListsConfig
from pipelines.recipes.recipe import OWN, Recipe, asked_about
from pipelines.shards.config import DATASET_TEMPLATES, DatasetSpec, ManifestConfig, OverlapConfig, ShardsConfig

GROUPS = ("cc3m", "webvid", "audiocaps", "instruct")
"""Formats of lists; each has shards of its own."""
SUFFIX = {"cc3m": "tsv", "webvid": "csv", "audiocaps": "csv", "instruct": "json"}


def plan_data(recipe: Recipe, given: Given) -> Data:
    """assets, lists, manifest_*, shards_*, overlap. Raises AnyloomError for a max_lost that is no share."""
    if not 0 <= recipe.max_lost <= 1:
        raise AnyloomError(f"recipe {recipe.name}: max_lost is {recipe.max_lost}: it is a share, from 0 to 1")
    assets = Step(name="assets", run="pipelines.demo.assets:run", config=AssetsConfig()) if recipe.weights.kind == "pretrained" else None
    lists = _lists(recipe, assets)
    groups = GROUPS if lists is not None else sorted({d.format for d in recipe.datasets}, key=GROUPS.index)
    made = {} if lists is None else {"lists": lists}
    own = {group: {d.name: given.lists[d.name] for d in recipe.datasets if d.format == group and d.name in given.lists} for group in groups}
    manifests = {group: _manifest(recipe, group, made, own[group], given) for group in groups}
    shards = {group: _shards(recipe, group, manifests[group], made, own[group]) for group in groups}
    images = {f"shards_{group}": shards[group] for group in ("cc3m", "instruct") if group in shards}
    config = OverlapConfig(max_bits=recipe.near_duplicate_bits)
    overlap = Step(name="overlap", run="pipelines.shards.overlap:run", config=config, inputs=images)
    return Data(assets=assets, lists=lists, manifests=manifests, shards=shards, overlap=overlap)


def _lists(recipe: Recipe, assets: Step | None) -> Step | None:
    """The lists that are made here; None when every list is the user's."""
    if recipe.lists == OWN:
        return None
    asked = any(asked_about(recipe, modality) for modality in QUESTIONS)
    smol = SmolListsConfig(heldout=recipe.heldout, clips=recipe.clips, pictures=recipe.easyvqa_pictures, media_questions=asked, restate=recipe.restate)
    config = smol if recipe.lists == "smol" else TinyListsConfig(media_questions=asked)
    inputs = {"assets": assets} if assets is not None and recipe.lists == "smol" else {}
    return Step(name="lists", run=f"pipelines.demo.{recipe.lists}:run", config=config, inputs=inputs)


def _manifest(recipe: Recipe, group: str, lists: Mapping[str, Step], own: Mapping[str, Path], given: Given) -> Step:
    datasets = tuple(
        DatasetSpec(
            name=d.name,
            format=group,
            path=f"{group}/{d.name}.{SUFFIX[group]}",
            split=d.split,
            licence=d.licence,
            media_template=d.media_template or DATASET_TEMPLATES.get(d.name, ""),
            span_s=d.span_s,
            part=d.part,
            heldout=d.heldout if d.part else 0.0,
        )
        for d in recipe.datasets
        if d.format == group
    )
    return Step(
        name=f"manifest_{group}",
        run="pipelines.shards.manifest:run",
        config=ManifestConfig(datasets=datasets),
        revision=4 if group == "instruct" else 3,  # the last of both: texts of characters that cannot be seen are none
        inputs=lists,
        sources=own,
        needs=", ".join(given.lacking[d.name] for d in datasets if d.name in given.lacking),
    )


def _shards(recipe: Recipe, group: str, manifest: Step, lists: Mapping[str, Step], own: Mapping[str, Path]) -> Step:
    roots = tuple((d.name, d.media_roots) for d in recipe.datasets if d.format == group and d.media_roots)
    return Step(
        name=f"shards_{group}",
        run="pipelines.shards.plan:run",
        config=ShardsConfig(samples_per_shard=recipe.samples_per_shard, max_lost=recipe.max_lost, media_roots=roots),
        inputs={"manifest": manifest, **lists},
        sources=own,
        threads=0,
        spread=True,
        isolate=False,
    )
