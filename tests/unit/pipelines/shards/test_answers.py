"""Answers: what a server sends, whole, cut anywhere or no answer at all, is the bytes that it means or one reason, tried again only where that may help."""

from __future__ import annotations

import gzip

import pytest
from http_servers import ANY, RESET, CannedServer

from mmcore.stores.shards import REASONS
from pipelines.shards.download import FetchPolicy
from pipelines.shards.errors import FetchError
from pipelines.shards.fetch import fetch_counted, may_pass

POLICY = FetchPolicy(allow_private=True, attempts=2, backoff_s=0.01, timeout_s=5.0, max_bytes=1000)
OK, LENGTH, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
WHOLE = OK + LENGTH + b"\r\nbytes"
IN_CHUNKS = OK + CHUNKED + b"\r\n3;a=b\r\nbyt\r\n002\r\nes\r\n0\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
AGAIN, ONCE = 2, 1
"""How often it is tried."""


@pytest.fixture(scope="module")
def server():
    with CannedServer() as made:
        yield made


def outcome(server, *pieces, policy=POLICY):
    """(bytes or reason, tries, detail) of one answer."""
    server.answers = {ANY: pieces}
    try:
        return (*fetch_counted(f"{server.url}/x", None, policy), "")
    except FetchError as error:
        assert error.reason in REASONS and error.detail.isprintable()
        return error.reason, error.attempts, error.detail


WHOLE_ANSWERS = {
    "with a length": WHOLE,
    "in chunks": IN_CHUNKS,
    "in chunks, with trailers": IN_CHUNKS[:-2] + b"X-Sum: 1\r\n\r\n",
    "in chunks, cut behind the last": IN_CHUNKS[:-2],
    "in chunks, a length beside": IN_CHUNKS.replace(CHUNKED, CHUNKED + b"Content-Length: 2\r\n"),
    "chunked and spaces behind it": IN_CHUNKS.replace(b"chunked\r", b"Chunked \t\r"),
    "until it is closed": OK + b"\r\nbytes",
    "of HTTP/1.0": b"HTTP/1.0 200\r\n\r\nbytes",
    "lines end with LF": WHOLE.replace(b"\r", b""),
    "a body longer than its length": WHOLE + b" and more",
    "the same length twice": OK + LENGTH * 2 + b"\r\nbytes",
    "after 103": EARLY + WHOLE,
    "after 100, 103 and 103": b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY * 2 + IN_CHUNKS,
    "a header that goes on": OK + b"X-Long: a\r\n b\r\n\tc\r\n" + LENGTH + b"\r\nbytes",
    "100 headers": OK + b"X: 1\r\n" * 99 + LENGTH + b"\r\nbytes",
}


@pytest.mark.parametrize("answer", WHOLE_ANSWERS.values(), ids=WHOLE_ANSWERS)
def test_a_whole_answer_is_its_bytes(server, answer):
    assert outcome(server, answer) == (b"bytes", ONCE, "")


