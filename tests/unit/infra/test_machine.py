"""What the machine is said to have: CPUs of a container, GPUs that CUDA shows, a private directory."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from infra.machine import Memory, connects, cpu, existing, may_write, memory, port_problem, program
from infra.settings import Settings, private_directory, quota_of_cpus, visible_gpus


@pytest.mark.parametrize(("said", "cpus"), [("max 100000", None), ("150000 100000", 2), ("200000 100000", 2), ("50000 100000", 1), ("-1 100000", None)])
def test_a_containers_share_of_the_cpus_is_seen(said: str, cpus: int | None, tmp_path: Path) -> None:
    quota, period = said.split()
    if quota != "-1":
        (tmp_path / "cpu.max").write_text(said + "\n")
        assert quota_of_cpus(tmp_path) == (cpus or 1 << 20)
    old = tmp_path / "old" / "cpu"
    old.mkdir(parents=True)
    (old / "cpu.cfs_quota_us").write_text(quota.replace("max", "-1") + "\n")
    (old / "cpu.cfs_period_us").write_text(period + "\n")
    assert quota_of_cpus(tmp_path / "old") == (cpus or 1 << 20)
    assert quota_of_cpus(tmp_path / "nowhere") == 1 << 20


@pytest.mark.parametrize(("variable", "shown"), [("", 0), ("0", 1), ("0,1", 2), ("-1", 0), ("0,-1,1", 1), ("GPU-aa,GPU-bb", 2), ("NoDevFiles", 0), ("1, 3", 2)])
def test_only_gpus_that_cuda_shows_are_counted(variable: str, shown: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(visible_gpus(variable)) == shown
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert Settings(gpus=4).num_gpus == shown
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Settings(gpus=4).num_gpus == 4


def test_a_directory_that_somebody_prepared_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usual = private_directory()
    assert usual == private_directory() and stat.S_IMODE(usual.stat().st_mode) == 0o700
    usual.chmod(0o777)
    other = private_directory()
    assert other != usual and stat.S_IMODE(other.stat().st_mode) == 0o700
    usual.rmdir()
    usual.symlink_to(tmp_path)
    assert private_directory() not in (usual, tmp_path) and os.listdir(usual)


def kernel(proc: Path, total_kb: int = 1000, available_kb: int = 600, group: str = "/") -> Path:
    """Files of /proc as the kernel writes them."""
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {total_kb} kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\nHugePages_Total: 0\n")
    (proc / "self/cgroup").write_text(f"0::{group}\n")
    (proc / "self/statm").write_text("1 1 1 1 0 1 0\n")
    return proc


def of_group(place: Path, limit: str, used: int, files: int = 0, version: int = 2) -> None:
    place.mkdir(parents=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, str(used)), strict=True):
        (place / name).write_text(value)
    before = "" if version == 2 else "total_"
    (place / "memory.stat").write_text(f"anon 1\n{before}active_file {files}\n{before}inactive_file 0\n")


def test_memory_is_what_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (-1, -1))
    none = tmp_path / "none"
    assert memory(kernel(tmp_path / "bare"), none) == Memory(total=1_024_000, available=614_400, limited_by="the machine")
    groups = tmp_path / "groups"
    of_group(groups, "max", 5)
    of_group(groups / "job", "500000", 450_000, files=100_000)
    assert memory(kernel(tmp_path / "job", group="/job/inner"), groups) == Memory(total=500_000, available=150_000, limited_by="a control group")
    old = tmp_path / "old"
    of_group(old / "memory", "300000", 100_000, version=1)
    assert memory(kernel(tmp_path / "v1"), old).total == 300_000
    endless = tmp_path / "endless"
    of_group(endless / "memory", "9223372036854771712", 100_000, version=1)
    assert memory(kernel(tmp_path / "v1e"), endless).limited_by == "the machine"
    monkeypatch.setattr("resource.getrlimit", lambda what: (200_000, 200_000))
    assert memory(kernel(tmp_path / "ulimit"), none).limited_by == "ulimit -v"


def test_the_cpu_is_read_from_the_first_core(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: Some CPU @ 2.0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor: 1\nflags: x\n")
    assert cpu(tmp_path) == ("Some CPU @ 2.0", {"fpu", "avx2", "amx_bf16"}) and cpu(tmp_path / "nowhere") == ("", frozenset())


def test_ports_and_places(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        assert port_problem("127.0.0.1", port) and connects("127.0.0.1", port)
    assert not port_problem("127.0.0.1", port) and not connects("127.0.0.1", port)
    assert existing(tmp_path / "a" / "b") == tmp_path and may_write(tmp_path / "a" / "b") and not may_write(Path(__file__) / "below")
    assert program("nothing_is_called_so") == ("", "no nothing_is_called_so on PATH") and program("sh", "-c", "echo a; echo b") == ("a", "")
