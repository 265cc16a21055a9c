"""What the machine is said to have: CPUs of a container, GPUs that CUDA shows, a private directory."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

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
