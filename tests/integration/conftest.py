"""One real run of the tiny recipe (Prefect server, local Ray, lmms-eval, DuckDB) that the integration tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))


@dataclass(frozen=True)
class Run:
    """A root and what the run that made it printed."""

    root: Path
    output: str


def anyloom(*arguments, expect=0, timeout=800, env=None):
    """Run the command line; returns the CompletedProcess after checking its exit code."""
    done = subprocess.run([ANYLOOM, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=PROJECT, env={**os.environ, **(env or {})})
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Run:
    """The tiny recipe under Prefect and Ray, from nothing."""
    root = tmp_path_factory.mktemp("tiny") / "runs"
    return Run(root=root, output=anyloom("run", "--recipe", "tiny", "--root", root).stdout)


@pytest.fixture
def cli():
    """The command line as a function."""
    return anyloom


@pytest.fixture(scope="session")
def cli_once():
    """The command line as a function, for fixtures that live longer than a test."""
    return anyloom
