"""Machine: what this computer has, as the kernel and its programs say.

Owns the reading of CPU, memory, disk, ports and programs, and no judgement of them. Input: the kernel's files, which tests give in their own. Output: numbers
and texts. Cores that may be used and GPUs are of infra/settings.py.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 20.0
"""How long a program may take to say its version."""
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that this process may have: of the machine, or less where its container or `ulimit -v` says so."""

    total: int
    available: int
    limited_by: str
    """`the machine`, `a control group` or `ulimit -v`: whose limit it is."""


def memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Memory:
    """What /proc/meminfo says, less where a control group (version 2, or 1) or the address space has a smaller limit."""
    said = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in (proc / "meminfo").read_text().splitlines()}
    found = [Memory(total=said["MemTotal"], available=said["MemAvailable"], limited_by="the machine")]
    own = next((line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    for group in (Path(own), *Path(own).parents):
        place = cgroups / str(group).lstrip("/")
        found += _of_group(place, "memory.max", "memory.current", ("active_file", "inactive_file"))
    found += _of_group(cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
    addressed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addressed != resource.RLIM_INFINITY:
        used = int((proc / "self/statm").read_text().split()[0]) * resource.getpagesize()
        found.append(Memory(total=addressed, available=max(0, addressed - used), limited_by="ulimit -v"))
    least = min(found, key=lambda one: one.total)
    return Memory(total=least.total, available=min(one.available for one in found), limited_by=least.limited_by)


def _of_group(group: Path, limit: str, used: str, files: tuple[str, ...]) -> list[Memory]:
    """The limit of one control group; [] where it has none, or is not mounted here."""
    try:
        total, held = int((group / limit).read_text()), int((group / used).read_text())
        usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    if total >= _NO_LIMIT:
        return []
    return [Memory(total=total, available=max(0, total - (held - sum(int(usage[name]) for name in files))), limited_by="a control group")]


def cpu(proc: Path = Path("/proc")) -> tuple[str, frozenset[str]]:
    """(model, flags) of the first core, as /proc/cpuinfo says; ("", nothing) where it does not."""
    said: dict[str, str] = {}
    try:
        for line in (proc / "cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            said[name.strip()] = value.strip()
    except OSError:
        return "", frozenset()
    return said.get("model name", ""), frozenset((said.get("flags") or said.get("Features") or "").split())


def existing(path: Path) -> Path:
    """The path, or the directory above it that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the disk that a path is on, or would be on."""
    return shutil.disk_usage(existing(path)).free


def port_problem(host: str, port: int) -> str:
    """Why nothing can listen at this port; "" when something can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def connects(host: str, port: int, patience_s: float = 2.0) -> bool:
    """Whether something answers at this address."""
    try:
        socket.create_connection((host, port), timeout=patience_s).close()
    except OSError:
        return False
    return True


def program(*command: str) -> tuple[str, str]:
    """(first line that a program says, "") when it is on PATH and runs, else ("", why not)."""
    place = shutil.which(command[0])
    if place is None:
        return "", f"no {command[0]} on PATH"
    try:
        done = subprocess.run([place, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{place} does not run: {getattr(error, 'strerror', None) or error}"
    lines = done.stdout.decode(errors="replace").strip().splitlines() or [""]
    return (lines[0] or place, "") if done.returncode == 0 else ("", f"{place} ended with {done.returncode}: {lines[-1]}")


def may_write(path: Path) -> bool:
    """Whether this user may make files in a directory, or make the directory."""
    place = existing(path)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
