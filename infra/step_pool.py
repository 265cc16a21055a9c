"""Step pool: spawned processes that run one step each at a time, for runs without Ray.

Owns the processes: one is started when none is idle, and an idle one is used again, so that libraries are imported once and not once per step.
Input: a function and its arguments, which must pickle. Output: what it returns. Raises: what it raised, as it was; StepDied for a process that
ended under its step; AnyloomError after `stop`. What a step prints goes to the log. `close` leaves idle processes to the pools of later runs in this
process; every one ends with its parent, however that ends.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from infra.settings import surroundings, thread_environment
from infra.step import AnyloomError, StepDied

PATIENCE_S = 5.0
"""How long a process whose pipe has closed may take to end."""
_SPAWN = multiprocessing.get_context("spawn")


class StepTraceback(Exception):
    """The cause of an exception that came from a step's process: where it was raised there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Worker:
    """A process of the pool and the pipe to it."""

    def __init__(self) -> None:
        self.surroundings = surroundings()
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs,), name="step")
        self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def end(self) -> int:
        """Kill the process, idle or not. Returns its exit code."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode or 0


_spare: list[_Worker] = []
_spare_lock = threading.Lock()


@atexit.register  # after multiprocessing's own, so called before it: that one would wait for them
def _end_spare() -> None:
    with _spare_lock:
        while _spare:
            _spare.pop().end()


class StepPool:
    """Runs functions in processes of its own, any number at a time. Any number of threads may use it. log: where what is printed there goes."""

    def __init__(self, log: Path | None = None):
        self._log, self._lock, self._stopped = log, threading.Lock(), False
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        threads: int = 1,
        gpus: int = 0,
        on_poll: Callable[[], None] | None = None,
        poll_s: float = 0.3,
    ) -> Any:
        """`function(*args)` in a process that runs nothing else meanwhile; `on_poll` is called while waiting. name: for the error of a process that dies.

        gpus: a process that had some ends with its step, because it would keep their memory.
        """
        worker, answered = self._take(), False
        try:
            worker.connection.send((threads, self._log))
            worker.connection.send((function, args))
            while not worker.connection.poll(poll_s):
                if on_poll is not None:
                    on_poll()
            done, summary, where = worker.connection.recv()
            try:
                value = worker.connection.recv()
            except Exception:  # an exception that does not travel: its class cannot be made from its arguments
                value = RuntimeError(summary)
            answered = True
        except (EOFError, OSError):
            worker.process.join(PATIENCE_S)  # the pipe is closed: it has ended, or is about to
            code = worker.process.exitcode or 0
            raise StepDied(name, signal.Signals(-code).name if code < 0 else f"exit code {code}") from None
        finally:
            self._give_back(worker, reuse=answered and not gpus)
        if done:
            return value
        raise value from StepTraceback(where)

    def stop(self) -> None:
        """End every process at once; whoever waits for one gets an exception. Nothing runs here any more."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.process.kill()
        for worker in idle:
            worker.end()

    def close(self) -> None:
        """Leave the idle processes to later pools of this process. Nothing runs here any more."""
        with self._lock, _spare_lock:
            self._stopped = True
            _spare.extend(self._idle)
            self._idle = []

    def _take(self) -> _Worker:
        with self._lock:
            if self._stopped:
                raise AnyloomError("the run was interrupted; run it again to continue")
            worker = _usable(self._idle)
            if worker is None:
                with _spare_lock:
                    worker = _usable(_spare)
            worker = worker or _Worker()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: _Worker, *, reuse: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            if reuse and not self._stopped:
                self._idle.append(worker)
                return
        worker.end()


def _usable(idle: list[_Worker]) -> _Worker | None:
    """Takes the last one out that lives, and that was started as one would be started now; others end."""
    while idle:
        worker = idle.pop()
        if worker.process.is_alive() and worker.surroundings == surroundings():
            return worker
        worker.end()
    return None


def _serve(connection: Connection) -> None:
    """The life of a process: jobs from the pipe, one after the other, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says what becomes of it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    printing_to = None
    while True:
        try:
            threads, log = connection.recv()
        except EOFError:
            return
        if log is not None and log != printing_to:
            _print_to(log)
            printing_to = log
        thread_environment(threads)
        _answer(connection)


def _answer(connection: Connection) -> None:
    """Do one job: receives (function, arguments); sends (it returned, the exception in words, its traceback), then the value or the exception."""
    done, summary, where = True, "", ""
    try:
        function, args = connection.recv()
        value = ForkingPickler.dumps(function(*args))
    except BaseException as error:
        done, summary, where = False, f"{type(error).__name__}: {error}", traceback.format_exc()
        try:
            value = ForkingPickler.dumps(error)
        except Exception:
            value = ForkingPickler.dumps(RuntimeError(summary))
    connection.send((done, summary, where))
    connection.send_bytes(value)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _print_to(log: Path) -> None:
    """Send what this process and its children print to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
