"""A server of Ray that is killed under a run: the run ends soon, with one line that says so; it is never left running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))
SERVERS = {"head": "gcs_server", "raylet": "raylet"}
"""What we call a server -> the name of its process."""
SOON_S = 90
TASK = """
import sys, time
from infra import ray_session
from infra.step import AnyloomError

ray_session.start(1)
try:
    ray_session.run_isolated("long", time.sleep, 600, on_poll=lambda: print("polled", flush=True))
except AnyloomError as error:
    print(f"told: {error}", flush=True)
"""


def kill_server(pid: int, server: str) -> float:
    """Kill a server of a process's own cluster. Returns when."""
    (found,) = [one for one in psutil.Process(pid).children(recursive=True) if one.name() == SERVERS[server]]
    found.kill()
    return time.monotonic()


def ended(process: subprocess.Popen[str], killed: float) -> tuple[str, str]:
    """What a process has said when it ends by itself within SOON_S."""
    try:
        said = process.communicate(timeout=SOON_S - (time.monotonic() - killed))
    finally:
        process.kill()
    return said


@pytest.mark.parametrize("server", SERVERS)
def test_a_task_whose_server_is_killed_ends_with_one_line(server):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", TASK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "polled\n"
    out, err = ended(process, kill_server(process.pid, server))
    told = [line for line in out.splitlines() if line.startswith("told: ")]
    assert process.returncode == 1 and len(told) == 1 and told[0].startswith(f"told: Ray's {server} ") and "run the same command" in told[0], err


@pytest.mark.long
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("how", [(), ("--no-prefect",)], ids=["prefect", "plain"])
def test_a_run_whose_server_is_killed_fails_within_a_minute_and_a_half(tmp_path, how, server):
    command = [ANYLOOM, "run", "--recipe", "tiny", "--root", str(tmp_path / "runs"), "--set", "stage1.steps=1000000", *how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[start] stage1"):
            break
    time.sleep(3)
    family = psutil.Process(process.pid).children(recursive=True)
    _, said = ended(process, kill_server(process.pid, server))
    assert process.returncode == 1, said
    assert said.splitlines()[-1].startswith("anyloom: ") and f"Ray's {server}" in said.splitlines()[-1] and "Traceback" not in said, said[-3000:]
    assert not [one for one in psutil.wait_procs(family, timeout=20)[1] if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
