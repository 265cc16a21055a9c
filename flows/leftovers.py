"""What a killed run leaves behind: Prefect's own server, which outlives a SIGKILL of the process that started it.

Input: the Prefect home of a root whose run lock is held. Output: nothing of that home runs any more. A run starts this module as a small process
that does the same when the run is gone (`watch`). Refuses to touch a server that somebody looks after (`prefect server start`) and any other process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

_SERVER = "prefect.server.api.server:create_app"


def end_orphaned_servers(home: Path) -> int:
    """End the servers with this PREFECT_HOME whose starter is gone. Call with the root's run lock held. Returns how many there were."""
    ended = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if _SERVER in (process.info["cmdline"] or []) and process.environ().get("PREFECT_HOME") == str(home) and _is_orphan(process):
                process.terminate()
                ended.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone already, or somebody else's
    _wait(ended)
    return len(ended)


def end_own_servers() -> None:
    """End the servers that this process has started."""
    own = [child for child in psutil.Process().children() if _SERVER in child.cmdline()]
    for process in own:
        process.terminate()
    _wait(own)


def watch(home: Path) -> None:
    """Start a process that outlives this one, however it ends, and then ends the servers it has left."""
    subprocess.Popen([sys.executable, "-m", __name__, str(home)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


def _wait(ended: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(ended, timeout=5)
    for process in alive:
        process.kill()


def _is_orphan(process: psutil.Process) -> bool:
    """True when the parent is init, or nothing that runs Python."""
    parent = process.parent()
    return parent is None or parent.pid == 1 or "python" not in parent.name().casefold()


if __name__ == "__main__":
    sys.stdin.read()  # ends with the process at the other end of the pipe
    end_orphaned_servers(Path(sys.argv[1]))
