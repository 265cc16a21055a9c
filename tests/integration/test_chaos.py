"""The kill tests on the tiny recipe: four ways to end it, embedding builds, evaluations; real signals, equal bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/prove.py", "chaos", "demo", "--recipe", "tiny", "--kills", "4", "--out", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (entry,) = json.loads((tmp_path / "chaos.json").read_text())
    assert entry["kills"] == 4 and not any(entry[name] for name in ("differences", "lost", "doubled", "unclean", "left_running")), entry


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_embedding_builds_end_like_an_undisturbed_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/prove.py", "chaos", "embed", "--recipe", "tiny", "--kills", "4", "--out", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (entry,) = json.loads((tmp_path / "chaos.json").read_text())
    assert (entry["differences"], entry["lost"], entry["doubled"]) == (0, 0, 0) and entry["kills"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_evaluations_end_like_an_undisturbed_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/prove.py", "chaos", "eval", "--recipe", "tiny", "--kills", "4", "--out", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (entry,) = json.loads((tmp_path / "chaos.json").read_text())
    assert (entry["differences"], entry["lost"], entry["doubled"]) == (0, 0, 0) and entry["kills"] >= 4


@pytest.mark.parametrize(
    ("name", "inputs", "least"), [("kernel", 5, 90), ("http", 2, 100), *(pytest.param(name, 1, 100, marks=pytest.mark.slow) for name in ("lists", "import"))]
)
def test_fuzz_finds_no_crash_and_no_wrong_reason(tmp_path, name, inputs, least):
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/prove.py", "fuzz", name, "--inputs", str(inputs), "--out", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (entry,) = json.loads((tmp_path / "fuzz.json").read_text())
    assert entry["crashes"] == entry["wrong_reason"] == 0 and entry["inputs"] >= least
