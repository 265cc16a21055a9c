"""The house rules find what they look for."""

import ast
import sys
from itertools import pairwise
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    import house

    yield house
    sys.modules.pop("house")


def test_a_private_name_of_another_file_is_found(house):
    source = (
        "from mmcore.types import Answer, _hidden\nimport os\nfrom mmcore import config\nconfig._inner, Answer.text, os._exit, Answer._make, config.__name__"
    )
    found = list(house.private_names(ast.parse(source)))
    assert found == [(1, "mmcore.types._hidden"), (4, "config._inner"), (4, "Answer._make")]


def test_every_circle_of_imports_is_told(house):
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"c"}, "e": {"a"}}
    circles = list(house.circles_of(imports))
    assert {frozenset(circle) for circle in circles} == {frozenset("abc"), frozenset("cd")}
    assert all(circle[0] == circle[-1] and all(b in imports[a] for a, b in pairwise(circle)) for circle in circles)
    assert not list(house.circles_of({"a": {"b"}, "b": {"c"}, "c": set()}))


def test_retired_words_are_found_where_they_are_prose(house, tmp_path):
    """In docstrings, comments and messages; not in names, code, CLIP, or what is no message."""
    path = tmp_path / "module.py"
    path.write_text(
        '"""One picture. Refuses to know more. `clip` and eval_pictures and CLIP and audio clips."""\n'
        "# a sound\n"
        'NAME = "a picture of it"\n'
        "def f():\n"
        '    raise ValueError(f"no clip in {NAME}")\n'
    )
    found = set(house.retired_words(path, ast.parse(path.read_text()), messages=True))
    assert found == {(1, "picture"), (1, "Refuses to know"), (2, "sound"), (5, "clip")}
