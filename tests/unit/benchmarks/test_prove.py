"""The proof harness: several entries by name, and one line for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]


def prove(*words):
    command = [sys.executable, "tests/benchmarks/prove.py", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bench", "demo_rerun,nothing"), "no bench entry called nothing; there are: demo_rerun, embed_build"),
        (("chaos", "embed", "--recipe", "tiny", "--root", "nowhere"), "make it first: anyloom run 'shards_*' 'weights_*' --recipe tiny --root nowhere"),
        (("chaos", "eval", "--recipe", "tiny", "--root", "nowhere"), "make it first: anyloom run --recipe tiny --root nowhere"),
        (("bench", "demo_rerun,eval_generate", "--recipe", "tiny", "--root", "nowhere"), "make it first: anyloom run --recipe tiny --root nowhere"),
        (("bench", "embed_rebuild", "--recipe", "tiny", "--root", "nowhere"), "make it first: anyloom run 'shards_*' 'weights_*' --recipe tiny --root nowhere"),
    ],
)
def test_what_is_missing_is_one_line_with_the_command_that_makes_it(words, says, tmp_path):
    done = prove(*words, "--out", tmp_path)
    assert done.returncode == 2 and says in done.stderr, done.stderr[-2000:]
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_several_entries_are_named_at_once(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "tests" / "benchmarks"))
    from prove import chosen

    assert chosen("bench", "seeds,demo_rerun") == ["seeds", "demo_rerun"]
    assert chosen("chaos", "") == ["demo", "embed", "eval", "history"]
