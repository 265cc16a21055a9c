"""How much memory may be filled with what could be read again.

Owns the share that is left to others. Input: what the kernel says of the machine, of the control groups (containers, jobs) around this process and of
its address space; output: bytes.
"""

from __future__ import annotations

import resource
from pathlib import Path

FREE_SHARE = 0.5
"""Share of the memory that stays free for models and page cache, of all processes together."""
CGROUPS = Path("/sys/fs/cgroup")


def spare_memory(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Bytes that may still be filled: what is available, less FREE_SHARE of all, on the machine, in the control groups and in the address space.

    Negative where more is in use. Memory that holds pages of files counts as available. Control groups of version 1 are not asked.
    """
    machine = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in (proc / "meminfo").read_text().splitlines()}
    spare = [machine["MemAvailable"] - FREE_SHARE * machine["MemTotal"]]
    addressed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addressed != resource.RLIM_INFINITY:
        spare.append((1 - FREE_SHARE) * addressed - int((proc / "self/statm").read_text().split()[0]) * resource.getpagesize())
    own = next((line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    for group in (Path(own), *Path(own).parents):
        spare += _spare_of_group(cgroups / str(group).lstrip("/"))
    return int(min(spare))


def _spare_of_group(group: Path) -> list[float]:
    try:
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group is mounted here, or its limit is "max"
        return []
    files = int(usage["active_file"]) + int(usage["inactive_file"])
    return [(1 - FREE_SHARE) * limit - (used - files)]
