"""Tries: a failed download is fetched when the step is forced, and what was fetched once is kept."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from data_steps import pinned, png, row, run_step, tree, write_manifest
from http_servers import Asked, HttpServer, Said

from infra.entries import read_entry
from mmcore.stores.shards import ShardSet
from pipelines.shards.config import ShardsConfig

CONFIG = ShardsConfig(samples_per_shard=4, allow_private_addresses=True, fetch_attempts=1, max_lost=1.0)


class Moody(HttpServer):
    """Gives image n at /n while its status is 200."""

    def __init__(self):
        self.status = {}
        super().__init__(self.answer)

    def answer(self, asked: Asked) -> Said:
        number = int(asked.path[1:])
        status = self.status.get(number, 200)
        return Said(png(number) if status == 200 else b"no", status)


@pytest.fixture
def moody():
    with Moody() as server:
        yield server


def build(root, name, **more):
    return run_step(root, name, "pipelines.shards.plan:run", CONFIG, {"manifest": "manifest", "lists": "lists"}, **more)


@pytest.mark.parametrize("status", [429, 500, 503, 404, 403])
def test_a_failed_download_is_tried_again_when_the_step_is_forced(moody, tmp_path, status):
    (tmp_path / "lists").mkdir()
    write_manifest(tmp_path, [row(number, f"{moody.url}/{number}") for number in range(8)])
    moody.status = {1: status, 2: status}
    assert build(tmp_path, "first")["failed"] == 2
    moody.asked.clear()
    build(tmp_path, "again")
    assert moody.paths == [] and pinned(tmp_path, "again") == pinned(tmp_path, "first")
    still = build(tmp_path, "still", force=True)
    assert moody.paths == ["/1", "/2"] and still["failed"] == 2 and tree(tmp_path, "still")["still"] == tree(tmp_path, "first")["first"]
    moody.status = {0: 503, 2: status, 5: 503}  # what was fetched once may be gone
    moody.asked.clear()
    assert build(tmp_path, "better", force=True)["failed"] == 1 and moody.paths == ["/1", "/2"]
    moody.status = {0: 503}
    assert build(tmp_path, "best", force=True)["failed"] == 0
    moody.asked.clear()
    assert build(tmp_path, "after")["failed"] == 0 and build(tmp_path, "forced", force=True)["failed"] == 0 and moody.paths == []
    assert pinned(tmp_path, "after") == pinned(tmp_path, "best") and pinned(tmp_path, "best")[1] == pinned(tmp_path, "first")[1]
    shards = ShardSet(tmp_path / "best", tmp_path / "stores")
    assert [shards.media(key) for key in shards.keys()] == [png(number) for number in range(8)]
    assert len(ShardSet(tmp_path / "first", tmp_path / "stores").keys()) == 6  # whoever pins the first try still has it
    ledger = pq.read_table(tmp_path / "best" / "ledger.parquet").to_pylist()
    assert {line["status"] for line in ledger} == {"written"} and all(read_entry(tmp_path / "stores" / path) for path in pinned(tmp_path, "best"))
