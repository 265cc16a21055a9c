"""A stage of tiny on two local ranks: the same losses up to rounding as on one, and no rank listens on anything but loopback while it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path

from flows.running.run import recipe_steps
from infra import ray_session
from infra.artifact import as_artifact
from infra.plan import plan
from infra.step import Resources, StepContext
from pipelines.training.train import run

root, out = Path(sys.argv[1]), Path(sys.argv[2])
steps = recipe_steps("tiny", {})
rows = {row.step.name: row for row in plan(steps.values(), root)}
step = steps["stage1"]
inputs = {key: as_artifact(rows[source.name].path, rows[source.name].record) for key, source in step.inputs.items()}
for name in ("output", "work"):
    (out / name).mkdir()
ray_session.start(2)
resources = Resources(threads=2, workers=2, use_ray=True)
places = {"output": out / "output", "work": out / "work", "stores": root / "stores"}
run(StepContext(name="stage1", config=step.config, inputs=inputs, sources={}, resources=resources, **places))
"""


def listening(process: psutil.Process) -> set[str]:
    try:
        return {one.laddr.ip.removeprefix("::ffff:") for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


def ranks_of(pid: int) -> list[psutil.Process]:
    try:
        return [one for one in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]
    except psutil.Error:
        return []


def test_two_local_ranks_train_and_listen_on_loopback_only(tiny, tmp_path):
    (tmp_path / "two.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    with open(tmp_path / "said.txt", "wb") as said:
        process = subprocess.Popen([sys.executable, str(tmp_path / "two.py"), str(tiny.root), str(tmp_path)], stdout=said, stderr=said, env=environment)
        found, most = set[str](), 0
        while process.poll() is None:
            ranks = ranks_of(process.pid)
            most = max(most, len(ranks))
            found |= {address for rank in ranks for address in listening(rank)}
            time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "said.txt").read_text()[-3000:]
    assert most == 2 and found and found <= {"127.0.0.1", "::1"}, (most, found)
    (alone,) = (tiny.root / "artifacts" / "stage1").glob("*/losses.parquet")
    one, two = (pq.read_table(path).column("loss").to_pylist() for path in (alone, tmp_path / "output" / "losses.parquet"))
    assert two == pytest.approx(one, rel=1e-3) and json.loads((tmp_path / "work" / "result.json").read_text())["stage"] == "stage1"
