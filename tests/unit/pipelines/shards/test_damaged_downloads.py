"""What a server gave in place of a medium, with status 200, is no lasting truth: it is fetched again when the step is forced."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_steps import pinned, png, row, run_step, write_manifest

from mmcore.stores.shards import ShardSet
from pipelines.shards.config import ShardsConfig

CONFIG = ShardsConfig(samples_per_shard=4, allow_private_addresses=True, fetch_attempts=1, max_lost=1.0)


class Busy(http.server.BaseHTTPRequestHandler):
    """Gives image n at /n, or what stands in its place."""

    def do_GET(self) -> None:
        number = int(self.path[1:])
        self.server.asked.append(number)  # type: ignore[attr-defined]
        body = self.server.instead.get(number, png(number))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    server.asked, server.instead = [], {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def build(root: Path, name: str, **more: bool) -> dict:
    return run_step(root, name, "pipelines.shards.plan:run", CONFIG, {"manifest": "manifest", "lists": "lists"}, **more)


@pytest.mark.parametrize(
    ("instead", "reason"),
    [(b"<html>busy, come again</html>", "not_media"), (b"", "empty_file"), (png(1)[:60], "truncated"), (png(1)[:40] + bytes(40) + png(1)[80:], "decode")],
    ids=["page", "nothing", "half", "damaged"],
)
def test_what_came_damaged_is_fetched_again_when_the_step_is_forced(instead: bytes, reason: str, busy, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    write_manifest(tmp_path, [row(number, f"http://127.0.0.1:{busy.server_port}/{number}") for number in range(8)])
    busy.instead = {1: instead}
    first = build(tmp_path, "first")
    assert first["written"] == 7 and first["reasons"] == {reason: 1}
    busy.asked.clear()
    assert build(tmp_path, "again") == first and build(tmp_path, "still", force=True) == first and busy.asked == [1]
    assert pinned(tmp_path, "still") == pinned(tmp_path, "first")
    busy.instead = {0: b"gone"}
    assert build(tmp_path, "better", force=True)["written"] == 8 and busy.asked == [1, 1]
    shards = ShardSet(tmp_path / "better", tmp_path / "stores")
    assert [shards.media(key) for key in shards.keys()] == [png(number) for number in range(8)]
    assert build(tmp_path, "after", force=True)["written"] == 8 and busy.asked == [1, 1]
    assert len(ShardSet(tmp_path / "first", tmp_path / "stores").keys()) == 7
