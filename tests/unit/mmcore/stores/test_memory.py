"""Spare memory: what the machine and the control groups say, less the share that stays free."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mmcore.stores.memory import spare_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def no_limit_of_this_process(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def machine(tmp_path: Path, group: str) -> dict[str, Path]:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal:       {64 * 2**20} kB\nMemFree:        {2**20} kB\nMemAvailable:   {50 * 2**20} kB\nHugePages_Total:       0\n")
    (proc / "self/cgroup").write_text(f"1:name=systemd:/\n0::{group}\n")
    (proc / "self/statm").write_text("1000 900 800 1 0 700 0\n")
    cgroups.mkdir()
    return {"proc": proc, "cgroups": cgroups}


def limit(group: Path, most: str, used: int, files: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files // 2}\nactive_file {files // 2}\n")


def test_half_of_the_machine_stays_free(tmp_path):
    assert spare_memory(**machine(tmp_path, "/")) == 18 * GIB


@pytest.mark.parametrize("limited", ["", "jobs", "jobs/7"])
def test_the_smallest_group_around_the_process_decides(tmp_path, limited):
    where = machine(tmp_path, "/jobs/7")
    for group in ("", "jobs", "jobs/7"):
        limit(where["cgroups"] / group, "max", 9 * GIB, 0)
    limit(where["cgroups"] / limited, str(16 * GIB), 9 * GIB, 4 * GIB)
    assert spare_memory(**where) == 3 * GIB


def test_a_full_machine_has_nothing_to_spare(tmp_path):
    where = machine(tmp_path, "/")
    limit(where["cgroups"], str(4 * GIB), 3 * GIB, 0)
    assert spare_memory(**where) == -GIB


def test_a_process_does_not_fill_its_address_space(tmp_path):
    machine(tmp_path, "/")
    script = "import sys; from pathlib import Path; from mmcore.stores.memory import spare_memory; print(spare_memory(*map(Path, sys.argv[1:])))"
    command = [sys.executable, "-c", script, str(tmp_path / "proc"), str(tmp_path / "cgroup")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * GIB, 8 * GIB)))
    assert int(done.stdout) == 4 * GIB - 1000 * resource.getpagesize(), done.stderr


def test_this_machine_answers():
    assert isinstance(spare_memory(), int)
