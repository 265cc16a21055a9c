"""A demo run that is ended on purpose: as a shell or a scheduler starts it, ended in one of WAYS, and what of it is still there afterwards.

Input: root, recipe, log. Output: exit codes, times and command lines. Raises OSError where no pseudo-terminal can be had.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
from demo_process import PROJECT, environment

GROUP, ALONE, TERMINATED, TYPED = "SIGKILL to the group", "SIGKILL to the main process", "SIGTERM", "Ctrl-C"
WAYS = (GROUP, ALONE, TERMINATED, TYPED)
CODES = {GROUP: -9, ALONE: -9, TERMINATED: 143, TYPED: 130}
"""Way -> exit code that it must have."""
SOON_S, GONE_S = 10.0, 30.0
"""How long an interrupted run may go on; how long its servers may."""
MARK = "ANYLOOM_ENDED_RUN"
"""Variable that all processes of a run inherit."""


@dataclass(slots=True)
class Ended:
    """How a run ended."""

    code: int | None
    """None: it had to be killed."""
    seconds: float


class Run:
    """`anyloom run` with Ray and Prefect, in a session of its own; with a terminal of its own where a key is to be typed."""

    def __init__(self, root: Path, recipe: str, log: Path, typed: bool):
        self.mark, self._log = uuid.uuid4().hex, log
        command = [str(Path(sys.executable).with_name("anyloom")), "run", "--recipe", recipe, "--root", str(root)]
        env = {name: value for name, value in environment().items() if name != "SPT_NOENV"} | {MARK: self.mark}  # Ray sets that one here, a shell does not
        self._keyboard = -1
        if typed:
            self._keyboard, terminal = pty.openpty()
            self.process = subprocess.Popen(
                command, cwd=PROJECT, env=env, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=_take_terminal
            )
            os.close(terminal)
            threading.Thread(target=self._copy, daemon=True).start()
            return
        with open(log, "ab") as out:
            self.process = subprocess.Popen(command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def _copy(self) -> None:
        """What the terminal shows, into the log."""
        with open(self._log, "ab", buffering=0) as out:
            while True:
                try:
                    shown = os.read(self._keyboard, 65536)
                except OSError:  # nobody has the terminal open any more
                    return
                if not shown:
                    return
                out.write(shown)

    def end(self, way: str) -> Ended:
        """End it in this way."""
        began = time.monotonic()
        if way == GROUP:
            os.killpg(self.process.pid, signal.SIGKILL)
        elif way == TYPED:
            os.write(self._keyboard, b"\x03")
        else:
            self.process.send_signal(signal.SIGTERM if way == TERMINATED else signal.SIGKILL)
        code: int | None
        try:
            code = self.process.wait(timeout=6 * SOON_S)
        except subprocess.TimeoutExpired:
            code = None
        return Ended(code, time.monotonic() - began)

    def left(self) -> list[psutil.Process]:
        """Its processes that are there, however they were started; those that only wait to be collected do not count."""
        found = []
        for process in psutil.process_iter():
            try:
                variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                belongs = f"{MARK}={self.mark}".encode() in variables or os.getsid(process.pid) == self.process.pid
                if belongs and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
        return found

    def remains(self) -> tuple[list[str], float]:
        """(command lines of what is there after GONE_S, seconds until nothing was). What is there is killed."""
        began = time.monotonic()
        while (left := self.left()) and time.monotonic() < began + GONE_S:
            time.sleep(0.2)
        seconds, lines = time.monotonic() - began, []
        for process in left:
            try:
                lines.append(" ".join(process.cmdline())[:120])
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return lines, seconds

    def close(self) -> None:
        """Kill what is there, and give the terminal back."""
        for process in self.left():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        if self._keyboard >= 0:
            os.close(self._keyboard)
            self._keyboard = -1


def _take_terminal() -> None:
    """Make the terminal on stdin that of the new session, whose keys then reach its foreground group; and take Ctrl-C as from an interactive shell, also where
    this process was started in the background, for which shells switch it off."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
