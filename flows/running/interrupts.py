"""Interrupts: what SIGTERM and Ctrl-C do to a run.

SIGTERM becomes an exception of the main thread, as Ctrl-C is one already, so that a run ends in order: Ray's processes first, then whoever waited
for them. Work inside this process cannot be stopped from outside; when it does not end by itself soon, the process leaves without waiting:
what is complete stays complete and a cut step continues from its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 5.0
"""How long an interrupted run waits for the steps inside this process."""
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


def leave(error: BaseException) -> None:
    """End this process now, with its Prefect server: 130 for Ctrl-C, 143 for all else. Does not return."""
    from flows.running.leftovers import end_own_servers

    code = 130 if isinstance(error, KeyboardInterrupt) else 143
    end_own_servers()
    print(MESSAGES[code], file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
