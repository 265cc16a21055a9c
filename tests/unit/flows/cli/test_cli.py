"""The command line: help that teaches, one-line errors, non-zero exits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ANYLOOM = str(Path(sys.executable).with_name("anyloom"))


def anyloom(*arguments, cwd=None):
    return subprocess.run([ANYLOOM, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_help_shows_every_command_and_examples():
    text = anyloom("--help").stdout
    for word in ("run", "plan", "artifacts", "sql", "generate", "examples:", "stage3.lr=1e-4"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--recipe", "smoll"), "no recipe called smoll; there are: tiny, tiny_nextgpt, smol"),
        (("plan", "--recipe", "tiny", "--set", "stage3.lrr=1"), "--set stage3.lrr: no such key; close ones: stage3.lr"),
        (("plan", "--recipe", "tiny", "--set", "stage3.lr"), "write KEY=VALUE"),
        (("run", "--recipe", "tiny", "stage9"), "no step called stage9; the steps are: "),
        (("run", "--recipe", "tiny", "--no-ray", "--no-prefect", "--force", "stage9", "lists"), "--force stage9: no such step"),
        (("artifacts", "why", "stage1"), "no artifact called stage1"),
        (("artifacts", "why"), "needs a NAME"),
        (("sql", "select 1"), "no history yet"),
        (("report", "--history"), "no history yet"),
        (("generate", "--model", "nowhere", "hello"), "neither an exported directory"),
        (("generate", "--model", ".", "--image", "gone.png", "hello"), "gone.png: No such file"),
        (("generate", "--model", ".", "--image", __file__, "hello"), "test_cli.py: this is no image (PNG, JPEG"),
    ],
)
def test_mistakes_are_one_line_and_a_non_zero_exit(tmp_path, arguments, message):
    done = anyloom(*arguments, *(() if arguments[0] in ("generate",) else ("--root", tmp_path)), cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_wrong_environment_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYLOOM_THREADS", "many")
    done = anyloom("plan", "--recipe", "tiny", "--root", tmp_path)
    assert done.returncode == 1 and "ANYLOOM_THREADS is wrong" in done.stderr


def test_plan_of_a_fresh_root_runs_nothing(tmp_path):
    done = anyloom("plan", "--recipe", "tiny", "--root", tmp_path / "r")
    assert done.returncode == 0 and "never run" in done.stdout and "waiting" in done.stdout
    assert not (tmp_path / "r").exists()


def test_recipes_are_a_line_each_and_one_is_read_in_full_or_as_json(capsys):
    from flows.cli.main import main
    from pipelines.recipes import RECIPES, get_recipe
    from pipelines.recipes.overrides import described

    lines = anyloom("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(RECIPES)]] == list(RECIPES) and len(lines) == len(RECIPES) + 2
    assert all(20 < len(line) <= 100 and line.endswith(".") for line in lines[: len(RECIPES)])
    rows = json.loads(anyloom("recipes", "--json").stdout)
    assert [row["name"] for row in rows] == list(RECIPES) and all(row["about"] and row["licences"] and row["trains"] for row in rows)
    assert json.loads(anyloom("recipes", "smol", "--json").stdout) == json.loads(json.dumps(described(get_recipe("smol"))))
    assert json.loads(anyloom("recipes", "tiny", "--set", "stage1.lr=0.5", "--json").stdout)["stages"][0]["lr"] == 0.5
    for name in RECIPES:
        assert main(["recipes", name]) == 0
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= 100 and said.startswith(f"{name}\n")
        for word in ("language model", "encoders", "licences", "commercial use", "trains", "GB a GPU", f"anyloom recipes {name} --json"):
            assert word in said, (name, word)
        assert all(dataset.licence in " ".join(said.split()) for dataset in get_recipe(name).datasets)


def test_report_of_the_history_runs_no_step_and_says_where_it_is(tmp_path):
    from toy_history import append, rows

    append(tmp_path / "r" / "stores", rows("aa", [1.0, 0.0]), rows("ab", [0.0, 0.0], night=1))
    done = anyloom("report", "--history", "--root", tmp_path / "r", "--out", tmp_path / "pages" / "x.html", "--a", "aa")
    assert done.returncode == 0 and f"history: {tmp_path / 'pages' / 'x.html'} (2 runs" in done.stdout
    assert "## Leaderboard" in (tmp_path / "pages" / "x.md").read_text() and not (tmp_path / "r" / "artifacts").exists()
    assert anyloom("report", "--history", "--root", tmp_path / "r", "--a", "zz").stderr.startswith("anyloom: --a zz: no runs are called that")
