"""The mirror from the command line against a real S3 server on this machine, behind a network with faults, with kills: nothing lost, no byte wrong, no file
outside the root. One reference root says what has to come out."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.artifact import ARTIFACT_RECORD
from infra.storage import RECORD, digest_tree

sys.path.insert(0, str(Path(__file__).parent))

from faulty_proxy import FaultyProxy

STEP = "shards_cc3m"
RUN = ("run", STEP, "--recipe", "tiny", "--no-ray", "--no-prefect", "--threads", "1")
KEYS = {"AWS_ACCESS_KEY_ID": "toy", "AWS_SECRET_ACCESS_KEY": "toy", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


def bytes_of(root: Path) -> dict[str, str]:
    """Everything that is visible: digests of artifacts and store entries by directory."""
    records = [path for name in (ARTIFACT_RECORD, RECORD) for path in root.glob(f"[as]*/**/{name}") if not any(p.startswith(".") for p in path.parts)]
    return {path.parent.relative_to(root).as_posix(): digest_tree(path.parent) for path in records}


@pytest.fixture(scope="module")
def reference(here, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reference") / "runs"
    here(*RUN, "--root", root)
    assert sum(path.startswith("stores/") for path in bytes_of(root)) >= 2
    return root


@pytest.fixture(scope="module")
def s3():
    """(host, port) of an S3 server with the bucket `toy`, and a client that talks to it without faults."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", aws_access_key_id="toy", aws_secret_access_key="toy")
    client.create_bucket(Bucket="toy")
    yield (host, port), client
    server.stop()


class Machines:
    """Runs the command line on roots of its own with one mirror, and counts what it did."""

    def __init__(self, folder: Path, reference: Path, proxy: FaultyProxy, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.env = {**os.environ, **KEYS, "AWS_ENDPOINT_URL": proxy.url, "HOME": str(folder)}
        self.wanted, self.kills, self.errors = bytes_of(reference), 0, []

    def start(self, root: Path, prefix: str) -> subprocess.Popen:
        arguments = [str(Path(sys.executable).with_name("anyloom")), *RUN, "--root", str(root), "--remote", f"s3://toy/{prefix}"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env, cwd=self.folder, start_new_session=True)

    def run(self, root: Path, prefix: str, kill_after_s: float | None) -> str:
        """To its end, however often it is killed (once at most) or gives up. Returns what the last run printed."""
        for _ in range(6):
            process = self.start(root, prefix)
            try:
                out, error = process.communicate(timeout=kill_after_s or 200)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.communicate()
                self.kills, kill_after_s = self.kills + 1, None
                assert bytes_of(root).items() <= self.wanted.items()  # what is visible is whole at any moment
                continue
            if process.returncode == 0:
                return out
            assert "cannot be reached" in error and len(error.strip().splitlines()) == 1, error
            self.errors.append(error)
        raise AssertionError(f"gave up after 6 runs: {self.errors[-3:]}")

    def lifetime(self, number: int) -> float | None:
        """Seconds until a run is killed, for every other run."""
        return self.rng.uniform(1.0, self.longest) if number % 2 else None

    longest = 6.0

    def check(self, root: Path) -> None:
        assert bytes_of(root) == self.wanted
        left = [path for path in root.rglob(".staging-*")]
        assert all(path.is_relative_to(root / "artifacts") or path.is_relative_to(root / "stores") for path in left)


def mirrored(client, prefix: str) -> dict[str, bytes]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="toy", Prefix=f"{prefix}/")
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    return {key.removeprefix(f"{prefix}/"): client.get_object(Bucket="toy", Key=key)["Body"].read() for key in keys}


def rounds(tmp_path: Path, reference: Path, s3, share: float, count: int, seed: int) -> Machines:
    """`count` runs: a machine that has everything sends it, another one that has nothing makes it, and others fetch it."""
    (address, client), rng = s3, random.Random(seed)
    with FaultyProxy(*address, share, seed) as proxy:
        machines = Machines(tmp_path, reference, proxy, rng)
        prefix = ""
        for number in range(count):
            kind = ("sends", "fetches", "fetches", "makes", "fetches")[number % 5]
            root = tmp_path / f"machine{number}"
            if kind != "fetches":
                prefix = f"round{seed}-{number}"
            if kind == "sends":
                shutil.copytree(reference, root)
            out = machines.run(root, prefix, machines.lifetime(number))
            machines.check(root)
            if kind != "makes":
                assert re.search(r"\b0 of \d+ steps executed", out), out
            there = mirrored(client, prefix)
            assert {name.rsplit("/", 1)[0] for name in there if name.endswith((ARTIFACT_RECORD, RECORD))} == machines.wanted.keys()
            for name, data in there.items():
                if "/info/" not in name and not name.endswith((ARTIFACT_RECORD, RECORD)):
                    assert data == (reference / name).read_bytes(), name
            assert {path.name for path in tmp_path.iterdir()} <= {f"machine{n}" for n in range(count)}
            shutil.rmtree(root)
        assert proxy.requests > 10 * count
    return machines


@pytest.mark.slow
def test_nothing_is_lost_over_a_bad_network_with_kills(tmp_path, reference, s3):
    machines = rounds(tmp_path, reference, s3, share=0.05, count=3, seed=1)
    assert len(machines.errors) < 3


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_nothing_is_lost_in_a_hundred_runs(tmp_path, reference, s3):
    started = time.monotonic()
    machines = rounds(tmp_path, reference, s3, share=0.01, count=100, seed=7)
    print(f"{machines.kills} kills, {len(machines.errors)} runs gave up, {time.monotonic() - started:.0f} s")
    assert machines.kills > 10
