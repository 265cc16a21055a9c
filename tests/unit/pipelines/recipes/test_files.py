"""Recipes in files of the user's: found, run, checked; what is wrong is one line with file and line."""

import json
import os
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.cli.new import SOURCES, write_recipe
from flows.deployments.deployed import deployed_settings
from flows.running.run import made_recipe, recipe_steps
from infra.step import AnyloomError
from pipelines.recipes import RECIPES, files, get_recipe
from pipelines.recipes.overrides import described

PLAIN = """
from dataclasses import replace
from pipelines.recipes import get_recipe
from pipelines.recipes.recipe import Recipe

def {name}() -> Recipe:
    return replace(get_recipe("tiny"), name="{name}")
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_a_recipe(tmp_path, monkeypatch):
    path = written(tmp_path / "mine.py", PLAIN.format(name="mine"))
    recipe = get_recipe(str(path), {"stage1.lr": 1e-5})
    assert (recipe.name, recipe.file, recipe.entries["stage1"].lr) == ("mine", str(path), 1e-5)
    monkeypatch.chdir(tmp_path)
    assert files.absolute("mine.py") == str(path) and files.absolute("mine.py:mine") == f"{path}:mine" and files.absolute("tiny") == "tiny"
    assert get_recipe("mine.py:mine") == get_recipe(str(path))


def test_the_file_counts_by_its_bytes_and_only_for_the_export(tmp_path):
    path = written(tmp_path / "mine.py", PLAIN.format(name="mine"))
    steps, tiny = recipe_steps(str(path), {}), recipe_steps("tiny", {})
    assert steps["export"].sources == {"recipe": path} and not tiny["export"].sources
    assert steps["stage3"] == tiny["stage3"] and steps["history"].config.recipe == "mine"


def test_a_file_with_several_recipes(tmp_path):
    path = written(tmp_path / "pair.py", PLAIN.format(name="first") + PLAIN.format(name="second"))
    assert get_recipe(f"{path}:second").name == "second"
    with pytest.raises(AnyloomError, match=r"pair\.py: it has several recipes \(first, second\); say which, like pair\.py:first"):
        get_recipe(str(path))
    with pytest.raises(AnyloomError, match=r"it has no recipe called third; it has first, second"):
        get_recipe(f"{path}:third")
    assert get_recipe(str(written(tmp_path / "second.py", path.read_text()))).name == "second"  # the one that is called as the file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def mine() -> Recipe:\n  return (", r"mine\.py, line 2: '\(' was never closed"),
        ("import nothing_like_it\n", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nothing_like_it'; a recipe is one file"),
        ("x = 1\n\ny = 1 / 0\n", r"mine\.py, line 3: ZeroDivisionError: division by zero"),
        ("x = 1\n", r"mine\.py: it has no recipe: write a function like `def mine\(\) -> Recipe:`"),
        ("def mine() -> 'Recipe':\n    return 3\n", r"mine\.py: mine\(\) returned int; it must return a Recipe"),
        ("def mine(lr) -> 'Recipe':\n    return 3\n", r"mine\.py, line 1: mine needs arguments"),
        ("def mine() -> 'Recipe':\n    return {}['lr']\n", r"mine\.py, line 2: KeyError: 'lr'"),
        (PLAIN.format(name="mine").replace('name="mine"', 'name="smol"'), r"the recipe's name is smol, as of one that comes with anyloom"),
        (PLAIN.format(name="mine").replace('name="mine"', 'name="a b"'), r"the recipe's name is 'a b': use letters"),
        (PLAIN.format(name="mine").replace('name="mine"', 'nam="mine"'), r"mine\.py, line 7: TypeError: .*nam"),
        (
            PLAIN.format(name="mine").replace('name="mine"', 'name="mine", image=Own()')
            + "\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Own:\n    x: int = 1\n",
            r"Recipe\.image is a Own, a class of this file",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text, problem):
    path = written(tmp_path / "mine.py", text)
    with pytest.raises(AnyloomError, match=problem) as raised:
        get_recipe(str(path))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["plan", "--recipe", str(tmp_path / "none.py")]) == 1
    assert capsys.readouterr().err == (
        f"anyloom: {tmp_path}/none.py: no such recipe file; `anyloom new NAME --from starter` writes one, `anyloom recipes` lists those that need no file\n"
    )
    with pytest.raises(AnyloomError, match=r"no recipe called mine; there are: tiny, .*; or give a file of yours, like mine\.py"):
        get_recipe("mine")


def test_a_file_imports_nothing_that_lies_beside_it(tmp_path, monkeypatch):
    written(tmp_path / "beside.py", "raise SystemExit(3)")
    path = written(tmp_path / "mine.py", "import beside\n" + PLAIN.format(name="mine"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in os.sys.path if entry not in ("", str(tmp_path))])
    with pytest.raises(AnyloomError, match="No module named 'beside'"):
        get_recipe(str(path))


@pytest.mark.parametrize("source", SOURCES)
def test_new_writes_a_recipe_that_plans_as_the_one_it_is_from(tmp_path, source, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_model", "--from", source]) == 0 and "anyloom plan --recipe my_model.py" in capsys.readouterr().out
    made, original = get_recipe("my_model.py"), RECIPES[source]()
    mine, theirs = (described(recipe) | {"name": "", "file": ""} for recipe in (made, original))
    assert mine == theirs and made.name == "my_model"
    assert main(["recipes", "my_model.py"]) == 0 and capsys.readouterr().out.startswith("my_model\n")
    assert main(["recipes", "my_model.py", "--json"]) == 0 and json.loads(capsys.readouterr().out)["name"] == "my_model"


def test_new_spoils_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("mine")
    for name, problem in (
        ("here", "here.py is there already"),
        ("smol", "a recipe that comes with anyloom is called so"),
        ("my-model", "use letters, digits and _"),
        ("none/mine", "none: no such directory"),
    ):
        assert main(["new", name]) == 1 and problem in capsys.readouterr().err
    assert (tmp_path / "here.py").read_text() == "mine" and sorted(path.name for path in tmp_path.iterdir()) == ["here.py"]
    assert main(["new", "other", "--json"]) == 0 and json.loads(capsys.readouterr().out) == {"file": "other.py", "from": "starter"}
    assert write_recipe(str(tmp_path / "mine.py"), "starter") == tmp_path / "mine.py"


def test_a_deployment_takes_only_files_below_its_worker_s_directories(tmp_path, monkeypatch):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    good, bad = (written(directory / "mine.py", PLAIN.format(name="mine")) for directory in (inside, outside))
    (inside / "link.py").symlink_to(bad)
    monkeypatch.setenv("ANYLOOM_RECIPE_DIRS", f"{tmp_path / 'none'}:{inside}")
    assert deployed_settings(str(good), threads=3).threads == 3 and deployed_settings("tiny")
    for path in (bad, inside / "link.py", inside / ".." / "outside" / "mine.py"):
        with pytest.raises(AnyloomError, match=r"outside/mine\.py is not below a directory that this worker takes recipes from .*ANYLOOM_RECIPE_DIRS"):
            deployed_settings(str(path))
    monkeypatch.delenv("ANYLOOM_RECIPE_DIRS")
    with pytest.raises(AnyloomError, match=r"takes recipes from \(none\)"):
        deployed_settings(str(good))


def test_lists_of_a_file_start_at_the_file(tmp_path, monkeypatch):
    text = (
        "from dataclasses import replace\nfrom pipelines.recipes import get_recipe\nfrom pipelines.recipes.recipe import Dataset, Recipe\n"
        'PHOTOS = Dataset(name="photos", format="cc3m", list="lists/photos.tsv")\n'
        'def mine() -> Recipe:\n    return replace(get_recipe("starter"), name="mine", datasets=(PHOTOS,))\n'
    )
    written(tmp_path / "mine.py", text)
    (tmp_path / "lists").mkdir()
    written(tmp_path / "lists" / "photos.tsv", "a cat\tcat.png\n")
    monkeypatch.chdir("/")
    assert made_recipe(str(tmp_path / "mine.py")).datasets[0].list == str(tmp_path / "lists" / "photos.tsv")
    steps = recipe_steps(str(tmp_path / "mine.py"), {})
    assert steps["manifest_cc3m"].sources == {"photos": tmp_path / "lists" / "photos.tsv"} and "stage3" not in steps
    assert steps["stage1"].config.stage.mixture == (("photos", 1.0),)
