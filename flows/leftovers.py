"""What a killed run leaves behind: Prefect's own server, which outlives a SIGKILL of the process that started it.

Input: the Prefect home of a root whose run lock is held. Output: nothing of that home runs any more. Refuses to touch a server that somebody
looks after (`prefect server start`) and any other process.
"""

from __future__ import annotations

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
    _, alive = psutil.wait_procs(ended, timeout=5)
    for process in alive:
        process.kill()
    return len(ended)


def _is_orphan(process: psutil.Process) -> bool:
    """True when the parent is init, or nothing that runs Python."""
    parent = process.parent()
    return parent is None or parent.pid == 1 or "python" not in parent.name().casefold()
