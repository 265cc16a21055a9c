"""Weights: the frozen parts that a recipe names.

Input: a Recipe, the user's files and the data (the demo's packages carry weights too). Output: the steps weights_*.
Raises AnyloomError for files that are not what they should be; a step whose files are not given says which (Step.needs).
"""

from __future__ import annotations

from infra.step import AnyloomError, Step
from mmcore.encoder_config import EncoderConfig
from pipelines.dag.parts import Data, Given, Weights
from pipelines.recipes.recipe import OWN, Recipe, caption_targets
from pipelines.weights.config import ImageBindConfig, ImportConfig, LmConfig, WeightsConfig
from pipelines.weights.given_files import given_files, given_lm

IMAGEBIND_TRUNKS = {"image": ("vision",), "audio": ("audio",), "text": ("text",)}
"""Part of the recipe's weights -> the trunks it keeps; videos share the images' trunk."""


def plan_weights(recipe: Recipe, given: Given, data: Data) -> Weights:
    """weights_lm, weights_image, weights_audio, weights_text, weights_query, weights_latents: those that the recipe uses."""
    own = recipe.weights.kind == OWN
    parts = {
        "lm": _part(recipe, "lm", given, data) if recipe.two_tower is None else None,
        "image": _part(recipe, "image", given, data),
        "audio": _part(recipe, "audio", given, data) if recipe.audio is not None else None,
        "text": None if own else _part(recipe, "text", given, data),
    }
    query = _query(recipe, recipe.query, given, parts) if recipe.query is not None else None
    lone = recipe.latents is not None and "image" not in dict(recipe.decoders) and recipe.two_tower is None and "cc3m" in data.shards
    return Weights(**parts, query=query, latents=_autoencoder(recipe, recipe.latents, given) if lone and recipe.latents is not None else None)


def _part(recipe: Recipe, part: str, given: Given, data: Data) -> Step:
    """weights_<part>: files of the user's own, ImageBind's trunks, or what the recipe names."""
    name, arch = f"weights_{part}", getattr(recipe.weights, part)
    if part == "lm" and part in given.weights:
        lm = LmConfig(arch=arch, chat=recipe.chat, targets=recipe.lora.targets)
        return Step(name=name, run="pipelines.weights.own_lm:run", config=lm, sources=given_lm(given.weights[part]))
    if part in given.weights:
        wanted = {"image": (recipe.image, recipe.video), "audio": (recipe.audio,), "text": (caption_targets(recipe).spec,)}[part]
        specs = tuple(spec for spec in wanted if spec is not None)
        return _imported(name, part, specs, given)
    if part in IMAGEBIND_TRUNKS and arch.startswith("imagebind"):
        return _imagebind(name, "pretrained" if recipe.weights.kind == OWN else recipe.weights.kind, arch, IMAGEBIND_TRUNKS[part], given)
    inputs = {"assets": data.assets} if data.assets is not None else {}
    config = WeightsConfig(kind=recipe.weights.kind, arch=arch)
    return Step(name=name, run=f"pipelines.weights.parts:run_{part}", inputs=inputs, config=config, needs=given.lacking.get(part, ""))


def _imported(name: str, part: str, specs: tuple[EncoderConfig, ...], given: Given) -> Step:
    config = ImportConfig(arch=specs[0].arch, specs=specs)
    return Step(name=name, run="pipelines.weights.own_parts:run", config=config, sources=given_files(part, specs, given.weights[part]))


def _imagebind(name: str, kind: str, arch: str, trunks: tuple[str, ...], given: Given) -> Step:
    sources = {"imagebind": given.weights["imagebind"]} if "imagebind" in given.weights else {}
    config, needs = ImageBindConfig(kind=kind, arch=arch, trunks=trunks), given.lacking.get("imagebind", "")
    return Step(name=name, run="pipelines.weights.parts:run_imagebind", config=config, sources=sources, needs=needs)


def _query(recipe: Recipe, query: EncoderConfig, given: Given, parts: dict[str, Step | None]) -> Step | None:
    """weights_query; None when another part holds the query encoder's weights. Raises AnyloomError when that part does not exist."""
    if recipe.query_weights:
        if parts.get(recipe.query_weights.removeprefix("weights_")) is None:
            raise AnyloomError(f"{recipe.name}: query_weights {recipe.query_weights}: no such step; use weights_image, weights_audio or weights_text")
        return None
    if "query" in given.weights:
        return _imported("weights_query", "query", (query,), given)
    if query.kind != "imagebind_text":
        raise AnyloomError(f"{recipe.name}: query {query.kind}: give its files with --weights query=DIR, or name the step that holds them in query_weights")
    return _imagebind("weights_query", recipe.weights.kind, query.arch, ("text",), given)


def _autoencoder(recipe: Recipe, spec: EncoderConfig, given: Given) -> Step:
    """weights_latents: an autoencoder without a decoder."""
    if "latents" in given.weights:
        return _imported("weights_latents", "latents", (spec,), given)
    if recipe.weights.kind == "random":
        return Step(name="weights_latents", run="pipelines.weights.parts:run_image", config=WeightsConfig(kind="random", arch=spec.arch))
    raise AnyloomError(f"{recipe.name}: latents of {spec.arch}: give the autoencoder's directory with --weights latents=DIR")
