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
    """In docstrings and comments; not in names, code or CLIP."""
    path = tmp_path / "module.py"
    path.write_text('"""One picture. Refuses to know more. `clip` and eval_pictures and CLIP and audio clips."""\n# a sound\nNAME = "a picture of it"\n')
    assert set(house.retired_words(path, ast.parse(path.read_text()))) == {(1, "picture"), (1, "Refuses to know"), (2, "sound")}


def test_retired_words_are_found_in_texts_that_are_shown(house):
    """Not in keys, in stored details of media, or in audio clips; in single words only where such are shown."""
    source = (
        'NAMES = {"picture": "a picture", "audio": "audio clips"}\n'
        "def f(row):\n"
        '    """A clip."""\n'
        '    table(["pictures", "shape"], row["sound"])\n'
        '    raise MediaError("decode", f"clip of {row} bytes") if row else ValueError(f"no sound in {NAMES}")\n'
    )
    assert set(house.retired_texts(ast.parse(source), shown=True)) == {(1, "picture"), (4, "pictures"), (5, "sound")}
    assert set(house.retired_texts(ast.parse(source), shown=False)) == {(1, "picture"), (5, "sound")}


def test_retired_words_are_found_in_names(house):
    """In functions, classes, parameters, variables and attributes; not in imports, in CLIP or where the name is only read; fields where they are wanted."""
    source = (
        "from evals.generation.picture_judge import right\n"
        "class ClipStore:\n"
        "    pictures: int = 0\n"
        "def first_picture(sounds, soundness, clip):\n"
        "    self.videoClip = right.picture\n"
        "    num_images = VIDEO_CLIPS = tiny_clip = 1\n"
    )
    names = {"ClipStore", "first_picture", "sounds", "videoClip", "VIDEO_CLIPS"}
    assert {name for _, name in house.retired_names(ast.parse(source), fields=False)} == names
    assert {name for _, name in house.retired_names(ast.parse(source), fields=True)} == names | {"pictures"}
