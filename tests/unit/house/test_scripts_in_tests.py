"""Scripts that tests and benchmarks keep as text import names that are there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
IMPORT = re.compile(r"^from ((?:infra|mmcore|evals|pipelines|flows)[\w.]*) import ([\w, ]+)$", re.M)


def imports_in_texts() -> set[tuple[str, str, str]]:
    """(file, module, name) of every import of ours inside a text."""
    found = set()
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                for module, names in IMPORT.findall(node.value):
                    found |= {(path.relative_to(TESTS).as_posix(), module, name.split(" as ")[0].strip()) for name in names.split(",")}
    return found - {("unit/house/test_house.py", "mmcore.types", "_hidden")}  # what the house rules must find


@pytest.mark.parametrize(("file", "module", "name"), sorted(imports_in_texts()))
def test_the_name_is_there(file, module, name):
    owner = importlib.import_module(module)
    assert hasattr(owner, name) or importlib.util.find_spec(f"{module}.{name}"), f"{file} imports {name} of {module}"
