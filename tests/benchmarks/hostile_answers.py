"""Classes of fuzz_http: answers to one request."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable

from http_case import CHUNKED, Case, Made, chunked, head, some_bytes, start, whole
from http_servers import RESET

SLOW_S = 0.5
GZIP, DEFLATE = b"Content-Encoding: gzip", b"Content-Encoding: deflate"


def plain(*lines: bytes) -> Callable[[random.Random], Made]:
    """A sound answer with more headers."""
    return lambda rng: whole(some_bytes(rng), *lines)


def with_lines(make: Callable[[random.Random], tuple[bytes, ...]]) -> Callable[[random.Random], Made]:
    """A sound answer with more headers that are drawn."""
    return lambda rng: whole(some_bytes(rng), *make(rng))


def status(*codes: int | bytes) -> Callable[[random.Random], Made]:
    """An answer with one of these statuses."""

    def make(rng: random.Random) -> Made:
        code = rng.choice(codes)
        line = b"%d X" % code if isinstance(code, int) else code
        return start(head(b"Content-Length: 5", status=line), b"bytes")

    return make


def until_closed(rng: random.Random) -> Made:
    body = some_bytes(rng)
    return start(head(version=rng.choice((b"HTTP/1.0", b"HTTP/1.1"))), body, body=body)


def in_chunks(*lines: bytes) -> Callable[[random.Random], Made]:
    """A sound answer in chunks."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        return start(head(*lines, CHUNKED), chunked(rng, body), body=body)

    return make


def bad_chunks(change: Callable[[bytes, random.Random], bytes]) -> Callable[[random.Random], Made]:
    """Chunks that are changed."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        return start(head(CHUNKED), change(chunked(rng, body), rng), body=body)

    return make


def length(of: Callable[[bytes, random.Random], bytes], body_of: Callable[[bytes], bytes] = lambda body: body) -> Callable[[random.Random], Made]:
    """A Content-Length that is drawn. body_of: what the answer then means."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        return start(head(of(body, rng)), body, body=body_of(body))

    return make


def coding(name: bytes, repeated: bool = False) -> Callable[[random.Random], Made]:
    """A body in chunks under a Transfer-Encoding that is spelled otherwise."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        return start(head(b"Transfer-Encoding: " + name, *((CHUNKED,) if repeated else ())), chunked(rng, body), body=body)

    return make


def hidden_header(rng: random.Random) -> Made:
    """A line without a colon before the header that says how the body is sent."""
    body = some_bytes(rng)
    line = rng.choice((b"no header", b"bad name\xe9: 1", b"\xff\xfe", b" : ", b"HTTP/1.1 200 OK", b"na me: 1"))
    return start(head(line, CHUNKED), chunked(rng, body), body=body)


def squeezed(kind: str) -> Callable[[random.Random], Made]:
    """A body in a Content-Encoding."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        data, line = {
            "gzip": (gzip.compress(body), GZIP),
            "members": (gzip.compress(body[:9]) + gzip.compress(body[9:]), GZIP),
            "zlib": (zlib.compress(body), DEFLATE),
            "raw": (zlib.compress(body)[2:-4], DEFLATE),
            "twice": (gzip.compress(gzip.compress(body)), b"Content-Encoding: gzip, x-gzip"),
            "identity": (body, b"Content-Encoding: identity"),
        }[kind]
        made = whole(data, line)
        return Made(made.answers, body)

    return make


