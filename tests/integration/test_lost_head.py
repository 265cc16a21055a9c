"""A Ray head that is killed under a run: the run ends soon, with one line that says so, or goes on; it is never left running."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))
SOON_S = 90


def heads(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children(recursive=True) if one.name() == "gcs_server"]


@pytest.mark.parametrize("how", [(), ("--no-prefect",)], ids=["prefect", "plain"])
def test_a_killed_ray_head_ends_the_run_within_a_minute_and_a_half(tmp_path, how):
    command = [ANYLOOM, "run", "--recipe", "tiny", "--root", str(tmp_path / "runs"), "--set", "stage1.steps=1000000", *how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("[start] stage1"):
            break
    time.sleep(3)
    (head,) = heads(process.pid)
    family = psutil.Process(process.pid).children(recursive=True)
    head.kill()
    killed = time.monotonic()
    try:
        _, said = process.communicate(timeout=SOON_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert time.monotonic() - killed < SOON_S and process.returncode == 1, said
    assert said.splitlines()[-1].startswith("anyloom: ") and "Ray" in said.splitlines()[-1] and "Traceback" not in said, said[-3000:]
    assert not [one for one in psutil.wait_procs(family, timeout=20)[1] if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
