"""What a killed process has started ends with it; a Prefect server that is looked after, or another root's, does not."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from flows.running.leftovers import end_orphaned_servers
from flows.running.prefect_server import APP

SLEEP = "import time; time.sleep(60)"
SERVER = [sys.executable, "-c", SLEEP, "--factory", APP]


def orphan(home):
    """Pid of a server's double whose parent has ended."""
    code = f"import subprocess; print(subprocess.Popen({SERVER!r}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PREFECT_HOME": str(home)}, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_only_the_orphans_of_this_home_are_ended(tmp_path):
    mine, other = orphan(tmp_path / "mine"), orphan(tmp_path / "other")
    tended = subprocess.Popen(SERVER, env={**os.environ, "PREFECT_HOME": str(tmp_path / "mine")})
    try:
        time.sleep(0.5)
        assert end_orphaned_servers(tmp_path / "mine") == 1
        assert not psutil.pid_exists(mine) or psutil.Process(mine).status() == psutil.STATUS_ZOMBIE
        assert psutil.pid_exists(other) and tended.poll() is None
        assert end_orphaned_servers(tmp_path / "mine") == 0
    finally:
        tended.kill()
        tended.wait()
        psutil.Process(other).kill()


@pytest.mark.parametrize("home", ["", "nowhere"])
def test_without_servers_nothing_happens(tmp_path, home):
    assert end_orphaned_servers(tmp_path / home) == 0


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("deaf", [False, True])
def test_what_a_killed_process_has_started_ends_with_it(deaf):
    """Also a grandchild in a session of its own, and one that ignores SIGTERM; not what ran before."""
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    sleeper = [sys.executable, "-c", ignore + SLEEP]
    grandchild = f"import subprocess, time; print(subprocess.Popen({sleeper!r}, start_new_session=True).pid, flush=True); time.sleep(60)"
    code = f"""
import subprocess, sys, time
from flows.running.leftovers import watch
before = subprocess.Popen({sleeper!r})
watch(); watch()
child = subprocess.Popen([sys.executable, "-c", {grandchild!r}], stdout=subprocess.PIPE, text=True, start_new_session=True)
print(before.pid, child.pid, child.stdout.readline(), flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    before, child, below = map(int, starter.stdout.readline().split())
    try:
        assert alive(before) and alive(child) and alive(below)
        time.sleep(0.5)
        starter.kill()
        starter.wait()
        patience = time.monotonic() + 30
        while (alive(child) or alive(below)) and time.monotonic() < patience:
            time.sleep(0.2)
        assert not alive(child) and not alive(below) and alive(before)
    finally:
        psutil.Process(before).kill()
