"""Datasets of the user's own in a recipe: lists that --data adds, what stages that name no mixture are trained on, and held-out shares.

Input: a Recipe and FORMAT:FILE by dataset. Output: the changed Recipe, and the files. Raises AnyloomError, one line, for a form that is wrong, a format that
there is not, and a stage without anything to train on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.step import AnyloomError
from mmcore.config import StageConfig, StatesStage
from pipelines.recipes.recipe import Dataset, Recipe, with_stage
from pipelines.shards.config import FORMATS, GROUP_MODALITY

HELDOUT_NAME = "{}_heldout"
"""Dataset of the held-out share of a list."""


def format_and_file(given: str) -> tuple[str, str]:
    """("cc3m", "mine.tsv") of `cc3m:mine.tsv`; ("", path) of a path alone."""
    name, sign, path = given.partition(":")
    return (name, path) if sign and name in FORMATS else ("", given)


def checked_data(name: str, given: str) -> str:
    """What --data NAME=FORMAT:FILE gives, as the flows take it. Raises AnyloomError for another form."""
    file_format, path = format_and_file(given)
    if not file_format or not path or not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise AnyloomError(f"--data {name}={given}: write NAME=FORMAT:FILE, with a name of letters, digits and _ and one of the formats {', '.join(FORMATS)}")
    return given


def absolute_list(given: str) -> str:
    """The same list whatever the current directory is."""
    file_format, path = format_and_file(given)
    return f"{file_format}:{Path(path).absolute()}" if file_format else str(Path(path).absolute())


def with_data(recipe: Recipe, formats: Mapping[str, str]) -> Recipe:
    """The recipe with the datasets of `formats` (name -> format). One that the recipe has gets the format; a new one is a training list, and joins the
    mixture of every stage that is trained on lists of its kind, captions or instructions."""
    for name, file_format in formats.items():
        known = {dataset.name: dataset for dataset in recipe.datasets}
        if name in known:
            changed = replace(known[name], format=file_format)
            recipe = replace(recipe, datasets=tuple(changed if one.name == name else one for one in recipe.datasets))
            continue
        kinds = {dataset.name: dataset.format in GROUP_MODALITY for dataset in recipe.datasets}
        added = Dataset(name=name, format=file_format)
        recipe = replace(recipe, datasets=(*recipe.datasets, added))
        for entry, stage in recipe.entries.items():
            if any(weight and kinds.get(other) == (file_format in GROUP_MODALITY) for other, weight in stage.mixture):
                recipe = with_stage(recipe, entry, replace(stage, mixture=(*stage.mixture, (name, added.weight))))
    return recipe


def with_mixtures(recipe: Recipe) -> Recipe:
    """The recipe in which every stage has a mixture: one that names none is trained on every training list of its kind, by the datasets' weights, and left out
    where there is no such list. Raises AnyloomError where no stage is left."""
    if recipe.two_tower is not None:
        return recipe
    kept = tuple(
        stage if stage.mixture else replace(stage, mixture=_mixture(recipe, stage)) for stage in recipe.stages if stage.mixture or not is_idle(recipe, stage)
    )
    if not kept:
        raise AnyloomError(
            f"recipe {recipe.name} is trained on lists of your own, and has none: give captions with --data NAME=cc3m:FILE (or webvid, audiocaps) and "
            "conversations with --data NAME=instruct:FILE"
        )
    return replace(recipe, stages=kept)


def is_idle(recipe: Recipe, stage: StageConfig) -> bool:
    """Whether a stage names no mixture and there is no list for it."""
    return not stage.mixture and not _mixture(recipe, stage)


def wanted_kind(stage: StageConfig) -> str:
    """What a stage that names no mixture is trained on: `captions` or `instructions`."""
    return "instructions" if stage.stage == "stage3" else "captions"


def _mixture(recipe: Recipe, stage: StageConfig) -> tuple[tuple[str, float], ...]:
    """Every training list of a stage's kind. Stage 1 takes instructions where there are no captions."""
    train = [dataset for dataset in recipe.datasets if dataset.split == "train" and dataset.weight > 0]
    captions = tuple((dataset.name, dataset.weight) for dataset in train if dataset.format in GROUP_MODALITY)
    instructions = tuple((dataset.name, dataset.weight) for dataset in train if dataset.format not in GROUP_MODALITY)
    if wanted_kind(stage) == "instructions":
        return instructions
    return captions or (() if isinstance(stage, StatesStage) else instructions)


def with_heldout(recipe: Recipe) -> Recipe:
    """The recipe in which every list with a held-out share is two datasets. Raises AnyloomError for a share that is none, and a name that is taken."""
    datasets: list[Dataset] = []
    names = {dataset.name for dataset in recipe.datasets}
    for dataset in recipe.datasets:
        if not 0 <= dataset.heldout < 1:
            raise AnyloomError(f"recipe {recipe.name}: datasets.{dataset.name}.heldout is {dataset.heldout}: it is a share, at least 0 and below 1")
        if not dataset.heldout or dataset.part:
            datasets.append(dataset)
            continue
        other = HELDOUT_NAME.format(dataset.name)
        if dataset.split != "train" or other in names:
            problem = f"there is a dataset {other} already" if other in names else f"its split is {dataset.split}; only a training list is divided"
            raise AnyloomError(f"recipe {recipe.name}: datasets.{dataset.name}.heldout is {dataset.heldout}, but {problem}")
        datasets += [replace(dataset, part="train"), replace(dataset, part="heldout", name=other, split="heldout")]
    return replace(recipe, datasets=tuple(datasets))


def files_of(recipe: Recipe) -> dict[str, Path]:
    """Dataset -> list file, of the lists that the recipe itself names."""
    return {dataset.name: Path(dataset.list) for dataset in recipe.datasets if dataset.list}


def halves(recipe: Recipe, lists: Mapping[str, Path]) -> dict[str, Path]:
    """The list files, those of divided lists under both names."""
    both = {HELDOUT_NAME.format(d.name): lists[d.name] for d in recipe.datasets if d.part == "train" and d.name in lists}
    return {**lists, **both}
