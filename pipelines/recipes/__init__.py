"""The recipes by name. Add one: write a function that returns a complete Recipe, name it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infra.step import AnyloomError
from pipelines.recipes.clip_two_tower import clip_two_tower, tiny_two_tower
from pipelines.recipes.llava import llava15_7b
from pipelines.recipes.nextgpt import nextgpt_7b, nextgpt_7b_legacy
from pipelines.recipes.overrides import with_overrides
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.smol import smol, smol_frozen, smol_judged, smol_mix, smol_plain
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
}


def get_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe with `--set` overrides. Raises AnyloomError for an unknown name or key."""
    if name not in RECIPES:
        raise AnyloomError(f"no recipe called {name}; there are: {', '.join(RECIPES)}")
    return with_overrides(RECIPES[name](), overrides or {})
