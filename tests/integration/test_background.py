"""Background tasks of the local Ray cluster: lowest priority, no share of its CPUs, and processes of their own; and GPUs for those that ask for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SCRIPT = """
import os, sys, threading, time
from infra import ray_session

def nice_and_pid(until=None):
    while until and not os.path.exists(until):
        time.sleep(0.05)
    return os.getpriority(os.PRIO_PROCESS, 0), os.getpid(), os.environ["OMP_NUM_THREADS"], os.sched_getscheduler(0) == os.SCHED_IDLE

ray_session.start(1, 2)
found, word = {}, sys.argv[1]
slow = threading.Thread(target=lambda: found.update(slow=ray_session.run_isolated("note", nice_and_pid, word, background=True)))
slow.start()
time.sleep(1)
own = os.getpriority(os.PRIO_PROCESS, 0)
first = ray_session.run_isolated("note", nice_and_pid)  # the only CPU is free, although the other one still runs
assert slow.is_alive()
open(word, "w").close()
slow.join()
later = [ray_session.run_isolated("note", nice_and_pid) for _ in range(3)]
assert found["slow"][0] == 19 and found["slow"][2:] == ("1", True), found
assert all(priority == own and pid != found["slow"][1] and not idle for priority, pid, _, idle in (first, *later)), (first, later)
visible = [ray_session.run_isolated("note", lambda: os.environ.get("CUDA_VISIBLE_DEVICES"), gpus=gpus) for gpus in (2, 1, 0)]
assert visible[0] == "0,1" and visible[1] in ("0", "1") and visible[2] in ("", None), visible
assert ray_session.num_gpus(2) == 2
ray_session.stop()
print("as it should be")
"""


def test_a_background_task_takes_nothing_from_the_others_and_leaves_nothing_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "word")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "ANYLOOM_BACKGROUND_PRIORITY": ""},
    )
    assert done.returncode == 0 and "as it should be" in done.stdout, done.stderr[-2000:]


GRAPH = """
import sys
from pathlib import Path

from flows.running.display import Display
from flows.running.runner import run_graph
from infra.materialize import Place
from infra.settings import load_settings
from infra.step import Step

root = Path(sys.argv[1])
steps = [Step(name=name, config=None, run="noting:note", background=name != "main") for name in ("one", "two", "three", "main")]
run_graph(steps, Place(root=root), load_settings(root=root, use_prefect=False, threads=2), Display())
"""
NOTING = """
import os, time
from pathlib import Path

def note(ctx):
    log = Path(os.environ["NOTES"])
    for word in ("begins", "ends"):
        with log.open("a") as handle:
            handle.write(f"{ctx.name} {word}\\n")
        time.sleep(0.5)
    (ctx.output / "out.txt").write_text(ctx.name)
    return {}
"""


def test_no_more_background_steps_at_once_than_a_long_step_leaves_threads_for(tmp_path):
    (tmp_path / "noting.py").write_text(NOTING)
    notes, paths = tmp_path / "notes", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "NOTES": str(notes)}
    done = subprocess.run([sys.executable, "-c", GRAPH, str(tmp_path / "runs")], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    beside = [line.split() for line in notes.read_text().splitlines() if not line.startswith("main")]
    assert [word for _, word in beside] == ["begins", "ends"] * 3 and all(beside[i][0] == beside[i + 1][0] for i in (0, 2, 4))
