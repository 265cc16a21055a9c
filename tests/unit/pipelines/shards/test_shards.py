"""Shards: every row accounted for, same bytes however they came about, and no way out of the list root."""

from __future__ import annotations

import errno
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from data_steps import flip, pictures, pinned, png, row, run_step, tree, wav, write_manifest
from http_servers import CannedServer

import pipelines.shards.build
from flows.running.run import rows_left_out
from infra.garbage import ENTRIES
from infra.step import AnyloomError
from mmcore.stores.shards import REASONS, ShardSet
from pipelines.shards.addresses import is_public
from pipelines.shards.config import ShardsConfig
from pipelines.shards.download import FetchPolicy
from pipelines.shards.errors import FetchError
from pipelines.shards.fetch import fetch

CONFIG = ShardsConfig(samples_per_shard=4, max_media_bytes=100_000, max_lost=1.0)


def build(root: Path, name: str = "shards", config: ShardsConfig = CONFIG, **resources) -> dict:
    return run_step(root, name, "pipelines.shards.plan:run", config, {"manifest": "manifest", "lists": "lists"}, **resources)


def ledger(root: Path, name: str = "shards") -> dict[str, tuple[str, str]]:
    return {line["key"]: (line["status"], line["reason"]) for line in pq.read_table(root / name / "ledger.parquet").to_pylist()}


def test_bytes_do_not_depend_on_workers(tmp_path):
    for name in ("one", "two"):
        write_manifest_of(tmp_path / name, 10)
    build(tmp_path / "one")
    build(tmp_path / "two", workers=2, threads=2, use_ray=True)
    assert tree(tmp_path / "one", "shards") == tree(tmp_path / "two", "shards")


def test_the_build_notes_which_entries_it_counts_on(tmp_path):
    write_manifest_of(tmp_path, 10)
    build(tmp_path)
    assert json.loads((tmp_path / "work" / "shards" / ENTRIES).read_text()) == sorted(pinned(tmp_path, "shards"))


def write_manifest_of(root: Path, count: int) -> list[dict]:
    root.mkdir(exist_ok=True)
    rows = pictures(root, count)
    write_manifest(root, rows)
    return rows


def test_tar_opens_with_stock_readers(tmp_path):
    write_manifest_of(tmp_path, 6)
    build(tmp_path)
    shards = ShardSet(tmp_path / "shards", tmp_path / "stores")
    assert shards.keys() == [f"pets-{i:06d}" for i in range(6)] and shards.keys(split="heldout") == []
    for path in pinned(tmp_path, "shards"):
        tar = tmp_path / "stores" / path / "shard.tar"
        with tarfile.open(tar) as opened:
            assert {member.mtime for member in opened} == {0} and {member.mode for member in opened} == {0o644}
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
            key = sample["__key__"]
            assert sample["png"] == shards.media(key) == png(int(key[-6:]))
            assert json.loads(sample["json"]) == shards.meta(key) and sample["txt"].decode() == "\n".join(shards.meta(key)["texts"])


def test_every_bad_row_has_its_reason(tmp_path):
    rows = pictures(tmp_path, 2)
    media = tmp_path / "lists" / "media"
    (tmp_path / "secret.png").write_bytes(png(9))
    (media / "link.png").symlink_to(tmp_path / "secret.png")
    bad = {
        "cut.png": (png(1)[:300], "truncated"),
        "page.png": (b"<html>not found</html>", "not_media"),
        "empty.png": (b"", "empty_file"),
        "big.png": (b"\x89PNG" + b"0" * 200_000, "too_large"),
        "gone.png": (None, "missing_file"),
        "../secret.png": (None, "bad_uri"),
        "link.png": (None, "bad_uri"),
        "/etc/hostname": (None, "bad_uri"),
        "s3://bucket/x.png": (None, "bad_uri"),
    }
    expected = {}
    for number, (name, (data, why)) in enumerate(bad.items(), start=2):
        if data is not None:
            (media / name).write_bytes(data)
        rows.append(row(number, name if name[0] == "/" or ":" in name else f"media/../{name}" if ".." in name else f"media/{name}"))
        expected[rows[-1]["key"]] = why
    rows += [
        row(20, "media/0.png", text=" "),
        row(21, "media/0.png", modality="audio"),
        row(22, "media/0.png", text="caption 0"),
        row(23, "http://127.0.0.1:9/x.png"),
    ]
    expected |= {"pets-000020": "empty_text", "pets-000021": "not_media", "pets-000023": "forbidden_address"}
    write_manifest(tmp_path, rows)
    result = build(tmp_path)
    found = ledger(tmp_path)
    assert {key: why for key, (status, why) in found.items() if status != "written"} == expected and set(expected.values()) <= set(REASONS)
    assert len(found) == len(rows) == result["written"] + result["quarantined"] + result["failed"]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "stores").rglob("quarantine/*")}
    assert set(kept) == {key for key, (status, _) in found.items() if status == "quarantined"} and kept["pets-000002"] == png(1)[:300]
    shards = ShardSet(tmp_path / "shards", tmp_path / "stores")
    assert result["duplicates"] == 1 and "pets-000022" not in shards.keys() and "pets-000022" in shards.keys(duplicates=True)


