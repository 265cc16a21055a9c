"""Fetch: no address of a special range is reached, and whatever a list or a server says, a row is bytes or a FetchError."""

from __future__ import annotations

import gzip
import os
import random
import socket
import zlib

import pytest
from http_servers import ANY, Asked, CannedServer, HttpServer, Said

import pipelines.shards.fetch
from mmcore.stores.shards import REASONS
from pipelines.shards.addresses import is_public
from pipelines.shards.download import FetchPolicy
from pipelines.shards.errors import FetchError
from pipelines.shards.fetch import fetch, fetch_counted, read_local

SPECIAL = """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.170
192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.88.99.255 192.168.1.1 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1
239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:192.88.99.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b::c058:6301 64:ff9b:1::1 100::1 100:0:0:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:1::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1
2002:7f00:1:: 2002:c0a8:101:: 2002:c058:6301:: 2620:4f:8000::1 3fff::1 5f00::1 4000::1 fc00::1 fd00::1 fe80::1 fe80::1%eth0 febf::1 fec0::1 feff::1
ff02::1 2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:10.0.0.1"""
PUBLIC = "93.184.216.34 8.8.8.8 192.88.98.1 192.88.100.1 2606:4700::1111 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1 2a00:1450::1"


@pytest.mark.parametrize("address", SPECIAL.split())
def test_no_special_range_is_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_other_addresses_are_public(address):
    assert is_public(address)


def test_a_row_that_names_no_regular_file_has_a_reason(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "to_folder").symlink_to("folder")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)  # the path of a socket may have 107 bytes
        try:
            listening.bind("socket")
        finally:
            os.chdir(here)
        for uri in ("folder", "folder/", ".", "loop", "loop/x", "a", "to_folder", "fifo", "socket", "file/x", "x" * 300, "y/" * 3000, "ä" * 200, "\ud800.png"):
            with pytest.raises(FetchError) as caught:
                read_local(uri, tmp_path, 1000)
            assert caught.value.reason in ("missing_file", "bad_uri") and len(caught.value.detail) < 400 + len(uri) and "\n" not in caught.value.detail, uri


@pytest.fixture
def canned():
    with CannedServer() as server:
        yield server


ONCE = FetchPolicy(allow_private=True, attempts=1, timeout_s=1.0, max_bytes=100_000)
LOCATIONS = [
    *("http://[::1", "http://[", "http://a:99999/", "http://a:x/", "//", "http://", "http:///x", "http://\xe9\xff/", "\xff\xfe", "http://a b/", "http://%zz/"),
    *(
        "ftp://a/",
        "javascript:x",
        "http://u:p@127.0.0.1/",
        "http://.a/",
        "http://" + "a" * 300 + "/",
        "http://a..b/",
        "http://\u2100/",
        "?",
        "#",
        "http://a\x00b/",
    ),
]


@pytest.mark.parametrize("location", LOCATIONS, ids=range(len(LOCATIONS)))
def test_a_redirect_to_nowhere_is_a_fetch_error(canned, tmp_path, location):
    canned.answers = {ANY: (b"HTTP/1.1 302 Found\r\nLocation: " + location.encode("latin-1", "replace") + b"\r\nContent-Length: 0\r\n\r\n",)}
    with pytest.raises(FetchError) as caught:
        fetch(f"{canned.url}/x", tmp_path, ONCE)
    assert caught.value.reason in REASONS


def test_mutated_answers_are_bytes_or_a_fetch_error(canned, tmp_path):
    seeds = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5\r\n\r\nbytes",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbytes\r\n0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1]:80/a?b#c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(b"bytes"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbytes",
    ]
    rng = random.Random(5)
    for number in range(1200):
        answer = bytearray(seeds[number % len(seeds)])
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(answer))
            change = rng.randrange(3)
            if change == 0:
                answer[at] = rng.choice(b"\x00\r\n:;=[]%\xff -9")
            elif change == 1:
                del answer[at : at + rng.randrange(1, 6)]
            else:
                answer[at:at] = rng.choice([b"\xe9", b"\r\n", b"[", b"=?utf-8?b?//8=?=", b"9" * 30, b"\x00", b";", b"-1"])
            answer = answer or bytearray(b"x")
        canned.answers = {ANY: (bytes(answer),)}
        try:
            assert fetch(f"{canned.url}/x", tmp_path, ONCE)
        except FetchError as error:
            assert error.reason in REASONS and "\n" not in error.detail


FRAMES = {
    b"Transfer-Encoding: gzip, chunked": b"5\r\nbytes\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked": b"5\r\nbytes\r\n0\r\n\r\n",
    b"no header\r\nTransfer-Encoding: chunked": b"5\r\nbytes\r\n0\r\n\r\n",
    b"Content-Length: 3\r\nContent-Length: 5": b"bytes",
    b"Content-Length: 3, 5": b"bytes",
}


