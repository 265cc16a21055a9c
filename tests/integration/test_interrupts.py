"""A run that is told to end, or is killed: its exit code, its last words, and that nothing of it runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.running.prefect_server import APP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))


def family(mark):
    """Processes that a run with this mark in its environment has started, however far down."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()  # psutil stops at what Ray's agents write over the first variable
            if f"ANYLOOM_TEST={mark}".encode() in environment.split(b"\0") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))  # whole: where the project lies decides at which character a name stands
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


def at_work(root, mark, *how):
    """A run of tiny whose steps have begun: the process."""
    env = {name: value for name, value in os.environ.items() if name != "SPT_NOENV"} | {"ANYLOOM_TEST": mark}  # Ray sets that one here, a shell does not
    command = [ANYLOOM, "run", "--recipe", "tiny", "--root", str(root), *how]
    run = subprocess.Popen(command, cwd=PROJECT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in run.stdout:
        if line.startswith("[start]"):
            time.sleep(1)
            return run
    raise AssertionError(run.stderr.read())


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(mark, seconds=30):
    """True when nothing of the run is left, at the latest after `seconds`."""
    patience = time.monotonic() + seconds
    while family(mark) and time.monotonic() < patience:
        time.sleep(0.3)
    return family(mark) == []


@pytest.mark.parametrize("how", [(), ("--no-prefect",), ("--no-ray", "--no-prefect")])
def test_sigterm_ends_a_run_in_order(how, tmp_path):
    mark = f"{tmp_path}-term"
    run = at_work(tmp_path / "runs", mark, *how)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 143, said
    assert said.strip().splitlines()[-1] == "anyloom: terminated; run the same command to continue" and "Traceback" not in said
    assert gone(mark), family(mark)


def test_a_killed_run_leaves_no_server_and_no_ray_behind(tmp_path):
    mark = f"{tmp_path}-kill"
    run = at_work(tmp_path / "runs", mark)
    patience = time.monotonic() + 150  # Ray starts beside the first step
    while not all(any(part in line for line in family(mark)) for part in (APP, "raylet")):
        assert run.poll() is None and time.monotonic() < patience, family(mark)
        time.sleep(0.2)
    started = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate(timeout=60)
    assert gone(mark), family(mark)
    patience = time.monotonic() + 30
    while any(map(alive, started)) and time.monotonic() < patience:
        time.sleep(0.3)
    assert not any(map(alive, started)), started
