"""One class of HTTP answers, and the pieces that answers are made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from http_servers import Pieces
from loopback import HOST

START = "/start"
HOST_URI = f"http://{HOST}{START}"
"""What is fetched."""


@dataclass(frozen=True, slots=True)
class Made:
    """One answer."""

    answers: dict[str, Pieces]
    """Path -> what the server sends."""
    body: bytes | None = None
    """What it means; None: that is not known."""


@dataclass(frozen=True, slots=True)
class Case:
    """How answers of a class are made, and their right outcome: one of the reasons, or the bytes, where they may be taken."""

    make: Callable[[random.Random], Made]
    reasons: tuple[str, ...] = ()
    whole: bool = False
    timeout_s: float = 4.0
    attempts: int = 1

    def __str__(self) -> str:
        return " or ".join((*(("the bytes",) if self.whole else ()), *self.reasons))


def some_bytes(rng: random.Random) -> bytes:
    """A body that looks like nothing else."""
    return b"\x89" + rng.randbytes(rng.randint(20, 3000))


def head(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"HTTP/1.1") -> bytes:
    """Status line and headers, with the blank line behind them."""
    return b"\r\n".join((version + b" " + status, *lines, b"", b""))


def start(*pieces: bytes | float | str, body: bytes | None = None) -> Made:
    """An answer to the first request."""
    return Made({START: pieces}, body)


def whole(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> Made:
    """A plain answer with a length."""
    return start(head(*lines, b"Content-Length: %d" % len(body), status=status), body, body=body)


def chunked(rng: random.Random, body: bytes) -> bytes:
    """A body in chunks of random size, some with extensions."""
    out, at = b"", 0
    while at < len(body):
        piece = body[at : at + rng.randint(1, 900)]
        out += b"%x%s\r\n%s\r\n" % (len(piece), rng.choice((b"", b"", b";a=b", b"; x")), piece)
        at += len(piece)
    return out + b"0\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