@pytest.mark.parametrize("lines", FRAMES, ids=range(len(FRAMES)))
def test_other_bytes_than_the_server_means_are_never_taken_for_the_body(canned, tmp_path, lines):
    canned.answers = {ANY: (b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\n" + FRAMES[lines],)}
    with pytest.raises(FetchError, match="bad_uri: the server's answer has"):
        fetch(f"{canned.url}/x", tmp_path, ONCE)


def odd_answer(asked: Asked) -> Said:
    """What real servers answer."""
    path = asked.path
    zipped = {"/gzip": gzip.compress(b"bytes"), "/two": gzip.compress(b"by") + gzip.compress(b"tes"), "/bomb": gzip.compress(bytes(10**6))}
    zipped |= {"/cut": gzip.compress(b"bytes")[:-9], "/plain": b"bytes"}
    flat = {"/zlib": zlib.compress(b"bytes"), "/raw": zlib.compress(b"bytes")[2:-4]}
    if path in zipped or path in flat:
        return Said((zipped | flat)[path], headers={"Content-Encoding": "gzip" if path in zipped else "deflate"})
    if path == "/redirect":
        return Said(status=302, headers={"Location": "/sp ace/caf\u00e9.png".encode().decode("latin-1")})
    if path == "/br":
        return Said(b"x", headers={"Content-Encoding": "br"})
    whole = path in ("/sp%20ace/caf%C3%A9.png", "/a%20b.png?q=%C3%BC%20x&y=%41")
    return Said(b"bytes") if whole else Said(b"none", 404)


class Odd(HttpServer):
    """The same, and /once-NNN, which is there from the second time on."""

    def __init__(self):
        super().__init__(self.answer)

    def answer(self, asked: Asked) -> Said:
        if not asked.path.startswith("/once-"):
            return odd_answer(asked)
        return Said(b"later", int(asked.path[-3:]), {"Retry-After": "0"}) if self.paths.count(asked.path) == 1 else Said(b"bytes")


@pytest.fixture
def odd():
    with Odd() as server:
        yield server


def test_what_may_pass_is_tried_again(odd, tmp_path):
    policy = FetchPolicy(allow_private=True, attempts=2, backoff_s=0.01)
    for status in (408, 425, 429, 500, 502, 503, 504):
        assert fetch_counted(f"{odd.url}/once-{status}", tmp_path, policy) == (b"bytes", 2)
    for status in (400, 401, 403, 404, 410):
        with pytest.raises(FetchError) as caught:
            fetch(f"{odd.url}/once-{status}", tmp_path, policy)
        assert caught.value.attempts == 1


def test_the_wait_a_server_asks_for_is_kept_within_limits(canned, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(pipelines.shards.fetch.time, "sleep", waits.append)
    for asked in ("3", "999999", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 9015 07:28:00 GMT", "Wed, 99 Oct", "\xe9"):
        canned.answers = {ANY: (f"HTTP/1.1 429 Slow\r\nRetry-After: {asked}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"),)}
        with pytest.raises(FetchError, match="HTTP 429"):
            fetch(f"{canned.url}/x", tmp_path, FetchPolicy(allow_private=True, attempts=2))
    assert waits == [3.0, 20.0, 0.5, 0.5, 20.0, 0.5, 0.5]


def test_content_encodings_are_undone_below_the_size_limit(odd, tmp_path):
    policy = FetchPolicy(allow_private=True, attempts=1, max_bytes=1000)
    root = odd.url
    assert {fetch(f"{root}/{path}", tmp_path, policy) for path in ("gzip", "two", "zlib", "raw")} == {b"bytes"}
    for path, reason in (("bomb", "too_large"), ("cut", "truncated"), ("plain", "decode"), ("br", "not_media")):
        with pytest.raises(FetchError, match=reason):
            fetch(f"{root}/{path}", tmp_path, policy)


def test_spaces_and_letters_beyond_ascii_are_escaped(odd, tmp_path):
    policy = FetchPolicy(allow_private=True, attempts=1)
    root = odd.url
    for path in ("sp ace/café.png", "sp%20ace/caf%C3%A9.png", "redirect", "a b.png?q=ü x&y=%41", "sp ace/café.png#part"):
        assert fetch(f"{root}/{path}", tmp_path, policy) == b"bytes", path


@pytest.mark.parametrize("host", ["bücher.invalid", "xn--bcher-kva.invalid", "例え.テスト.invalid", "BÜCHER.invalid:8080"])
def test_a_host_beyond_ascii_is_looked_up_like_any_other(tmp_path, host):
    with pytest.raises(FetchError) as caught:
        fetch(f"http://{host}/a b.png", tmp_path, FetchPolicy(attempts=1, timeout_s=5))
    assert caught.value.reason in ("dns", "timeout")


def test_a_host_beyond_ascii_is_asked_for_by_its_ascii_name(odd, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.shards.download.resolve", lambda host, port, deadline: ["127.0.0.1"])
    assert fetch(f"http://bücher.invalid:{odd.port}/sp ace/café.png", tmp_path, FetchPolicy(allow_private=True, attempts=1)) == b"bytes"
    assert [asked.headers["Host"] for asked in odd.asked] == [f"xn--bcher-kva.invalid:{odd.port}"]


@pytest.mark.parametrize("uri", ["http://[::1]x/", "http://x[::1]/", "http://[::1]:80x/", "http://[::1]]/", "http://[::1]@a/", "http://a]/"])
def test_brackets_around_no_host_are_no_address(tmp_path, uri):
    with pytest.raises(FetchError) as caught:
        fetch(uri, tmp_path, ONCE)
    assert caught.value.reason == "bad_uri"
