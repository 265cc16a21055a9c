"""Recipes in files of the user's: `my_model.py`, or `my_model.py:name` where a file has several.

Owns how such a file is found, run and checked. Input: what was given as --recipe. Output: the Recipe that its function returns, its own lists with absolute
paths. Raises AnyloomError, one line with file and line, for a file that is not there, does not run, or has no recipe.

A recipe is one file: it imports anyloom's packages and installed ones, nothing that lies beside it, and it defines no config classes, which the processes
that run steps could not import. It is code that runs as the user, so a deployment takes only what lies below the directories that the worker's settings name.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import traceback
import types
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from infra.step import AnyloomError
from pipelines.recipes.recipe import Recipe

SUFFIX = ".py"
_MODULE = "anyloom_recipe_file"
"""What the module of a recipe's file is called while it runs."""


def is_file(name: str) -> bool:
    """Whether --recipe names a file rather than a recipe of the table."""
    return split(name)[0].endswith(SUFFIX)


def split(name: str) -> tuple[str, str]:
    """(path, function or "") of `my_model.py:name`."""
    path, sign, function = name.rpartition(":")
    return (path, function) if sign and path.endswith(SUFFIX) else (name, "")


def path_of(name: str) -> Path:
    """The file of a recipe, absolute."""
    return Path(split(name)[0]).expanduser().absolute()


def absolute(name: str) -> str:
    """The same recipe whatever the current directory is; a recipe of the table as it is."""
    if not is_file(name):
        return name
    function = split(name)[1]
    return f"{path_of(name)}:{function}" if function else str(path_of(name))


def check_allowed(name: str, allowed: Collection[Path]) -> None:
    """Raises AnyloomError for a file that lies below none of the directories `allowed`, links resolved. A recipe of the table is always allowed."""
    if not is_file(name):
        return
    path = path_of(name).resolve()
    if not any(path.is_relative_to(directory.resolve()) for directory in allowed):
        where = ", ".join(map(str, allowed)) or "none"
        raise AnyloomError(f"recipe {path} is not below a directory that this worker takes recipes from ({where}); name it in ANYLOOM_RECIPE_DIRS there")


def load(name: str, taken: Collection[str]) -> Recipe:
    """The recipe of a file. taken: names that a recipe of one's own cannot have. Raises AnyloomError."""
    path, make = path_of(name), function_of(name)
    try:
        recipe = make()
    except AnyloomError as error:
        raise AnyloomError(f"{path}: {error}") from error
    except Exception as error:
        raise AnyloomError(_problem(path, error)) from error
    if not isinstance(recipe, Recipe):
        raise AnyloomError(f"{path}: {make.__name__}() returned {type(recipe).__name__}; it must return a Recipe (pipelines.recipes.recipe)")
    _check(path, recipe, taken)
    return dataclasses.replace(recipe, file=str(path), datasets=tuple(dataclasses.replace(one, list=_beside(path, one.list)) for one in recipe.datasets))


def function_of(name: str) -> types.FunctionType:
    """The function of a recipe's file. Raises AnyloomError for a file that does not run or has no such function."""
    path = path_of(name)
    return _chosen(path, _functions(path, _run(path)), split(name)[1])


def _run(path: Path) -> dict[str, Any]:
    """The names that the file defines."""
    try:
        source = path.read_bytes()
    except OSError:
        raise AnyloomError(
            f"{path}: no such recipe file; `anyloom new NAME --from starter` writes one, `anyloom recipes` lists those that need no file"
        ) from None
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    before = sys.modules.get(_MODULE)
    sys.modules[_MODULE] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except AnyloomError:
        raise
    except Exception as error:
        raise AnyloomError(_problem(path, error)) from error
    finally:
        if before is None:
            del sys.modules[_MODULE]
        else:
            sys.modules[_MODULE] = before
    return module.__dict__


def _problem(path: Path, error: Exception) -> str:
    """One line: file, line, what happened."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = "; a recipe is one file: it can import anyloom's packages and installed ones, not what lies beside it"
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{hint}"


def _functions(path: Path, names: dict[str, Any]) -> dict[str, types.FunctionType]:
    """The functions of the file that say they return a Recipe, by name."""
    own = {name: one for name, one in names.items() if isinstance(one, types.FunctionType) and one.__module__ == _MODULE and not name.startswith("_")}
    found = {name: one for name, one in own.items() if one.__annotations__.get("return") in (Recipe, "Recipe")}
    if not found:
        raise AnyloomError(f"{path}: it has no recipe: write a function like `def {path.stem}() -> Recipe:` that returns one")
    return found


def _chosen(path: Path, functions: dict[str, types.FunctionType], name: str) -> types.FunctionType:
    listed = ", ".join(functions)
    if name and name not in functions:
        raise AnyloomError(f"{path}: it has no recipe called {name}; it has {listed}")
    if not name and len(functions) > 1 and path.stem not in functions:
        raise AnyloomError(f"{path}: it has several recipes ({listed}); say which, like {path.name}:{next(iter(functions))}")
    chosen = functions[name or (path.stem if path.stem in functions else next(iter(functions)))]
    code = chosen.__code__
    if code.co_argcount > len(chosen.__defaults__ or ()) or code.co_kwonlyargcount > len(chosen.__kwdefaults__ or {}):
        raise AnyloomError(f"{path}, line {code.co_firstlineno}: {chosen.__name__} needs arguments; a recipe takes none")
    return chosen


def _check(path: Path, recipe: Recipe, taken: Collection[str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", recipe.name):
        raise AnyloomError(f"{path}: the recipe's name is {recipe.name!r}: use letters, digits, _ and - only")
    if recipe.name in taken:
        raise AnyloomError(
            f"{path}: the recipe's name is {recipe.name}, as of one that comes with anyloom; give it another, so that the history can tell them apart"
        )
    for place, value in _values(recipe, "Recipe"):
        if type(value).__module__ == _MODULE:
            raise AnyloomError(f"{path}: {place} is a {type(value).__name__}, a class of this file; the processes that run steps cannot import it")


def _values(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every value of a config, with its place."""
    yield place, value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _values(getattr(value, field.name), f"{place}.{field.name}")
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _values(item, f"{place}[{number}]")


def _beside(path: Path, listed: str) -> str:
    """A list's path as it is meant: relative ones start at the recipe's file."""
    return str((path.parent / Path(listed).expanduser()).absolute()) if listed else ""