def test_a_record_that_does_not_fit_is_a_ledger_row_and_nothing_of_it_is_fetched(tmp_path):
    rows = pictures(tmp_path, 3)
    rows[1] |= {"media": [], "texts": [], "conversations": json.dumps({"refused": "ends_with_question", "detail": "mine.json, record 1: add the answer"})}
    write_manifest(tmp_path, rows)
    result = build(tmp_path)
    assert ledger(tmp_path)["pets-000001"] == ("quarantined", "ends_with_question") and result["reasons"] == {"ends_with_question": 1}
    assert rows_left_out("shards", tmp_path / "shards", result)[0] == (
        "left out (shards): 1 of 3 rows (ends_with_question 1), the first is pets-000001: mine.json, record 1: add the answer"
    )


@pytest.mark.parametrize(("allowed", "lost"), [(0.5, 2), (0.5, 3), (0.0, 1), (0.75, 3), (1.0, 4)])
def test_a_step_that_lost_more_than_the_allowed_share_fails_with_the_reasons(tmp_path, allowed, lost):
    rows = pictures(tmp_path, 4)
    for row_of in rows[:lost]:
        row_of["media"][0]["uri"] = "media/gone.png"
    write_manifest(tmp_path, rows)
    config = replace(CONFIG, max_lost=allowed)
    if lost <= allowed * 4:
        assert build(tmp_path, config=config)["failed"] == lost
        return
    problem = rf"^shards: {lost} of 4 rows cannot be used \(missing_file {lost}\), more than max_lost {allowed:g} of them; the first is pets-000000"
    with pytest.raises(AnyloomError, match=problem):
        build(tmp_path, config=config)
    assert build(tmp_path, "again", config=replace(CONFIG, max_lost=1.0))["failed"] == lost  # what was built is still there


def test_second_run_builds_nothing_and_appended_rows_add_shards_only(tmp_path, monkeypatch):
    rows = write_manifest_of(tmp_path, 8)
    build(tmp_path)
    before = pinned(tmp_path, "shards")
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.shards.build, "_write_shard", lambda task: pytest.fail("built again"))
        build(tmp_path, "again")
    assert tree(tmp_path, "shards")["shards"] == tree(tmp_path, "again")["again"]
    more = pictures(tmp_path, 11)
    write_manifest(tmp_path, more)
    build(tmp_path, "grown")
    assert pinned(tmp_path, "grown")[:2] == before and len(pinned(tmp_path, "grown")) == 3
    (tmp_path / "lists" / rows[5]["media"][0]["uri"]).write_bytes(png(99))
    build(tmp_path, "changed")
    assert [a == b for a, b in zip(pinned(tmp_path, "grown"), pinned(tmp_path, "changed"), strict=True)] == [True, False, True]


def test_failure_in_the_middle_then_again_gives_the_same_bytes(tmp_path, monkeypatch):
    for name in ("calm", "killed"):
        write_manifest_of(tmp_path / name, 10)
    build(tmp_path / "calm")
    original, calls = pipelines.shards.build._add_sample, []

    def break_at_7(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipelines.shards.build, "_add_sample", break_at_7)
        build(tmp_path / "killed")
    (tmp_path / "killed" / "shards").rmdir()
    assert len(list((tmp_path / "killed" / "stores").rglob("record.json"))) == 1
    build(tmp_path / "killed")
    assert tree(tmp_path / "calm", "shards") == tree(tmp_path / "killed", "shards")


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    write_manifest_of(tmp_path, 4)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipelines.shards.build.TarWriter, "_write", full)
    with pytest.raises(AnyloomError, match=r"MB are needed, .* MB are free") as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value) and not list((tmp_path / "stores").rglob("*.*"))


