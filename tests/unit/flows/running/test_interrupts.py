"""Ctrl-C and SIGTERM end a run whoever catches what they raise: real processes, real signals."""

import signal
import subprocess
import sys
import time

import pytest

from flows.running.interrupts import LATEST_S

BODY = """
import signal, sys, time
from flows.running.interrupts import MESSAGES, ending_begins, is_run, never_missed

def swallow(times):
    for _ in range(times):
        try:
            print("ready", flush=True)
            time.sleep(30)
        except BaseException:
            pass

assert not is_run()
try:
    with never_missed():
        {body}
except BaseException as error:
    print(type(error).__name__, flush=True)
"""
WITH_CLEANING = """
        try:
            with ending_begins():
                print('ready', flush=True); time.sleep(30)
        finally:
            {cleaning}
"""


def started(program: str) -> subprocess.Popen[str]:
    """A process that takes Ctrl-C as from an interactive shell, also where the tests run in the background, for which shells switch it off; it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    return process


def ended(body: str, number: int) -> tuple[int, str, str, float]:
    """(exit code, output, errors, seconds from the signal to the end) of a process that runs `body`."""
    process = started(BODY.format(body=body))
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")])
def test_what_is_swallowed_is_raised_again_until_the_ending_begins(number, name):
    code, out, _, seconds = ended("swallow(3)\n        with ending_begins():\n            print('last', flush=True)\n            time.sleep(30)", number)
    assert (code, out.split()[-2:]) == (0, ["last", name]) and seconds < LATEST_S


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_run_that_swallows_everything_leaves_in_time(number, code, said):
    found, _, err, seconds = ended("swallow(1000)", number)
    assert found == code and f"anyloom: {said}; run the same command to continue" in err and LATEST_S - 1 < seconds < LATEST_S + 2


def test_an_ending_that_hangs_is_left_in_time():
    body = WITH_CLEANING.format(cleaning="time.sleep(60)")
    code, _, err, seconds = ended(body, signal.SIGINT)
    assert code == 130 and "interrupted" in err and LATEST_S - 1 < seconds < LATEST_S + 2


def test_nothing_is_raised_into_an_ending_that_has_begun():
    body = WITH_CLEANING.format(cleaning="time.sleep(3); print('cleaned', flush=True)")
    code, out, _, seconds = ended(body, signal.SIGINT)
    assert (code, out.split()) == (0, ["cleaned", "KeyboardInterrupt"]) and 3 <= seconds < LATEST_S


def test_handlers_that_a_library_sets_are_taken_back_inside():
    library = "signal.signal(signal.SIGINT, lambda *_: print('kept', flush=True))"
    body = f"{library}\n        with never_missed():\n            print('ready', flush=True); time.sleep(30)"
    code, out, _, seconds = ended(body, signal.SIGINT)
    assert (code, out.split()) == (0, ["KeyboardInterrupt"]) and seconds < 2


def test_a_signal_that_is_switched_off_stays_so():
    switched_off = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    process = started(switched_off + BODY.format(body="print('ready', flush=True); time.sleep(2)"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")


def test_afterwards_everything_is_as_before():
    body = "print('ready', flush=True); time.sleep(0.5)"
    after = "\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not is_run()\ntime.sleep(30)"
    process = started(BODY.format(body=body) + after)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in err
