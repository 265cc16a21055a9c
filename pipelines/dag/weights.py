"""Weights: carried out of pipelines/dag/build.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.step import AnyloomError, Step
from mmcore.config import EncoderSpec
from pipelines.dag.features import _targets
from pipelines.dag.own_files import OWN
from pipelines.recipes.recipe import Recipe
from pipelines.weights.config import ImageBindConfig, ImportConfig, LmConfig, WeightsConfig
from pipelines.weights.given_files import given_files, given_lm

OWN_WEIGHTS = ("imagebind", "image", "audio", "text", "lm")
"""What --weights takes: ImageBind's released file, or a part of the recipe's weights."""

IMAGEBIND_TRUNKS = {"image": ("vision",), "audio": ("audio",), "text": ("text",)}
"""Part of the recipe's weights -> the trunks it keeps; clips share the pictures' trunk."""


def _weights(recipe: Recipe, part: str, inputs: dict[str, Step], own_weights: Mapping[str, Path]) -> Step:
    """weights_<part>: files of the user's own, ImageBind's trunks, or what the recipe names."""
    name, arch = f"weights_{part}", getattr(recipe.weights, part)
    if part == "lm" and part in own_weights:
        lm = LmConfig(arch=arch, chat=recipe.chat, targets=recipe.lora.targets)
        return Step(name=name, run="pipelines.weights.own_lm:run", config=lm, sources=given_lm(own_weights[part]))
    if part in own_weights:
        wanted = {"image": (recipe.image, recipe.video), "audio": (recipe.audio,), "text": (_targets(recipe).spec,)}[part]
        specs = tuple(spec for spec in wanted if spec is not None)
        config = ImportConfig(arch=specs[0].arch, specs=specs)
        return Step(name=name, run="pipelines.weights.own_parts:run", config=config, sources=given_files(part, specs, own_weights[part]))
    if part in IMAGEBIND_TRUNKS and arch.startswith("imagebind"):
        return Step(
            name=name,
            run="pipelines.weights.parts:run_imagebind",
            config=ImageBindConfig(kind="pretrained" if recipe.weights.kind == OWN else recipe.weights.kind, arch=arch, trunks=IMAGEBIND_TRUNKS[part]),
            sources={"imagebind": own_weights["imagebind"]} if "imagebind" in own_weights else {},
        )
    return Step(name=name, run=f"pipelines.weights.parts:run_{part}", inputs=inputs, config=WeightsConfig(kind=recipe.weights.kind, arch=arch))


def _add_query(recipe: Recipe, query: EncoderSpec, steps: dict[str, Step], own_weights: Mapping[str, Path]) -> None:
    """weights_query, unless a step of the recipe holds the query encoder's weights already. Raises AnyloomError when that step does not exist."""
    if recipe.query_weights:
        if recipe.query_weights not in steps:
            raise AnyloomError(f"{recipe.name}: query_weights {recipe.query_weights}: no such step; use weights_image, weights_audio or weights_text")
        return
    if "query" in own_weights:
        sources = given_files("query", (query,), own_weights["query"])
        config = ImportConfig(arch=query.arch, specs=(query,))
        steps["weights_query"] = Step(name="weights_query", run="pipelines.weights.own_parts:run", config=config, sources=sources)
        return
    if query.kind != "imagebind_text":
        raise AnyloomError(f"{recipe.name}: query {query.kind}: give its files with --weights query=DIR, or name the step that holds them in query_weights")
    steps["weights_query"] = Step(
        name="weights_query",
        run="pipelines.weights.parts:run_imagebind",
        config=ImageBindConfig(kind=recipe.weights.kind, arch=query.arch, trunks=("text",)),
        sources={"imagebind": own_weights["imagebind"]} if "imagebind" in own_weights else {},
    )
