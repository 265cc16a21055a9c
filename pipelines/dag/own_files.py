"""Files of the user's own that a recipe cannot do without, decided while planning: nothing is ever downloaded in their place.

Owns what a recipe of kind `own` wants with --list and --weights, the one line that names what is missing, and the part of the recipe that can be planned
with what is given. Input: a Recipe and the names of the files given; output: a Recipe without what was not given and is not needed.
Refuses to open any file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from infra.step import AnyloomError
from mmcore.config import MODALITIES
from mmcore.decoders.catalogue import known as known_decoder
from mmcore.lm.catalogue import known_lm
from pipelines.recipes.recipe import Recipe

FORMATS = {
    "cc3m": "caption and picture by line, tab-separated",
    "webvid": "CSV with videoid, contentUrl and name",
    "audiocaps": "CSV with youtube_id and caption",
    "instruct": "JSON of LLaVA or NExT-GPT records",
}
"""Group -> what its lists are."""
OWN = "own"


def planned(recipe: Recipe, lists: Collection[str], weights: Collection[str]) -> Recipe:
    """The recipe with the datasets and stages that can be planned; a recipe that is not `own` comes back as it is.

    lists, weights: names of the files given. Left out are datasets that no stage trains on and that are not given, and stage 2 where nothing gives its
    targets (see `stages`). Raises AnyloomError naming every file that is missing.
    """
    if recipe.lists != OWN and recipe.weights.kind != OWN:
        return recipe
    recipe = replace(recipe, stages=stages(recipe))
    missing = [f"--weights {name}={what}" for name, what in wanted_weights(recipe).items() if name not in weights]
    if recipe.lists == OWN:
        missing += [f"--list {name}=FILE ({what})" for name, what in wanted_lists(recipe).items() if name not in lists]
        recipe = replace(recipe, datasets=tuple(dataset for dataset in recipe.datasets if dataset.name in lists))
    if missing:
        raise AnyloomError(f"recipe {recipe.name} takes files of your own and downloads none; it lacks {', '.join(missing)}")
    return recipe


def needs_files(recipe: Recipe) -> bool:
    """True for a recipe that cannot be planned without files of the user's."""
    return bool(wanted_weights(recipe)) or (recipe.lists == OWN and bool(wanted_lists(recipe)))


def stages(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's stages; with weights of kind `own` stage 2 only where decoders are named, whose text encoders give what conditioning is aligned with."""
    if recipe.weights.kind != OWN or recipe.decoders:
        return recipe.stages
    return tuple(name for name in recipe.stages if name != "stage2")


def left_out(recipe: Recipe) -> list[str]:
    """What of the recipe is not planned though it is among its stages, and why."""
    return [f"{name}, until the recipe names the decoders whose conditioning it learns (decoders)" for name in recipe.stages if name not in stages(recipe)]


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
    groups = {dataset.name: dataset.group for dataset in recipe.datasets}
    wanted: dict[str, str] = {}
    for stage in recipe.stages:
        for name, weight in getattr(recipe, stage).mixture:
            if name not in groups:
                raise AnyloomError(f"recipe {recipe.name}: {stage}.mixture names {name}, which is none of its datasets: {', '.join(groups)}")
            if weight:
                wanted[name] = FORMATS[groups[name]]
    return wanted
