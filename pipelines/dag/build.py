"""The whole DAG on one page: from a Recipe to its Steps.

    assets -> lists -> manifest_* -> shards_* -> embed_*, targets -> stage1..3 (states before stage2) -> export -> eval_* -> history -> report

A stage that the recipe names twice has two steps, the second called stage2_2 (with states_2).

A recipe with a picture decoder has image_decoder beside the stages (from weights_text and shards_cc3m), picture_judge, eval_pictures and export_early, the
export without it, so that all but its pictures is evaluated while it is still being trained; one with decoders of its own has weights_decoder_*, whose text
encoders give the targets and whose autoencoders the latents (pipelines.dag.decoders); one with a voice also speech_judge and eval_speaking. A recipe with
two towers goes from embed_* on to embed_text -> two_tower -> eval_retrieval; one of the user's own lists and weights (pipelines.dag.own_files) ends at export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.step import AnyloomError, Step
from pipelines.dag.data import GROUP_OF, _add_shards, _add_sources
from pipelines.dag.decoders import (
    TRAINED,
    caption_generation_inputs,
    caption_targets,
    decoder_weights,
    latents,
    signal_inputs,
    takes_files,
    trained_image_decoder,
    untrained,
)
from pipelines.dag.evaluation import _add_evaluation, suites_apart
from pipelines.dag.features import _add_embed, _targets
from pipelines.dag.own_files import planned
from pipelines.dag.training import _add_stages, _export, _two_tower
from pipelines.dag.weights import OWN_WEIGHTS, _add_query
from pipelines.recipes.recipe import Recipe, _encoders, asked_about, model_spec
from pipelines.shards.config import OverlapConfig


def build(recipe: Recipe, own_lists: Mapping[str, Path] | None = None, own_weights: Mapping[str, Path] | None = None) -> dict[str, Step]:
    """Every step of the recipe by name, inputs first.

    own_lists: dataset name -> a list file that takes the place of the recipe's; it counts by its bytes, and its relative media paths start at
    its own directory; or suite -> the record of prepared data. own_weights: `imagebind` -> the released file, `lm` -> a transformers directory, another
    part (image, audio, text) -> what its encoder's kind opens, or `decoder_<modality>` -> the diffusers directory of a published decoder of the recipe.
    Raises AnyloomError for a name the recipe does not have, weights that are not what they should be, or files that the recipe cannot do without.
    """
    (own_lists, prepared), own_weights = suites_apart(own_lists or {}), dict(own_weights or {})
    takes = (*OWN_WEIGHTS, *takes_files(recipe), *(("query",) if recipe.query is not None else ()))
    for name in sorted(set(own_weights) - set(takes)):
        raise AnyloomError(f"--weights {name}: no such model; files are taken for: {', '.join(takes)}")
    unknown = set(own_lists) - {d.name for d in recipe.datasets}
    if unknown:
        raise AnyloomError(f"--list {sorted(unknown)[0]}: no such dataset; the recipe has: {', '.join(d.name for d in recipe.datasets)}")
    recipe = planned(recipe, own_lists, own_weights)
    steps: dict[str, Step] = {}
    lists = _add_sources(recipe, steps, own_weights)
    shards = _add_shards(recipe, steps, lists, own_lists)
    pictures = {f"shards_{group}": shards[group] for group in ("cc3m", "instruct") if group in shards}
    captions = {f"shards_{group}": shards[group] for group in ("cc3m", "webvid", "audiocaps") if group in shards}
    steps["overlap"] = overlap = Step(
        name="overlap", run="pipelines.shards.overlap:run", config=OverlapConfig(max_bits=recipe.near_duplicate_bits), inputs=pictures
    )
    if "weights_text" in steps and "cc3m" in shards:
        inputs = {"weights": steps["weights_text"], "shards_cc3m": shards["cc3m"]}
        steps["targets"] = Step(name="targets", run="pipelines.embed.targets:run_targets", config=_targets(recipe), inputs=inputs)
    image_decoder = trained_image_decoder(recipe, steps, shards)
    own = decoder_weights(recipe, model_spec(recipe), own_weights, steps.get("assets"))
    steps |= {step.name: step for step in own.values()}
    steps |= caption_targets(recipe, model_spec(recipe), own, captions)
    decoders = own | {modality: image_decoder["image_decoder"] for modality, name in recipe.decoders if name == TRAINED}
    embeddings = {}
    for modality, _ in _encoders(recipe):
        asked = ("instruct",) if modality == "image" or lists is None or asked_about(recipe, modality) else ()
        seen = {f"shards_{group}": shards[group] for group in (GROUP_OF[modality], *asked) if group in shards}
        if seen:
            inputs = {"weights": steps["weights_audio" if modality == "audio" else "weights_image"], **seen}
            embeddings[f"embed_{modality}"] = _add_embed(recipe, steps, modality, inputs)
    if recipe.query is not None:
        _add_query(recipe, recipe.query, steps, own_weights)
    steps |= latents(recipe, decoders, captions, own_weights)
    if recipe.video_audio:
        tracks = {"weights": steps["weights_audio"], "shards_webvid": shards["webvid"]}
        _add_embed(recipe, steps, "audio", tracks, name="embed_video_audio", run="pipelines.embed.tracks:run")
    if recipe.two_tower is not None:
        return _two_tower(recipe, recipe.two_tower, steps, embeddings, captions)
    signals = signal_inputs(recipe, steps, decoders, captions) if "stage2" in recipe.stages else None
    generated = caption_generation_inputs(recipe, steps, decoders) if "stage1" in recipe.stages else {}
    trained = _add_stages(recipe, steps, embeddings, captions, shards.get("instruct"), signals, generated)
    steps |= image_decoder
    weights: dict[str, Step] = {name: steps[name] for name in ("weights_lm", "weights_image", "weights_audio") if name in steps}
    steps["export"] = _export("export", recipe, weights, trained, decoders)
    if lists is not None and "targets" in steps:  # what is evaluated so far is known of the lists that are made here
        if image_decoder:
            steps["export_early"] = _export("export_early", replace(recipe, decoders=untrained(recipe)), weights, trained, own)
        _add_evaluation(recipe, steps, lists, overlap, steps["export"], embeddings, captions, steps["targets"], trained, prepared)
    return steps