def unsqueezed(of: Callable[[bytes, random.Random], bytes], line: bytes = GZIP) -> Callable[[random.Random], Made]:
    """A body that its Content-Encoding does not fit."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        return Made(whole(of(body, rng), line).answers, body)

    return make


def flipped(body: bytes, rng: random.Random) -> bytes:
    """A bit is another in the magic number, the method, or anything behind the head of the only block: its lengths, its bytes, both sums."""
    data = bytearray(gzip.compress(body, 0))
    data[rng.choice((0, 1, 2, *range(11, len(data))))] ^= 1 << rng.randrange(8)
    return bytes(data)


def bomb(rng: random.Random) -> Made:
    """Few bytes that hold many."""
    inside = gzip.compress(bytes(rng.choice((10**6, 3 * 10**7))))
    return rng.choice((whole(inside, GZIP), whole(gzip.compress(inside), b"Content-Encoding: gzip, gzip"), whole(inside * 3, GZIP)))


def drip(*pieces: bytes, every_s: float = 0.05) -> tuple[bytes | float, ...]:
    """Piece after piece, slowly."""
    return tuple(one for piece in pieces for one in (piece, every_s))


def slow(rng: random.Random) -> Made:
    """An answer that does not come to its end in time, wherever it is slow."""
    return rng.choice(
        (
            start(5.0),
            start(b"HTTP/1.1 200 ", *drip(*[b"H"] * 100)),
            start(b"HTTP/1.1 200 OK\r\n", *drip(*[b"X-A: 1\r\n"] * 60)),
            start(head(b"Content-Length: 900"), *drip(*[b"x"] * 100)),
            start(head(), *drip(*[b"x"] * 100)),
            start(head(CHUNKED), *drip(*[b"1\r\nx\r\n"] * 100)),
            start(*drip(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 100)),
        )
    )


def cut_off(rng: random.Random) -> Made:
    """A connection that ends inside the answer."""
    body = some_bytes(rng)
    answer = head(b"Content-Length: %d" % len(body)) + body
    return start(answer[: rng.randrange(len(answer) - 1)], *((RESET,) if rng.random() < 0.5 else ()), body=body)


def too_many(rng: random.Random) -> Made:
    """More bytes than are allowed, said or not."""
    body = bytes(rng.randint(50_001, 400_000))
    return rng.choice((whole(body), start(head(), body), start(head(CHUNKED), chunked(rng, body)), start(head(b"Content-Length: 10000000000"), b"x")))


def of_status(number: int) -> str:
    """The outcome of an answer with a body and any number for its status."""
    if 100 <= number < 200:
        return "bad_uri"  # its body stands where the final answer should
    if number == 200:
        return ""
    return "http_4xx" if 400 <= number < 500 else "http_other" if 200 <= number < 400 else "http_5xx"


def one_change(rng: random.Random) -> Made:
    """A sound answer with one change in a place that says what it then means."""
    body = some_bytes(rng).replace(b"\n", b"_")
    length, one, at = b"Content-Length: %d" % len(body), bytes([rng.randrange(256)]), rng.randrange(len(body))
    digits = bytearray(b"200")
    digits[rng.randrange(3)] = rng.choice(b"0123456789")
    told = b"X-Note: any words"
    place = rng.randrange(9, len(told))
    size = len(body) + rng.choice((-3, -2, -1, 8, 9, 500))
    in_one = b"%s\r\n%s\r\n0\r\n\r\n"
    return rng.choice(
        (
            whole(body[:at] + one + body[at + 1 :]),
            start(head(length), body[:at] + one + body[at:], body=(body[:at] + one + body[at:])[: len(body)]),
            start(head(length), body[:at] + body[at + 1 :], reason="truncated"),
            start(head(length, status=bytes(digits)), body, body=body, reason=of_status(int(digits))),
            start(head(length, status=rng.choice((b"2 00", b"20", b"2000", b"0200"))), body, reason="bad_uri"),
            start(head(length, version=b"HTTP/1.1"[: rng.randrange(8)]), body, reason="bad_uri"),
            start(head(told[:place] + rng.choice((b"\0", b"\xff", b"\t", b";", b"\r", b":")) + told[place:], length), body, body=body),
            start(head(told[:place] + b"\r\n" + told[place:].lstrip(), length), body, reason="bad_uri"),
            start(head(told[:place] + b"\r\n\r\n" + told[place:], length), body, body=told[place:] + b"\r\n" + length + b"\r\n\r\n" + body),
            start(head(told.replace(b":", b""), length), body, reason="bad_uri"),
            start(head(CHUNKED), in_one % (b"%X" % len(body), body), body=body),
            start(head(CHUNKED), in_one % (b"%x" % size, body), reason="truncated" if size > len(body) else "bad_uri"),
            start(head(CHUNKED), in_one % (rng.choice((b"g", b"-", b" ", b"0x", b"\0")) + b"%x" % len(body), body), reason="bad_uri"),
            start(head(CHUNKED), (in_one % (b"%x" % len(body), body)).replace(b"\r\n0\r\n", b"\r\n\r\n0\r\n"), reason="bad_uri"),
        )
    )


def retry(rng: random.Random) -> Made:
    """A server that asks to wait, in words that are no number."""
    line = b"Retry-After: " + rng.choice((b"-1", b"nan", b"1e400", b"\xe9", b"9" * 500, b"Wed, 21 Oct 2026 07:28:00 GMT", b"", b"0x10", b"0"))
    return start(head(line, b"Content-Length: 0", status=b"429 Slow"))


CLASSES: dict[str, Case] = {
    "answer: with a length": Case(plain()),
    "answer: until it is closed": Case(until_closed),
    "answer: in chunks": Case(in_chunks()),
    "answer: in chunks, and a length": Case(in_chunks(b"Content-Length: 3")),
    "answer: after 100 Continue": Case(lambda rng: start(head(status=b"100 Continue") * rng.randint(1, 5), *whole(b"bytes").answers["/start"], body=b"bytes")),
    "answer: after other interim ones": Case(
        lambda rng: start(
            *[head(*[b"Link: </a>"] * rng.randint(0, 3), status=b"%d X" % rng.choice((100, 102, 103, 110, 199))) for _ in range(rng.randint(1, 9))],
            *whole(b"bytes").answers["/start"],
            body=b"bytes",
        )
    ),
    "answer: lines end with LF": Case(lambda rng: start(b"HTTP/1.1 200 OK\nContent-Length: 5\n\nbytes", body=b"bytes")),
    "answer: odd names of headers": Case(plain(b"content-TYPE:image/png", b"X-Empty:", b"x_y~z!: 1", b"X:\t tab \t", b"A: b: c")),
    "answer: headers beyond ASCII": Case(plain("X-Name: caf\u00e9 \u732b".encode(), b"X-Raw: \xff\xfe", b"Server: =?utf-8?b?//8=?=")),
    "answer: a folded header": Case(plain(b"X-Long: a\r\n b\r\n\tc")),
    "answer: multipart, says the server": Case(plain(b"Content-Type: multipart/mixed; boundary=x")),
    "answer: another content type": Case(with_lines(lambda rng: (b"Content-Type: " + rng.choice((b"message/rfc822", b"x/y;" * 99, b"\xff", b"")),))),
    "answer: 0 bytes": Case(
        lambda rng: rng.choice((whole(b""), start(head()), start(head(CHUNKED), b"0\r\n\r\n"), whole(gzip.compress(b""), GZIP))), "empty_file"
    ),
    "status: 4xx": Case(status(*range(400, 431), 451, 499), "http_4xx"),
    "status: 5xx": Case(status(*range(500, 512), 599), "http_5xx"),
    "status: a number that is none": Case(status(600, 999, b"000 X", b"099 X"), "http_5xx"),
    "status: neither the file nor an error": Case(status(201, 202, 203, 204, 205, 206, 207, 226, 300, 301, 302, 304, 305, 306, 307, 308), "http_other"),
    "status: of an interim answer that is the last": Case(
        lambda rng: start(
            *[head(status=b"%d X" % rng.choice((100, 101, 102, 103, 199))) for _ in range(rng.randint(1, 3))], *((RESET,) if rng.random() < 0.5 else ())
        ),
        "truncated",
    ),
    "status: of an interim answer that has a body": Case(status(100, 101, 102, 103), "bad_uri"),
    "status: no number": Case(status(b"OK", b"2OO OK", b"-200 X", b"", b"\xff", b"200.5 X", b"+200 X", b"7 X", b"99 X", b"1000 X", b"0200 OK"), "bad_uri"),
    "status: another version": Case(
        lambda rng: start(head(b"Content-Length: 5", version=rng.choice((b"HTTP/2", b"HTTP/3.0", b"HTTP/", b"http/1.1", b"ICY"))), b"bytes"), "bad_uri"
    ),
    "status: no HTTP at all": Case(
        lambda rng: start(rng.choice((b"\n", b"\r\n\r\n", b"<html>", b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02", b"\x89" + rng.randbytes(99)))), "bad_uri"
    ),
    "status: a line without an end": Case(lambda rng: start(b"HTTP/1.1 200 " + b"x" * 70_000), "bad_uri"),
    "headers: a line without an end": Case(plain(b"X-Long: " + b"x" * 70_000), "bad_uri"),
    "headers: hundreds": Case(plain(*[b"X-%d: 1" % n for n in range(300)]), "bad_uri"),
    "headers: a line that is none": Case(hidden_header, "bad_uri"),
    "headers: a secret in a reason": Case(lambda rng: start(head(b"Content-Length: 0", status=b"404 secret\x1b[2J")), "http_4xx"),
    "length: too large": Case(length(lambda body, rng: b"Content-Length: %d" % (len(body) + rng.randint(1, 9000))), "truncated"),
    "length: too small": Case(length(lambda body, rng: b"Content-Length: 9", lambda body: body[:9])),
    "length: negative": Case(length(lambda body, rng: b"Content-Length: -%d" % rng.randint(1, 9)), "bad_uri"),
    "length: no number": Case(length(lambda body, rng: b"Content-Length: " + rng.choice((b"many", b"0x5", b"1e3", b"\xb2", b"", b"5.0"))), "bad_uri"),
    "length: beyond all numbers": Case(length(lambda body, rng: b"Content-Length: " + b"9" * rng.choice((19, 20, 400, 5000))), "too_large"),
    "length: two of them": Case(length(lambda body, rng: b"Content-Length: 9\r\nContent-Length: %d" % len(body)), "bad_uri"),
    "length: the same twice": Case(length(lambda body, rng: b"\r\n".join([b"Content-Length: %d" % len(body)] * 2))),
    "length: a list of two": Case(length(lambda body, rng: b"Content-Length: 9, %d" % len(body)), "bad_uri"),
    "chunks: no size": Case(bad_chunks(lambda data, rng: rng.choice((b" \r\n", b"\r\n", b"xyz\r\n", b"\xff\r\n", b"0x\r\n")) + data), "bad_uri"),
    "chunks: a negative size": Case(bad_chunks(lambda data, rng: b"-%x\r\n" % rng.randint(1, 99) + data), "bad_uri"),
    "chunks: a huge size": Case(bad_chunks(lambda data, rng: rng.choice((b"ffffffffffffffff", b"7" * 300, b"fffffff")) + b"\r\n" + data), "too_large"),
    "chunks: a size without an end": Case(bad_chunks(lambda data, rng: b"0" * 70_000 + data), "bad_uri"),
    "chunks: cut short": Case(bad_chunks(lambda data, rng: data[: rng.randrange(len(data) - 2)]), "truncated"),
    "chunks: cut behind the last": Case(bad_chunks(lambda data, rng: data[: -rng.randint(1, 2)])),
    "chunks: trailers": Case(bad_chunks(lambda data, rng: data[:-2] + b"X-Sum: 1\r\nY: 2\r\n\r\n")),
    "coding: chunked in other letters": Case(coding(b"Chunked")),
    "coding: chunked and spaces": Case(coding(b"chunked  ")),
    "coding: chunked twice": Case(coding(b"chunked", repeated=True), "bad_uri"),
    "coding: not only chunked": Case(
        lambda rng: coding(rng.choice((b"gzip, chunked", b"identity, chunked", b"x", b"chunked, chunked", b"\xe9")))(rng), "bad_uri"
    ),
    "encoding: gzip": Case(squeezed("gzip")),
    "encoding: several members": Case(squeezed("members")),
    "encoding: zlib": Case(squeezed("zlib")),
    "encoding: raw deflate": Case(squeezed("raw")),
    "encoding: gzip twice": Case(squeezed("twice")),
    "encoding: identity": Case(squeezed("identity")),
    "encoding: cut short": Case(unsqueezed(lambda body, rng: gzip.compress(body)[: -rng.randint(1, 15)]), "truncated"),
    "encoding: a bit is another": Case(unsqueezed(flipped), "decode"),
    "encoding: not gzip": Case(unsqueezed(lambda body, rng: body), "decode"),
    "encoding: bytes after it": Case(unsqueezed(lambda body, rng: gzip.compress(body) + b"\0" * 9)),
    "encoding: unknown": Case(
        lambda rng: whole(b"bytes", b"Content-Encoding: " + rng.choice((b"br", b"zstd", b"compress", b"gzip, br", b"gzip, gzip, gzip", b"x" * 999, b"\xff"))),
        "not_media",
    ),
    "encoding: a bomb": Case(bomb, "too_large"),
    "size: too many bytes": Case(too_many, "too_large"),
    "time: slow somewhere": Case(slow, "timeout", timeout_s=SLOW_S),
    "time: asks to wait in odd words": Case(retry, "http_4xx", attempts=2),
    "connection: ends early": Case(cut_off, "truncated"),
    "anything: one change": Case(one_change),
}