def test_uncommitted_or_other_entries_are_refused(tmp_path):
    write_manifest_of(tmp_path, 4)
    build(tmp_path)
    record = tmp_path / "stores" / pinned(tmp_path, "shards")[0] / "record.json"
    text = record.read_text()
    record.write_text(json.dumps({**json.loads(text), "digest": "0" * 64}))
    with pytest.raises(AnyloomError, match="does not have its own checksum"):
        ShardSet(tmp_path / "shards", tmp_path / "stores")
    record.write_text(json.dumps({"digest": "0" * 64}))  # a whole record, of other bytes
    with pytest.raises(AnyloomError, match="other bytes"):
        ShardSet(tmp_path / "shards", tmp_path / "stores")
    record.unlink()
    with pytest.raises(AnyloomError, match="never committed"):
        ShardSet(tmp_path / "shards", tmp_path / "stores")


def whole_or_error(read, keys):
    """key -> what a reader hands out, or "refused"."""
    found = {}
    for key in keys:
        try:
            found[key] = read(key)
        except AnyloomError as error:
            assert "shard.tar" in str(error) and "--force shards" in str(error) and "\n" not in str(error)
            found[key] = "refused"
    return found


def test_damaged_bytes_are_never_handed_out(tmp_path):
    """Wherever a bit of a tar flips or the tar ends: a reader gives what was indexed, or refuses."""
    rows = pictures(tmp_path, 4)
    rows[0]["conversations"] = json.dumps([{"from": "human", "value": "was ist das für ein „Bild“?"}, {"from": "gpt", "value": "ein Bär"}])
    rows[1]["texts"], rows[2]["media"][0]["start_s"] = ["eins", "zwei, „drei“"], 0.25
    write_manifest(tmp_path, rows)
    build(tmp_path)
    (tmp_path / "artifacts" / "shards").mkdir(parents=True)
    place = (tmp_path / "shards").rename(tmp_path / "artifacts" / "shards" / "0123"), tmp_path / "stores"
    calm = ShardSet(*place)
    keys = calm.keys()
    media, metas = {key: calm.media(key) for key in keys}, {key: calm.meta(key) for key in keys}
    tar = tmp_path / "stores" / json.loads((place[0] / "generation.json").read_text())["entries"][0]["path"] / "shard.tar"
    data = tar.read_bytes()
    places, rng = [], random.Random(3)
    for i in range(len(keys)):  # of each member some, and then anywhere
        for offset, size in (("media_offset", "media_bytes"), ("json_offset", "json_bytes")):
            start = calm.index.column(offset)[i].as_py()
            places += [rng.randrange(start, start + calm.index.column(size)[i].as_py()) for _ in range(12)]
    refused = 0
    for at in [*places, *(rng.randrange(len(data)) for _ in range(40))]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        tar.write_bytes(flipped)
        shards = ShardSet(*place)
        for found, wanted in ((whole_or_error(shards.media, keys), media), (whole_or_error(shards.meta, keys), metas)):
            differing = [key for key in keys if found[key] != wanted[key]]
            assert all(found[key] == "refused" for key in differing if not only_unchecked(found[key], wanted[key]))
            refused += len(differing)
    assert refused > 0.7 * len(places)
    for size in (0, 700, len(data) // 2):
        tar.write_bytes(data[:size])
        shards = ShardSet(*place)
        found = whole_or_error(shards.media, keys)
        assert all(found[key] in ("refused", media[key]) for key in keys) and "refused" in found.values()


def only_unchecked(found, wanted):
    """True for a key.json that differs in what describes a sample and is neither trained on nor scored."""
    if not isinstance(found, dict):
        return False
    said = ("key", "source", "split", "modality", "texts", "conversations")
    return all(found[name] == wanted[name] for name in said)


@pytest.mark.parametrize("name", ["shard.tar", "index.parquet", "ledger.parquet", "record.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_forced_build_makes_damaged_shards_again(tmp_path, name, harm):
    write_manifest_of(tmp_path, 10)
    build(tmp_path)
    before = tree(tmp_path, "shards")
    path = tmp_path / "stores" / pinned(tmp_path, "shards")[1] / name
    if harm == "flip":
        flip(path, len(path.read_bytes()) // 2, 3)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    if name != "shard.tar" and (name, harm) != ("record.json", "gone"):
        with pytest.raises(AnyloomError, match=r"damaged|cannot be read"):
            build(tmp_path, "again")
    build(tmp_path, "forced", force=True)
    assert tree(tmp_path, "forced")["forced"] == before["shards"] and tree(tmp_path, "shards") == before


def test_span_beyond_the_end_is_quarantined(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.wav").write_bytes(wav(0, 0.5))
    write_manifest(tmp_path, [row(0, "a.wav", modality="audio", start_s=0.1, end_s=0.3), row(1, "a.wav", modality="audio", start_s=7.0, end_s=17.0)])
    build(tmp_path)
    assert ledger(tmp_path) == {"pets-000000": ("written", ""), "pets-000001": ("quarantined", "decode")}


# ---- fetching

HEAD = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n"
PAGES = {
    "/ok": (HEAD % (b"200 OK", 5), b"bytes"),
    "/empty": (HEAD % (b"200 OK", 0),),
    "/404": (HEAD % (b"404 None", 1), b"x"),
    "/500": (HEAD % (b"500 Broken", 1), b"x"),
    "/short": (HEAD % (b"200 OK", 1000),),
    "/slow": (HEAD % (b"200 OK", 1000), *(b"x", 0.1) * 20),
    **{
        page: (b"HTTP/1.1 302 Found\r\nLocation: %s\r\n\r\n" % place,)
        for page, place in {"/go": b"/ok", "/go-file": b"file:///etc/passwd", "/go-loop": b"/go-loop"}.items()
    },
}


@pytest.fixture
def server():
    with CannedServer(PAGES) as made:
        yield made


def test_http_reasons(server, tmp_path):
    policy = FetchPolicy(allow_private=True, timeout_s=0.5, attempts=2, backoff_s=0.01, max_bytes=1000)
    assert fetch(f"{server.url}/ok", tmp_path, policy) == fetch(f"{server.url}/go", tmp_path, policy) == b"bytes"
    reasons = {}
    for page in ("/empty", "/404", "/500", "/slow", "/short", "/go-loop", "/go-file"):
        with pytest.raises(FetchError) as caught:
            fetch(server.url + page, tmp_path, policy)
        reasons[page] = (caught.value.reason, caught.value.attempts)
    assert reasons == {
        "/empty": ("empty_file", 1),
        "/404": ("http_4xx", 1),
        "/500": ("http_5xx", 2),
        "/slow": ("timeout", 2),
        "/short": ("truncated", 2),
        "/go-loop": ("bad_uri", 1),
        "/go-file": ("bad_uri", 1),
    }
    with pytest.raises(FetchError, match="too_large"):
        fetch(f"{server.url}/ok", tmp_path, FetchPolicy(allow_private=True, max_bytes=3))


def test_private_addresses_are_not_reached(server, tmp_path):
    for uri in (f"{server.url}/ok", server.url.replace("127.0.0.1", "localhost") + "/ok", "http://[::ffff:127.0.0.1]/", "http://2130706433/"):
        with pytest.raises(FetchError, match=r"forbidden_address|dns"):
            fetch(uri, tmp_path, FetchPolicy(attempts=1))
    assert server.paths == []
    for address in ("10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "0.0.0.0"):
        assert not is_public(address), address
    assert is_public("93.184.216.34") and is_public("2606:4700::1111")


def test_the_name_cannot_be_rebound(server, tmp_path, monkeypatch):
    """The address that was checked is the one that is connected to, even when the name answers differently the second time."""
    import socket

    answers = iter(["93.184.216.34", "127.0.0.1"])
    reached = []

    def connect(address, timeout=None):
        reached.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))])
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(FetchError):
        fetch("http://rebind.example/x", tmp_path, FetchPolicy(attempts=1))
    assert reached == ["93.184.216.34"]


@pytest.mark.parametrize("name", ["media/a\nb.png", "a\x1b[2Jb.png", "a\u202eb.png", "../" * 20_000 + "x.png", "\u2028.png", "a\x00b"])
def test_a_row_that_is_left_out_is_one_line_whatever_its_address_holds(tmp_path, name):
    rows = pictures(tmp_path, 2)
    rows[1]["media"][0]["uri"] = name
    write_manifest(tmp_path, rows)
    assert build(tmp_path)["written"] == 1
    detail = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()[1]["detail"]
    assert detail.isprintable() and 10 < len(detail) <= 501
