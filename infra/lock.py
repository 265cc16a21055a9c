"""Lock: one process on this machine works on a thing, the others wait.

An advisory kernel lock (flock) on a file below `{root}/locks/`: the kernel frees it when its holder dies, however it dies, so a dead
holder's lock is taken over without guessing. It does not reach other machines: there, double work must give equal bytes. A note in the file says who holds
it, since when, and when it was last seen; it goes with the lock, so a note of another machine is of one that works, or of one that died.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FRESH_S = 7 * 86400
"""So long a lock counts as held that another machine has noted, after its holder was last seen: nobody can ask the kernel there."""
BEAT_S = 600.0
"""How often a holder says that it is still there."""


@contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None] | None = None, poll_s: float = 0.2) -> Iterator[bool]:
    """Hold the lock file `path`. Yields True when another holder had to be waited for (then look again before working).

    on_wait: told once who is being waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited and on_wait is not None:
                    on_wait(_holder(path))
                waited = True
                time.sleep(poll_s)
        since, done = time.time(), threading.Event()
        os.ftruncate(fd, 0)
        _note(fd, since)
        beat = threading.Thread(target=_beat, args=(fd, since, done), daemon=True)
        beat.start()
        try:
            yield waited
        finally:
            done.set()
            beat.join()
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


@contextmanager
def shared(path: Path, poll_s: float = 0.05) -> Iterator[bool]:
    """Hold the lock file `path` together with others who share it; who holds it exclusively is waited for. Yields True when that was so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                time.sleep(poll_s)
        yield waited
    finally:
        os.close(fd)


def _note(fd: int, since: float) -> None:
    """Write who holds the lock, as long as the one before of the same holder."""
    os.pwrite(fd, json.dumps({"pid": os.getpid(), "since": since, "seen": round(time.time()), "host": socket.gethostname()}).encode(), 0)


def _beat(fd: int, since: float, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        _note(fd, since)


def in_use(path: Path) -> bool:
    """True when a process of this machine holds the lock file, or one of another machine has noted so and not long ago."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        note = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except BlockingIOError:
        return True
    except ValueError:  # torn by a crash of its holder
        return False
    finally:
        os.close(fd)
    return note.get("host", socket.gethostname()) != socket.gethostname() and time.time() - note.get("seen", note["since"]) < FRESH_S


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"process {held['pid']}, which holds it for {time.time() - held['since']:.0f} s"
    except (ValueError, KeyError, OSError):  # being written this instant: the name is a courtesy, the lock is not
        return "another process"
