"""anyloom new: a recipe of the user's own as a file, with every decision on a line.

Input: a name and a recipe that comes with anyloom. Output: NAME.py, the recipe's own source under the new name. Raises AnyloomError for a name that is none,
a recipe that cannot be written out, and a file that is there already.
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from flows.running.answer import Answer
from infra.step import AnyloomError
from infra.storage import write_atomic

SOURCES = ("starter", "llava15_7b", "nextgpt_7b")
"""Recipes whose source is one file that shows every decision."""


def add_new(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "new",
        help="write a recipe of your own: my_model.py, every decision on a line with its comment",
        description="Write a recipe of your own as a file, from one that comes with anyloom. Then: anyloom plan --recipe NAME.py",
    )
    parser.add_argument("name", help="what the recipe is called, e.g. my_model; a directory may stand before it")
    parser.add_argument("--from", choices=SOURCES, default="starter", dest="source", help="the recipe to begin with (default: starter)")


def main(args: argparse.Namespace) -> Answer:
    """new"""
    path = write_recipe(args.name, args.source)
    said = f"{path}: change what you like, then `anyloom plan --recipe {path}` and `anyloom run --recipe {path}`"
    return Answer({"file": path, "from": args.source}, lambda: print(said))


def write_recipe(name: str, source: str) -> Path:
    """The file, written. name: with or without directory and suffix."""
    from pipelines.recipes import RECIPES

    path = Path(name.removesuffix(".py") + ".py")
    if not path.stem.isidentifier() or path.stem in RECIPES:
        why = "a recipe that comes with anyloom is called so" if path.stem in RECIPES else "use letters, digits and _"
        raise AnyloomError(f"new {name}: {why}; give another name, e.g. my_model")
    if path.exists():
        raise AnyloomError(f"{path} is there already; give another name, or remove it")
    if not path.absolute().parent.is_dir():
        raise AnyloomError(f"{path.parent}: no such directory; make it first")
    write_atomic(path.absolute(), renamed(inspect.getsource(inspect.getmodule(RECIPES[source]) or RECIPES[source]), source, path.stem))
    return path


def renamed(text: str, old: str, new: str) -> str:
    """The source of a recipe under another name: its function, its field `name`, and the title."""
    text = re.sub(rf"^def {old}\(", f"def {new}(", text, flags=re.MULTILINE)
    text = text.replace(f'name="{old}"', f'name="{new}"')
    return re.sub(rf'^"""{old}\b', f'"""{new}', text)
