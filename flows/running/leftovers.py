"""What a killed run leaves behind: Prefect's own server and the processes of its local Ray cluster, some of which outlive a SIGKILL of their starter.

Two ways in. `watch` marks the environment of all that this process starts from then on and starts a small process that ends whatever carries the mark
once this process is gone, however it went. `end_orphaned_servers` finds a server by its Prefect home, for what no watcher has ended. Never touched: a server
that somebody looks after (`prefect server start`), a cluster that was given (RAY_ADDRESS) and any other process.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from flows.running.prefect_server import APP
from infra.settings import mark_environment, own_environment

_MARK = "ANYLOOM_STARTED_BY"
_ROUNDS = 5  # a process that is being ended may have started another one meanwhile
_watcher: subprocess.Popen[bytes] | None = None  # held: its pipe closes with this process


def end_orphaned_servers(home: Path) -> int:
    """End the servers with this PREFECT_HOME whose starter is gone. Call with the root's run lock held. Returns how many there were."""
    return _end(_which(lambda process: _is_server(process) and _started_with(process, "PREFECT_HOME", str(home)) and _is_orphan(process)))


def end_own_servers() -> None:
    """End the servers that this process has started."""
    _end(_which(_is_server, psutil.Process().children()))


def watch() -> None:
    """From now on all that this process starts ends with it, also when it is killed. Does nothing the second time."""
    global _watcher
    if _watcher is not None:
        return
    mark = secrets.token_hex(16)
    command = [sys.executable, "-P", "-m", __name__, mark]
    _watcher = subprocess.Popen(command, env=own_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    mark_environment(_MARK, mark)
    mark_environment("SPT_NOENV", "1")  # setproctitle's switch: Ray's agents write their title over their whole environment, the mark too, without it


def end_marked(mark: str) -> int:
    """End every process that was started with this mark. Returns how many there were."""
    ended = 0
    for _ in range(_ROUNDS):
        now = _end(_which(lambda process: _started_with(process, _MARK, mark)))
        ended += now
        if not now:
            break
    return ended


def _which(wanted: Callable[[psutil.Process], bool], among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """The running processes that are `wanted`, of all that there are when `among` is None."""
    found = []
    for process in psutil.process_iter() if among is None else among:
        try:
            if process.status() != psutil.STATUS_ZOMBIE and wanted(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone already, or somebody else's
    return found


def _end(processes: list[psutil.Process]) -> int:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return len(processes)


def _started_with(process: psutil.Process, name: str, value: str) -> bool:
    """Whether the process got this environment variable. Ray's agents write their title over the first of them, at which psutil stops reading."""
    if not sys.platform.startswith("linux"):
        return process.environ().get(name) == value
    try:
        return f"{name}={value}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return False  # somebody else's, or gone already


def _is_server(process: psutil.Process) -> bool:
    return APP in process.cmdline()


def _is_orphan(process: psutil.Process) -> bool:
    """True when the parent is init, or nothing that runs Python."""
    parent = process.parent()
    return parent is None or parent.pid == 1 or "python" not in parent.name().casefold()


if __name__ == "__main__":
    sys.stdin.read()  # ends with the process at the other end of the pipe
    end_marked(sys.argv[1])
