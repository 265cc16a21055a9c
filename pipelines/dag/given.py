"""Files that the user gives with --list and --weights, checked while planning: nothing is ever downloaded in their place.

Input: a Recipe and the files by name. Output: the recipe with the datasets and stages that can be planned, and the files sorted by what they are for.
Raises AnyloomError for names that the recipe does not have. Files that a step cannot do without are said by the step (Step.needs). No file is opened here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from evals.suites.catalogue import SUITES
from infra.step import AnyloomError
from mmcore.config import MODALITIES, StageConfig, StatesStage
from mmcore.decoders.catalogue import known as known_decoder
from mmcore.lm.catalogue import known_lm
from pipelines.dag.decoders import decoder_names
from pipelines.dag.parts import Given
from pipelines.recipes.own_data import files_of, halves, is_idle, wanted_kind, with_heldout, with_mixtures
from pipelines.recipes.recipe import OWN, Recipe
from pipelines.shards.config import check_datasets

FORMATS = {
    "cc3m": "caption and image by line, tab-separated",
    "webvid": "CSV with videoid, contentUrl and name",
    "audiocaps": "CSV with youtube_id and caption",
    "instruct": "JSON of LLaVA or NExT-GPT records",
}
"""Group -> what its lists are."""
OWN_WEIGHTS = ("imagebind", "image", "audio", "text", "lm")
"""What --weights takes in every recipe: ImageBind's released file, or a part of the recipe's weights."""


def plan_given(recipe: Recipe, lists: Mapping[str, Path], weights: Mapping[str, Path]) -> tuple[Recipe, Given]:
    """The recipe as far as it can be planned, and the files. Raises AnyloomError naming what is unknown."""
    try:
        check_datasets(recipe.datasets)
    except AnyloomError as error:
        raise AnyloomError(f"recipe {recipe.name}: {error}") from None
    recipe = with_heldout(with_mixtures(recipe))
    own = halves(recipe, files_of(recipe) | {name: path for name, path in lists.items() if name not in SUITES})
    given = Given(lists=own, weights=dict(weights), prepared={name: path for name, path in lists.items() if name in SUITES})
    takes = (*OWN_WEIGHTS, *takes_files(recipe), *(("query",) if recipe.query is not None else ()))
    for name in sorted(set(weights) - set(takes)):
        raise AnyloomError(f"--weights {name}: no such model; files are taken for: {', '.join(takes)}")
    unknown = sorted(set(given.lists) - {d.name for d in recipe.datasets})
    if unknown:
        there = ", ".join(d.name for d in recipe.datasets) or "none"
        raise AnyloomError(f"--list {unknown[0]}: no such dataset; the recipe has: {there}; --data {unknown[0]}=FORMAT:FILE adds one")
    recipe, lacking = planned(recipe, given.lists, given.weights)
    return recipe, replace(given, lacking=lacking)


def planned(recipe: Recipe, lists: Collection[str], weights: Collection[str]) -> tuple[Recipe, dict[str, str]]:
    """(the recipe with the datasets and stages that can be planned, the files that it lacks: name -> option). A recipe without own lists or weights comes back
    as it is.

    lists, weights: names of the files given. Left out are datasets that no stage trains on and that are not given, and stages on states where nothing
    gives their targets (see `stages`).
    """
    if recipe.lists != OWN and recipe.weights.kind != OWN:
        return recipe, {}
    recipe = replace(recipe, stages=stages(recipe))
    lacking = {name: f"--weights {name}={what}" for name, what in wanted_weights(recipe).items() if name not in weights}
    if recipe.lists == OWN:
        lists_lacking = {name: f"--list {name}=FILE ({what})" for name, what in wanted_lists(recipe).items() if name not in lists}
        recipe = replace(recipe, datasets=tuple(one for one in recipe.datasets if one.name in lists or one.name in lists_lacking))
        lacking |= lists_lacking
    return recipe, lacking


def takes_files(recipe: Recipe) -> tuple[str, ...]:
    """What --weights may give besides OWN_WEIGHTS: published decoders, and the autoencoder of latents without one."""
    published = tuple(f"decoder_{modality}" for modality, name in decoder_names(recipe).items() if known_decoder(name))
    return ("latents", *published) if recipe.latents is not None and "image" not in dict(recipe.decoders) else published


def needs_files(recipe: Recipe) -> bool:
    """True for a recipe that cannot be planned without files of the user's."""
    return recipe.lists == OWN or bool(wanted_weights(recipe))


def stages(recipe: Recipe) -> tuple[StageConfig, ...]:
    """The recipe's stages; with weights of kind `own` those on states only where decoders are named, whose text encoders give the targets."""
    if recipe.weights.kind != OWN or recipe.decoders:
        return recipe.stages
    return tuple(config for config in recipe.stages if not isinstance(config, StatesStage))


def left_out(recipe: Recipe) -> list[str]:
    """Which of the recipe's stages are not planned, and why."""
    kept = stages(recipe)
    idle = [f"{name}, until a list of {wanted_kind(config)} is given (--data)" for name, config in recipe.entries.items() if is_idle(recipe, config)]
    return idle + [
        f"{name}, until the recipe names the decoders whose conditioning it learns (decoders)" for name, c in recipe.entries.items() if c not in kept
    ]


def wanted_weights(recipe: Recipe) -> dict[str, str]:
    """Name for --weights -> PATH and what it is, of a recipe whose weights are the user's."""
    if recipe.weights.kind != OWN:
        return {}
    lm = known_lm(recipe.weights.lm)
    wanted = {"lm": f"DIR ({lm.published if lm else recipe.weights.lm}, a transformers directory in safetensors)"}
    for modality in MODALITIES[1:]:
        spec = getattr(recipe, modality)
        if spec is not None and spec.kind.startswith("imagebind"):
            wanted["imagebind"] = "FILE (imagebind_huge.pth, as released)"
        elif spec is not None:
            part = "audio" if modality == "audio" else "image"
            wanted.setdefault(part, f"{'FILE' if spec.kind.startswith('timm') else 'DIR'} ({spec.kind} {spec.arch})")
    for modality, name in recipe.decoders:
        if known_decoder(name) is not None:
            wanted[f"decoder_{modality}"] = f"DIR ({name}, a diffusers directory)"
    return wanted


def wanted_lists(recipe: Recipe) -> dict[str, str]:
    """Dataset -> format of its list, for every dataset that a stage trains on. Raises AnyloomError for a mixture of unknown datasets."""
    groups = {dataset.name: dataset.format for dataset in recipe.datasets}
    wanted: dict[str, str] = {}
    for stage, config in recipe.entries.items():
        for name, weight in config.mixture:
            if name not in groups:
                raise AnyloomError(f"recipe {recipe.name}: {stage}.mixture names {name}, which is none of its datasets: {', '.join(groups)}")
            if weight:
                wanted[name] = FORMATS[groups[name]]
    return wanted
