"""Parameters of the flows: their types and what Prefect's form says about them, once for all deployments.

Prefect shows a flow's docstring and, for each parameter, what its Google-style `Args:` section says. `described` writes that section.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import Field

from pipelines.recipes import RECIPES

FILE = r"^/.*\.py(:\w+)?$"
"""A recipe's file, as a flow takes it."""

RecipeName = Annotated[str, Field(json_schema_extra={"anyOf": [{"title": "of anyloom", "enum": list(RECIPES)}, {"title": "a file", "pattern": FILE}]})]
"""The server refuses what is neither a name of the table nor a file."""
Overrides = dict[str, Any] | None
Files = dict[str, str] | None

ABOUT = {
    "recipe": "Which recipe: a name (`anyloom recipes` says what each is), or /path/my_model.py below one of the worker's ANYLOOM_RECIPE_DIRS.",
    "root": "Directory of artifacts, stores, history and report, as the worker sees it. Empty: the worker's ANYLOOM_ROOT, or runs.",
    "overrides": 'Recipe values to change, e.g. {"stage3.lr": 1e-4}; what they do not touch is reused.',
    "force": "Names of steps to run again although they are done; equal bytes change nothing downstream.",
    "targets": "Only these steps and what they need; a trailing * matches by prefix. Empty: everything.",
    "lists": "Dataset -> list file of your own in place of the recipe's, as the worker sees it; FORMAT:FILE adds a dataset.",
    "weights": "Model -> weights file or directory of your own, as the worker sees it.",
    "threads": "CPU threads in all; 0: every core of the worker's machine.",
    "use_ray": "Run steps as Ray tasks. Empty: the worker's ANYLOOM_RAY, or yes.",
    "baselines": "Exports that every night is compared with, e.g. export/0123456789ab; evaluated too, once.",
    "seed": "Draws the resamples of the comparisons.",
}
F = TypeVar("F", bound=Callable[..., Any])


def described(function: F) -> F:
    """`function` with an Args section made of ABOUT. Raises KeyError for a parameter that nothing is known about."""
    lines = [f"    {name}: {ABOUT[name]}" for name in inspect.signature(function).parameters]
    function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n" + "\n".join(lines) + "\n"
    return function
