"""A Prefect server without its starter is ended; one that is looked after, or another root's, is not."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from flows.leftovers import end_orphaned_servers

SLEEP = "import time; time.sleep(60)"
SERVER = [sys.executable, "-c", SLEEP, "--factory", "prefect.server.api.server:create_app"]


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
