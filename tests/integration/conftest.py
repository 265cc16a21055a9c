"""One real run of the tiny recipe (Prefect server, local Ray, lmms-eval, DuckDB) that the integration tests look at, and the command line as a function:
`cli` starts a process of its own, `here` runs it in this one, where torch, transformers and lmms_eval are imported once for all tests."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.cli.main import main

PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))
PATIENT_RAY = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
"""Ray Train looks after training every two seconds, for which each of the toy stages would wait. The slow tests run tiny under Ray as it is."""


@dataclass(frozen=True)
class Run:
    """A root and what the run that made it printed."""

    root: Path
    output: str


def checked(done, expect):
    """`done` after a look at its exit code."""
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def anyloom(*arguments, expect=0, timeout=800, env=None):
    """Run the command line in a process of its own; returns the CompletedProcess after checking its exit code."""
    command = [ANYLOOM, *map(str, arguments)]
    return checked(subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=PROJECT, env={**os.environ, **(env or {})}), expect)


@contextmanager
def as_it_was() -> Iterator[None]:
    """No Prefect and no Ray; afterwards puts back what a command changes in its process: environment, warnings, the handlers of the root logger."""
    environment, root = dict(os.environ), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    os.environ.update(ANYLOOM_PREFECT="0", ANYLOOM_RAY="0")
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:] = handlers
        root.setLevel(level)


def anyloom_here(*arguments, expect=0):
    """The same in this process, without Prefect and Ray. Only what Python prints is caught: tests of a stderr without a word from the libraries use cli."""
    out, err = io.StringIO(), io.StringIO()
    with as_it_was(), redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, arguments)])
    return checked(subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue()), expect)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Run:
    """The tiny recipe under Prefect and Ray, from nothing."""
    root = tmp_path_factory.mktemp("tiny") / "runs"
    return Run(root=root, output=anyloom("run", "--recipe", "tiny", "--root", root, env=PATIENT_RAY).stdout)


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A root of its own that starts from the finished run (hard links: artifacts are immutable)."""
    root = tmp_path / "runs"
    shutil.copytree(tiny.root, root, copy_function=os.link, ignore=shutil.ignore_patterns("prefect", "locks", "history.duckdb*"))
    return root


@pytest.fixture(scope="session")
def cli():
    """The command line as a function, in a process of its own: for what is about processes, and for commands that import little."""
    return anyloom


@pytest.fixture(scope="session")
def here():
    """The command line as a function, in this process: for commands that would import torch again."""
    return anyloom_here
