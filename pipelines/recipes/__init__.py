"""The recipes by name. Add one: write a function that returns a complete Recipe, name it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infra.step import AnyloomError
from pipelines.recipes import files
from pipelines.recipes.clip_two_tower import clip_two_tower, tiny_two_tower
from pipelines.recipes.llava import llava15_7b
from pipelines.recipes.nextgpt import nextgpt_7b
from pipelines.recipes.nextgpt_legacy import nextgpt_7b_legacy
from pipelines.recipes.overrides import with_overrides
from pipelines.recipes.own_data import with_data
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.smol import smol, smol_frozen, smol_judged, smol_mix, smol_plain
from pipelines.recipes.starter import starter
from pipelines.recipes.tiny import tiny, tiny_mix
from pipelines.recipes.tiny_nextgpt import tiny_nextgpt

RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "tiny_nextgpt": tiny_nextgpt,
    "smol": smol,
    "smol_judged": smol_judged,
    "smol_plain": smol_plain,
    "smol_frozen": smol_frozen,
    "smol_mix": smol_mix,
    "clip_two_tower": clip_two_tower,
    "tiny_two_tower": tiny_two_tower,
    "tiny_mix": tiny_mix,
    "nextgpt_7b": nextgpt_7b,
    "nextgpt_7b_legacy": nextgpt_7b_legacy,
    "llava15_7b": llava15_7b,
    "starter": starter,
}


def get_recipe(name: str, overrides: Mapping[str, Any] | None = None, formats: Mapping[str, str] | None = None) -> Recipe:
    """A recipe of the table, or of a file (`my_model.py`, `my_model.py:name`), with `--set` overrides. formats: dataset -> format of lists that are added.
    Raises AnyloomError for an unknown name or key, and for a file that is no recipe."""
    return with_overrides(with_data(_made(name), formats or {}), overrides or {})


def _made(name: str) -> Recipe:
    if files.is_file(name):
        return files.load(name, taken=RECIPES)
    if name not in RECIPES:
        raise AnyloomError(f"no recipe called {name}; there are: {', '.join(RECIPES)}; or give a file of yours, like {name}.py")
    return RECIPES[name]()