OTHERS = {
    "nothing at all": ((), "truncated", AGAIN, "before the headers"),
    "a reset at once": ((RESET,), "truncated", AGAIN, "the connection was lost"),
    "cut in the status line": ((b"HTTP/1.1 20",), "truncated", AGAIN, "before the headers"),
    "cut in its first letters": ((b"HT",), "truncated", AGAIN, "before the headers"),
    "cut behind the status line": ((OK,), "truncated", AGAIN, "in the headers of HTTP 200"),
    "cut in a header": ((OK + b"Content-Le",), "truncated", AGAIN, "in the headers of HTTP 200"),
    "cut behind a header": ((OK + LENGTH,), "truncated", AGAIN, "in the headers of HTTP 200"),
    "cut inside the last line end of the headers": ((OK + LENGTH + b"\r",), "truncated", AGAIN, "in the headers of HTTP 200"),
    "a reset in the headers": ((OK + LENGTH, RESET), "truncated", AGAIN, "lost"),
    "cut in the headers of 404": ((b"HTTP/1.1 404 None\r\nContent-Le",), "truncated", AGAIN, "in the headers of HTTP 404"),
    "cut in the headers of a redirect": ((b"HTTP/1.1 302 Found\r\nLocation: /y\r\n",), "truncated", AGAIN, "in the headers of HTTP 302"),
    "cut between headers and body": ((OK + LENGTH + b"\r\n",), "truncated", AGAIN, "0 of 5 bytes"),
    "a body shorter than its length": ((WHOLE[:-1],), "truncated", AGAIN, "4 of 5 bytes"),
    "a reset in the body": ((WHOLE[:-1], RESET), "truncated", AGAIN, "lost"),
    "a reset in a body without a length": ((OK + b"\r\nbytes", RESET), "truncated", AGAIN, "lost"),
    "cut before the first chunk": ((OK + CHUNKED + b"\r\n",), "truncated", AGAIN, "after 0 bytes"),
    "cut in the size of a chunk": ((OK + CHUNKED + b"\r\n3\r\nbyt\r\n1",), "truncated", AGAIN, "before the size of a chunk had come, after 3 bytes"),
    "cut in the size of a chunk, behind a zero": ((OK + CHUNKED + b"\r\n3\r\nbyt\r\n00",), "truncated", AGAIN, "before the size of a chunk had come"),
    "cut inside the line end of a chunk's size": ((OK + CHUNKED + b"\r\n3\r\nbyt\r\n0\r",), "truncated", AGAIN, "before the size of a chunk had come"),
    "cut in a chunk": ((OK + CHUNKED + b"\r\n5\r\nbyt",), "truncated", AGAIN, "in a chunk, after 3 bytes"),
    "cut behind a chunk": ((OK + CHUNKED + b"\r\n3\r\nbyt",), "truncated", AGAIN, "in a chunk, after 3 bytes"),
    "103 and nothing more": ((EARLY,), "truncated", AGAIN, "after HTTP 103"),
    "103 without headers and nothing more": ((b"HTTP/1.1 103 Early Hints\r\n\r\n",), "truncated", AGAIN, "after HTTP 103"),
    "103, cut": ((EARLY[:-2],), "truncated", AGAIN, "in the headers of HTTP 103"),
    "103 with a body": ((b"HTTP/1.1 103 Early Hints\r\n" + LENGTH + b"\r\nbytes",), "bad_uri", ONCE, "no answer of HTTP/1"),
    "100 and nothing more": ((b"HTTP/1.1 100 Continue\r\n\r\n",), "truncated", AGAIN, "after HTTP 100"),
    "102 and nothing more": ((b"HTTP/1.1 102 Processing\r\n\r\n",), "truncated", AGAIN, "after HTTP 102"),
    "199 and a reset": ((b"HTTP/1.1 199 Odd\r\n\r\n", RESET), "truncated", AGAIN, "lost"),
    "101 and nothing more": ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",), "truncated", AGAIN, "after HTTP 101"),
    "101 and another protocol": ((b"HTTP/1.1 101 Switching Protocols\r\n\r\nPRI * HTTP/2.0\r\n\r\n",), "bad_uri", ONCE, "no answer of HTTP/1"),
    "103 for ever": ((EARLY * 500,), "bad_uri", ONCE, "HTTP 103"),
    "103 and then 404": ((EARLY + b"HTTP/1.1 404 None\r\n\r\n",), "http_4xx", ONCE, "HTTP 404"),
    "204": ((b"HTTP/1.1 204 No Content\r\n\r\n",), "http_other", ONCE, "HTTP 204"),
    "206": ((b"HTTP/1.1 206 Partial\r\n" + LENGTH + b"\r\nbytes",), "http_other", ONCE, "HTTP 206"),
    "302 without a place": ((b"HTTP/1.1 302 Found\r\n" + LENGTH + b"\r\nbytes",), "http_other", ONCE, "HTTP 302"),
    "304": ((b"HTTP/1.1 304 Not Modified\r\n\r\n",), "http_other", ONCE, "HTTP 304"),
    "404 without a body": ((b"HTTP/1.1 404 None\r\n\r\n",), "http_4xx", ONCE, "HTTP 404"),
    "429": ((b"HTTP/1.1 429 Slow\r\nRetry-After: 0\r\n\r\n",), "http_4xx", AGAIN, "HTTP 429"),
    "599": ((b"HTTP/1.1 599 X\r\n\r\n",), "http_5xx", AGAIN, "HTTP 599"),
    **{f"status {n}": ((b"HTTP/1.1 %s X\r\n" % n.encode() + LENGTH + b"\r\nbytes",), "http_5xx", AGAIN, f"HTTP {int(n)}") for n in "000 099 600 999".split()},
    **{
        f"status {word[:9] or 'nothing'}": ((b"HTTP/1.1 %s\r\n" % word.encode() + LENGTH + b"\r\nbytes",), "bad_uri", ONCE, "no answer of HTTP/1")
        for word in ("", "OK", "2OO OK", "-200 X", "200.5 X", "+200 X", "1e2", "7 X", "99 X", "0200 OK", "1000 X", "9" * 5000)
    },
    "HTTP/0.9": ((b"<html>not found</html>",), "bad_uri", ONCE, "no answer of HTTP/1"),
    "HTTP/0.9, in lines": ((b"<html>\nnot found\n</html>\n",), "bad_uri", ONCE, "no answer of HTTP/1"),
    "HTTP/0.9, an image": ((b"\x89PNG\r\n\x1a\n" + bytes(90),), "bad_uri", ONCE, "no answer of HTTP/1"),
    "a blank line": ((b"\r\n\r\n",), "bad_uri", ONCE, "no answer of HTTP/1"),
    "another protocol": ((b"SSH-2.0-x\r\n",), "bad_uri", ONCE, "no answer of HTTP/1"),
    "HTTP/2": ((WHOLE.replace(b"/1.1", b"/2"),), "bad_uri", ONCE, "no answer of HTTP/1"),
    "a status line without an end": ((b"HTTP/1.1 200 " + b"x" * 70_000,), "bad_uri", ONCE, "a line of more than"),
    "a header without an end": ((OK + b"X: " + b"x" * 70_000,), "bad_uri", ONCE, "a line of more than"),
    "101 headers": ((OK + b"X: 1\r\n" * 101 + b"\r\nbytes",), "bad_uri", ONCE, "more than 100 header lines"),
    "a header that is none": ((OK + b"no header\r\n" + LENGTH + b"\r\nbytes",), "bad_uri", ONCE, "a header line that is none"),
    "a first header that goes on": ((OK + b" : \r\n" + LENGTH + b"\r\nbytes",), "bad_uri", ONCE, "a header line that is none"),
    "a chunk without a size": ((OK + CHUNKED + b"\r\nxyz\r\nbytes\r\n0\r\n\r\n",), "bad_uri", ONCE, "a chunk without a size"),
    "a chunk of a negative size": ((OK + CHUNKED + b"\r\n-1\r\nbytes\r\n0\r\n\r\n",), "bad_uri", ONCE, "a chunk without a size"),
    "a chunk of a size in Python's letters": ((OK + CHUNKED + b"\r\n0x5\r\nbytes\r\n0\r\n\r\n",), "bad_uri", ONCE, "a chunk without a size"),
    "a chunk longer than its size": ((OK + CHUNKED + b"\r\n3\r\nbytes\r\n0\r\n\r\n",), "bad_uri", ONCE, "a chunk that is longer than its size"),
    "a chunk of a huge size": ((OK + CHUNKED + b"\r\n" + b"7" * 300 + b"\r\nbytes",), "too_large", ONCE, "more than 1000"),
    "chunks of many bytes": ((OK + CHUNKED + b"\r\n" + b"190\r\n%s\r\n" % bytes(400) * 3 + b"0\r\n\r\n",), "too_large", ONCE, "more than 1000"),
    "a huge length": ((OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nbytes",), "too_large", ONCE, "the limit is 1000"),
    "a negative length": ((OK + b"Content-Length: -5\r\n\r\nbytes",), "bad_uri", ONCE, "a Content-Length that is no number"),
    "two lengths": ((OK + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nbytes",), "bad_uri", ONCE, "several lengths"),
    "0 bytes until it is closed": ((OK + b"\r\n",), "empty_file", ONCE, "0 bytes"),
    "0 bytes, says the length": ((OK + b"Content-Length: 0\r\n\r\n",), "empty_file", ONCE, "0 bytes"),
    "0 bytes in chunks": ((OK + CHUNKED + b"\r\n0\r\n\r\n",), "empty_file", ONCE, "0 bytes"),
}


@pytest.mark.parametrize("pieces, reason, tries, words", OTHERS.values(), ids=OTHERS)
def test_what_is_no_whole_answer_has_its_reason(server, pieces, reason, tries, words):
    found, tried, detail = outcome(server, *pieces)
    assert (found, tried) == (reason, tries) and words in detail, (found, tried, detail)


CUT = {
    "a length": (WHOLE, len(WHOLE)),
    "chunks": (IN_CHUNKS, len(IN_CHUNKS) - 2),
    "after 103": (EARLY + WHOLE, len(EARLY + WHOLE)),
    "gzip": (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"bytes"), None),
}


@pytest.mark.parametrize("answer, whole", CUT.values(), ids=CUT)
@pytest.mark.parametrize("end", [(), (RESET,)], ids=["closed", "reset"])
def test_an_answer_cut_anywhere_is_truncated_and_tried_again(server, answer, whole, end):
    """whole: bytes from which on it is; None: all of them, or nothing of what stands behind its headers."""
    once = FetchPolicy(allow_private=True, attempts=1, timeout_s=5.0)
    bare = answer.index(b"\r\n\r\n") + 4 if whole is None and not end else -1
    for size in range(len(answer) if whole is None else whole):
        reason, _, detail = outcome(server, answer[:size], *end, policy=once)
        assert reason == ("empty_file" if size == bare else "truncated"), (size, reason, detail)
        assert may_pass(reason, detail) or size == bare


def test_an_answer_that_is_cut_once_is_had_at_the_second_try(server):
    def first_cut():
        yield (EARLY + OK + b"Content-Le",)
        while True:
            yield (EARLY + WHOLE,)

    class Second(CannedServer):
        def _answer(self, connection):
            self.answers = {ANY: next(answers)}
            super()._answer(connection)

    answers = first_cut()
    with Second() as moody:
        assert fetch_counted(f"{moody.url}/x", None, POLICY) == (b"bytes", AGAIN) and moody.paths == ["/x", "/x"]
