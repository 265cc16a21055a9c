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
    body: bytes = b""
    """What it means, where it means anything."""
    reason: str | None = None
    """Why nothing can be had of it; "": it can; None: as its class says."""


@dataclass(frozen=True, slots=True)
class Case:
    """How answers of a class are made, and their right outcome."""

    make: Callable[[random.Random], Made]
    reason: str = ""
    """The one reason; "": the bytes that the answer means. An answer that says so itself has its own."""
    timeout_s: float = 4.0
    attempts: int = 1

    def __str__(self) -> str:
        return self.reason or "the bytes, unless the answer has a reason of its own"


def some_bytes(rng: random.Random) -> bytes:
    """A body that looks like nothing else."""
    return b"\x89" + rng.randbytes(rng.randint(20, 3000))


def head(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"HTTP/1.1") -> bytes:
    """Status line and headers, with the blank line behind them."""
    return b"\r\n".join((version + b" " + status, *lines, b"", b""))


def start(*pieces: bytes | float | str, body: bytes = b"", reason: str | None = None) -> Made:
    """An answer to the first request."""
    return Made({START: pieces}, body, reason)


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
