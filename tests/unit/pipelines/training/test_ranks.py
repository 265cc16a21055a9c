"""Ranks of one host, started by the real Ray Train: they add up what each has, and nothing of them listens on anything but loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path

from infra import ray_session

ray_session.start(2)
import psutil, ray, torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from pipelines.training.ranks import RanksConfig

def work(config):
    group = torch.distributed.is_initialized()
    mine = torch.tensor([float(ray.train.get_context().get_world_rank() + 1)])
    if group:
        torch.distributed.all_reduce(mine)
        torch.distributed.barrier()
    open_ = [one.laddr.ip for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN]
    Path(config["told"], f"{ray.train.get_context().get_world_rank()}.json").write_text(json.dumps([group, float(mine), open_]))
    if group:
        torch.distributed.barrier()

work_dir, told, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
trainer = TorchTrainer(
    work,
    train_loop_config={"told": told},
    torch_config=RanksConfig(meet=work_dir),
    scaling_config=ScalingConfig(num_workers=ranks, resources_per_worker={"CPU": 1}),
    run_config=RunConfig(name="ranks", storage_path=work_dir + "/ray"),
)
trainer.fit()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_of_one_host_listen_on_loopback_only(tmp_path, ranks):
    meet, told = tmp_path / "a # place?", tmp_path / "told"
    meet.mkdir()
    told.mkdir()
    (tmp_path / "ranks_script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "ranks_script.py"), str(meet), str(told), str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=360, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((told / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert [(group, total) for group, total, _ in found] == [(ranks > 1, 3.0 if ranks == 2 else 1.0)] * ranks
    assert {address.removeprefix("::ffff:") for _, _, open_ in found for address in open_} <= {"127.0.0.1", "::1"}, found
