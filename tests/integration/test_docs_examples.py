"""The examples of docs/adding_*.md, executed: every page's files and edits are applied to a copy of the packages, then its programs run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "pipelines", "evals", "mmcore", "infra")
PAGES = sorted(PROJECT.glob("docs/adding_*.md"))


def applied(page: Path, tree: Path) -> tuple[list[str], str]:
    """(files that the page writes or changes below `tree`, the program that it runs)."""
    touched, program = [], ""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
        first, body = block.split("\n", 1)
        if first.startswith("# file: "):
            path = tree / first.removeprefix("# file: ")
            assert not path.exists(), f"{path} is there already"
            path.write_text(body)
        elif first == "# run":
            program += body
            continue
        else:
            name, where, mark = re.fullmatch(r"# in: (\S+) (after|before): (.+)", first).groups()
            path = tree / name
            lines = path.read_text().splitlines(keepends=True)
            (place,) = [number for number, line in enumerate(lines) if line.startswith(mark)]
            lines[place + (where == "after") : place + (where == "after")] = [body]
            path.write_text("".join(lines))
        if str(path) not in touched:
            touched.append(str(path))
    return touched, program


def test_every_kind_of_part_has_a_page():
    assert [page.stem for page in PAGES] == [f"adding_{what}" for what in ("a_decoder", "a_projector", "a_recipe", "an_encoder", "an_evaluation")]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_example_of_the_page_works(page, tmp_path):
    tree = tmp_path / "tree"
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    touched, program = applied(page, tree)
    assert len(touched) <= 3 and program, touched
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("ruff")), "check", "--select", "E,F,I", "--line-length", "160", *touched], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-2500:]
