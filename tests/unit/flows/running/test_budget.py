"""The share of threads and GPUs that steps hold while they run."""

from __future__ import annotations

import threading

import pytest

from flows.running.graph import Budget
from infra.step import ALL_BUT_ONE, ALL_GPUS, Step


def step(threads=1, gpus=0):
    return Step(name="s", config=None, run="a:b", threads=threads, gpus=gpus)


@pytest.mark.parametrize(
    ("asked", "given"),
    [(step(), (1, 0)), (step(threads=0), (4, 0)), (step(threads=9), (4, 0)), (step(gpus=1), (1, 1)), (step(gpus=ALL_GPUS), (1, 2)), (step(gpus=5), (1, 2))],
)
def test_a_step_gets_what_it_asks_for_and_there_is(asked, given):
    with Budget(4, 2).share(asked) as got:
        assert got == given


@pytest.mark.parametrize(("there", "given"), [(1, 1), (2, 1), (4, 3)])
def test_a_step_beside_a_long_one_leaves_it_a_thread_whether_it_runs_or_not(there, given):
    with Budget(there).share(step(threads=ALL_BUT_ONE)) as alone:
        assert alone == (given, 0)
    if there > 1:
        budget = Budget(there)
        with budget.share(step()), budget.share(step(threads=ALL_BUT_ONE)) as beside:
            assert beside == (given, 0)


def test_without_gpus_a_step_that_could_use_them_runs_on_the_cpu():
    with Budget(2).share(step(gpus=ALL_GPUS)) as got:
        assert got == (1, 0)


def test_a_step_waits_for_the_gpu_of_another():
    budget, running, begun, ended = Budget(4, 1), [], threading.Event(), threading.Event()

    def second():
        begun.set()
        with budget.share(step(gpus=1)):
            running.append("second")
        ended.set()

    with budget.share(step(gpus=ALL_GPUS)):
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        with budget.share(step()):  # one without a GPU passes it
            assert not ended.wait(0.1)
        assert running == []
    thread.join(5)
    assert running == ["second"] and (budget.free_threads, budget.free_gpus) == (4, 1)
