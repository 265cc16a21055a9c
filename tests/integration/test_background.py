"""Background tasks of the local Ray cluster: lowest priority, no share of its CPUs, and a process of their own; and GPUs for those that ask for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(300)
SCRIPT = """
import os, sys, threading, time
from infra import ray_session

def nice_and_pid(until=None):
    while until and not os.path.exists(until):
        time.sleep(0.05)
    return os.getpriority(os.PRIO_PROCESS, 0), os.getpid(), os.environ["OMP_NUM_THREADS"], os.sched_getscheduler(0) == os.SCHED_IDLE

ray_session.start(1, 2)
found, word = {}, sys.argv[1]
slow = threading.Thread(target=lambda: found.update(slow=ray_session.run_isolated(nice_and_pid, word, background=True)))
slow.start()
time.sleep(1)
own = os.getpriority(os.PRIO_PROCESS, 0)
first = ray_session.run_isolated(nice_and_pid)  # the only CPU is free, although the other one still runs
assert slow.is_alive()
open(word, "w").close()
slow.join()
later = [ray_session.run_isolated(nice_and_pid) for _ in range(3)]
assert found["slow"][0] == 19 and found["slow"][2:] == ("1", True), found
assert all(priority == own and pid != found["slow"][1] and not idle for priority, pid, _, idle in (first, *later)), (first, later)
visible = [ray_session.run_isolated(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"), gpus=gpus) for gpus in (2, 1, 0)]
assert visible[0] == "0,1" and visible[1] in ("0", "1") and visible[2] in ("", None), visible
assert ray_session.num_gpus(2) == 2
ray_session.stop()
print("as it should be")
"""


def test_a_background_task_takes_nothing_from_the_others_and_leaves_nothing_behind(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "word")], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "as it should be" in done.stdout, done.stderr[-2000:]
