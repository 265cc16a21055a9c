"""Interrupts: what SIGTERM and Ctrl-C do to a run.

SIGTERM becomes an exception of the main thread, as Ctrl-C is one already, so that a run ends in order: the steps' processes first, then whoever waited
for them. What this process does itself (publishing, mirroring) cannot be stopped from outside; when it does not end by itself soon, the process leaves
without waiting: what is complete stays complete and a cut step continues from its last checkpoint.

The exception is raised wherever the main thread happens to be, and a library that catches everything there may keep it. So a run insists (`never_missed`): it
raises again until the ending has begun, and leaves when it has not come to its end in time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

GRACE_S = 5.0
"""How long an interrupted run waits for what this process does itself."""
AGAIN_S, LATEST_S = 1.0, 8.0
"""How long the ending may take to begin until the exception is raised again, and how long it may take in all."""
MESSAGES = {130: "anyloom: interrupted; run the same command to continue", 143: "anyloom: terminated; run the same command to continue"}
"""Exit code (128 + signal) -> last words."""


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception: nothing may take it for an error of a step."""


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """While the body runs, SIGTERM raises Terminated in the main thread; elsewhere, or where somebody else handles it, nothing changes."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass
class _Run:
    """A run of this process that ends when it is told to."""

    told: int = 0
    """The signal that came; 0: none."""
    ends: threading.Event = field(default_factory=threading.Event)
    """The ending has begun: nothing is raised any more."""
    over: threading.Event = field(default_factory=threading.Event)

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Handler of both signals."""
        if self.ends.is_set():
            return
        if not self.told:
            self.told = number
            threading.Thread(target=self._insist, name="interrupt", daemon=True).start()
        raise _exception(number)

    def _insist(self) -> None:
        latest = time.monotonic() + LATEST_S
        while not self.ends.wait(AGAIN_S) and not self.over.is_set() and time.monotonic() < latest:
            signal.pthread_kill(threading.main_thread().ident or 0, self.told)
        if not self.over.wait(max(0.0, latest - time.monotonic())):
            leave(_exception(self.told))


_run: _Run | None = None


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


@contextmanager
def never_missed() -> Iterator[None]:
    """While the body runs, Ctrl-C and SIGTERM end this process within LATEST_S, whoever catches what they raise. Inside another body of this kind: the
    handlers are this module's again, whatever a library has made of them. Nothing changes in another thread, and for a signal that the starter of this
    process has switched off (as a shell does with Ctrl-C for what runs in the background)."""
    global _run
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outermost, _run = _run is None, _run or _Run()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in (number for number, handler in before.items() if handler != signal.SIG_IGN):
        signal.signal(number, _run.signalled)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if outermost:
            _run.over.set()
            _run = None


def is_run() -> bool:
    """Whether a body of `never_missed` is running: a command's own run, rather than a flow run that Prefect's worker ends in its own way."""
    return _run is not None


@contextmanager
def ending_begins() -> Iterator[None]:
    """Where an exception leaves the body: it has arrived, the ending begins, and it is not raised again."""
    try:
        yield
    except BaseException:
        if _run is not None and _run.told:
            _run.ends.set()
        raise


def leave(error: BaseException) -> None:
    """End this process now, with its Prefect server: 130 for Ctrl-C, 143 for all else. Does not return."""
    from flows.running.leftovers import end_own_servers

    code = 130 if isinstance(error, KeyboardInterrupt) else 143
    end_own_servers()
    print(MESSAGES[code], file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
