"""The step pool: a process for each step at a time, used again, and what happens when one dies, raises or is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from pool_jobs import die, leave, local, note, pid, slowly, stubborn, threads, write, wrong

from infra.step import AnyloomError, StepDied
from infra.step_pool import StepPool, StepTraceback


@pytest.fixture
def pool(tmp_path):
    made = StepPool(tmp_path / "run.log")
    yield made
    made.stop()


def gone(number, seconds=20):
    patience = time.monotonic() + seconds
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE and time.monotonic() < patience:
        time.sleep(0.1)
    return not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_steps_one_after_the_other_share_a_process_and_those_side_by_side_do_not(pool):
    first = pool.run("a", pid)
    assert first != os.getpid() and pool.run("b", pid) == first
    with ThreadPoolExecutor(2) as both:
        found = set(both.map(lambda name: pool.run(name, slowly, 1.0), "ab"))
    assert len(found) == 2 and pool.run("c", pid) in found


def test_a_later_pool_takes_over_the_idle_processes_with_a_log_of_its_own(tmp_path, monkeypatch):
    pools = [StepPool(tmp_path / f"{number}.log") for number in range(3)]
    first = pools[0].run("a", pid)
    pools[0].run("a", write, "first")
    pools[0].close()
    with pytest.raises(AnyloomError, match="interrupted"):
        pools[0].run("late", pid)
    assert pools[1].run("b", pid) == first
    pools[1].run("b", write, "second")
    pools[1].close()
    assert [set((tmp_path / f"{number}.log").read_text().split()) for number in range(2)] == [{"first"}, {"second"}]
    monkeypatch.setenv("ANYLOOM_JUDGE_URL", "https://judge.example")
    assert pools[2].run("c", pid) != first and gone(first)  # it was started in another environment
    pools[2].stop()


def test_a_process_that_had_a_gpu_is_not_used_again(pool):
    first = pool.run("a", pid, gpus=1)
    assert gone(first) and pool.run("b", pid) != first


def test_every_step_gets_its_own_threads(pool):
    assert [pool.run("a", threads, threads=n) for n in (2, 1, 2)] == [(2, {2}, "2"), (1, {1}, "1"), (2, {2}, "2")]


@pytest.mark.parametrize(("function", "arguments", "says"), [(die, (), "SIGKILL"), (leave, (7,), "exit code 7")])
def test_a_process_that_dies_is_an_error_that_names_the_step(pool, function, arguments, says):
    with pytest.raises(StepDied, match=rf"^step stage1: its process died \({says}\)"):
        pool.run("stage1", function, *arguments)
    assert pool.run("next", pid)


def test_what_a_step_raises_arrives_as_it_was(pool):
    with pytest.raises(AnyloomError, match=r"^shards: no such list; give one$") as caught:
        pool.run("a", wrong)
    assert type(caught.value) is AnyloomError
    assert isinstance(caught.value.__cause__, StepTraceback) and "in wrong" in str(caught.value.__cause__)


def test_an_exception_or_a_value_that_cannot_travel_comes_in_words_and_the_process_goes_on(pool):
    first = pool.run("a", pid)
    with pytest.raises(RuntimeError, match="Stubborn: this and that"):
        pool.run("a", stubborn)
    with pytest.raises(Exception, match="local"):
        pool.run("a", local)
    assert pool.run("a", pid) == first


def test_what_is_printed_goes_to_the_log(pool, tmp_path, capfd):
    pool.run("a", write, "hello")
    pool.stop()
    assert (tmp_path / "run.log").read_text().splitlines().count("hello") == 3 and "hello" not in "".join(capfd.readouterr())


def test_the_wait_is_told(pool):
    told = []
    pool.run("a", slowly, 0.5, on_poll=lambda: told.append(1), poll_s=0.05)
    assert len(told) > 3


def test_stop_ends_busy_and_idle_processes_at_once(pool, tmp_path):
    idle, died = [], []

    def wait():
        try:
            pool.run("long", note, tmp_path / "pid", 60)
        except StepDied as error:
            died.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    while not (tmp_path / "pid").exists():
        time.sleep(0.05)
    idle.append(pool.run("short", pid))
    pool.stop()
    thread.join(10)
    assert len(died) == 1 and "step long" in died[0] and gone(idle[0]) and gone(int((tmp_path / "pid").read_text()))
    with pytest.raises(AnyloomError, match="interrupted"):
        pool.run("late", pid)


def test_a_killed_parent_takes_its_processes_along(tmp_path):
    where = tmp_path / "pid"
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from infra.step_pool import StepPool
from pool_jobs import note
StepPool().run("long", note, Path({str(where)!r}), 60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    patience = time.monotonic() + 60
    while not (where.exists() and where.read_text()):
        assert parent.poll() is None and time.monotonic() < patience
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    assert gone(int(where.read_text()))
