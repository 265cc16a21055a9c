"""No field of a config exists without a reader: every one is read as an attribute somewhere in the five packages, outside its own class.

By name: a field shares its readers with every other attribute that is called the same. Of the configs of encoders, tests/unit/mmcore/encoders/
test_encoder_config.py proves that the encoder which a class configures reads every one of its fields.
"""

import ast
import dataclasses
import importlib
import typing
from collections.abc import Iterator
from pathlib import Path

from infra.step import AnyloomError
from mmcore.encoder_config import CONFIGS
from pipelines.dag.build import build
from pipelines.recipes import RECIPES
from pipelines.recipes.recipe import Recipe

PROJECT = Path(__file__).resolve().parents[4]
MODULES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts): ast.parse(path.read_text())
    for package in ("flows", "pipelines", "evals", "mmcore", "infra")
    for path in sorted((PROJECT / package).rglob("*.py"))
}


def reads(node: ast.AST, module: str, place: str = "") -> Iterator[tuple[str, str]]:
    """(attribute, module.Class in which it is read) below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield child.attr, place
        yield from reads(child, module, f"{module}.{child.name}" if isinstance(child, ast.ClassDef) else place)


def dataclasses_of(annotation: object) -> Iterator[type]:
    """The dataclasses that an annotation names, and those of their fields."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
        for hint in typing.get_type_hints(annotation).values():
            yield from dataclasses_of(hint)
    for part in typing.get_args(annotation):
        yield from dataclasses_of(part)


def config_classes() -> set[type]:
    """Those of the Recipe, of every step that is planned, of every encoder and of every config module."""
    found = {*dataclasses_of(Recipe), *CONFIGS.values()}
    for recipe in RECIPES.values():
        try:
            steps = build(recipe())
        except AnyloomError:  # it takes files of the user's
            continue
        for step in steps.values():
            found.update(dataclasses_of(type(step.config)))
    for module in MODULES:
        if module.endswith(".config"):
            for named in vars(importlib.import_module(module)).values():
                found.update(dataclasses_of(named))
    return found


def test_every_field_of_every_config_has_a_reader():
    readers: dict[str, set[str]] = {}
    for module, tree in MODULES.items():
        for attribute, place in reads(tree, module):
            readers.setdefault(attribute, set()).add(place)
    classes = config_classes()
    fields = [(f"{one.__module__}.{one.__qualname__}", field.name) for one in classes for field in dataclasses.fields(one)]
    assert len(classes) > 40 and not [f"{owner}.{name}" for owner, name in fields if not readers.get(name, set()) - {owner}]
