"""Answers: what an HTTP/1 server sends -> status, headers and body of its answer.

Owns the framing (RFC 9112): where headers end, how long a body is, and whether the connection ended before that. http.client takes headers and the size of a
chunk that are cut short for whole ones; h11 shows neither the size of a chunk nor how far a cut answer came, which the reasons need. Input: a buffered reader
of the connection; output: Answer, and its body. Raises FetchError: truncated where the connection ends early, bad_uri for what is no such answer, too_large;
and OSError of the connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pipelines.shards.errors import FetchError

MAX_LINE_BYTES = 1 << 16
"""Longest line of headers, or before a chunk."""
MAX_HEADERS = 100
MAX_INTERIM = 100
"""Answers 1xx before the answer itself."""
_PIECE_BYTES = 1 << 16
NO_HTTP = "what the server sends is no answer of HTTP/1"
_BEGINNING = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.[0-9][ \t]+([0-9]{3})(?:[ \t].*)?", re.DOTALL)
_HEADER = re.compile(rb"([\x21-\x39\x3b-\x7e]+):(.*)", re.DOTALL)
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """The beginning of a final answer; its body has not been read."""

    status: int
    headers: Mapping[str, Sequence[str]]
    """Name in small letters -> its values in order, bytes as Latin-1."""

    def values(self, name: str) -> list[str]:
        """The members of a header that is a list, over all its lines."""
        return [member.strip() for value in self.headers.get(name, ()) for member in value.split(",")]


def read_answer(reader: BinaryIO) -> Answer:
    """The first final answer; those before it (1xx, RFC 9110, section 15.2) are read and left. Raises FetchError and OSError: see the module."""
    place = "before the headers of an answer"
    for _ in range(MAX_INTERIM + 1):
        found = _STATUS.fullmatch(_line(reader, place, begins=_BEGINNING))
        if found is None:
            raise FetchError("bad_uri", NO_HTTP)
        status = int(found[1])
        headers = _headers(reader, f"in the headers of HTTP {status}")
        if not 100 <= status < 200:
            return Answer(status, headers)
        place = f"after HTTP {status}, before the final answer"
    raise FetchError("bad_uri", f"more than {MAX_INTERIM} answers before the final one, the last is HTTP {status}")


def read_body(reader: BinaryIO, answer: Answer, max_bytes: int) -> bytes:
    """The body of an answer that has one (RFC 9112, section 6.3), at most `max_bytes`. What follows it is not read. Raises FetchError and OSError."""
    codings = [coding.lower() for coding in answer.values("transfer-encoding")]
    if codings:
        if codings != ["chunked"]:
            raise FetchError("bad_uri", "the server's answer has a Transfer-Encoding other than chunked")
        return _chunks(reader, max_bytes)
    lengths = set(answer.values("content-length"))
    if len(lengths) > 1:
        raise FetchError("bad_uri", "the server's answer has several lengths")
    if not lengths:
        body = _at_most(reader, max_bytes + 1)
        if len(body) > max_bytes:
            raise FetchError("too_large", f"more than {max_bytes} bytes")
        return bytes(body)
    (length,) = lengths
    if not re.fullmatch(r"[0-9]+", length):
        raise FetchError("bad_uri", "the server's answer has a Content-Length that is no number")
    promised = int(length) if len(length) < 20 else max_bytes + 1
    if promised > max_bytes:
        raise FetchError("too_large", f"{length[:20]} bytes, the limit is {max_bytes}")
    body = _at_most(reader, promised)
    if len(body) < promised:
        raise FetchError("truncated", f"{len(body)} of {promised} bytes")
    return bytes(body)


def _line(reader: BinaryIO, place: str, begins: bytes = b"") -> bytes:
    """The next line without its end. place: where it is, for the connection that ends in it; begins: what a line that is cut short must be the beginning of."""
    line = reader.readline(MAX_LINE_BYTES + 1)
    if not begins.startswith(line[: len(begins)]):
        raise FetchError("bad_uri", NO_HTTP)
    if line.endswith(b"\n"):
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]
    if len(line) > MAX_LINE_BYTES:
        raise FetchError("bad_uri", f"the server's answer has a line of more than {MAX_LINE_BYTES} bytes")
    raise FetchError("truncated", f"the connection ended {place}")


def _headers(reader: BinaryIO, place: str) -> dict[str, list[str]]:
    """Header lines up to the blank one; a line that begins with a space goes on with the one before."""
    found: dict[str, list[str]] = {}
    values: list[str] | None = None
    for _ in range(MAX_HEADERS + 1):
        line = _line(reader, place)
        if not line:
            return {name: [value.strip(" \t") for value in several] for name, several in found.items()}
        if values and line[:1] in (b" ", b"\t"):
            values[-1] += " " + line.strip(b" \t").decode("latin-1")
            continue
        header = _HEADER.fullmatch(line)
        if header is None:
            raise FetchError("bad_uri", "the server's answer has a header line that is none")
        values = found.setdefault(header[1].decode("ascii").lower(), [])
        values.append(header[2].decode("latin-1"))
    raise FetchError("bad_uri", f"the server's answer has more than {MAX_HEADERS} header lines")


def _chunks(reader: BinaryIO, max_bytes: int) -> bytes:
    """A body in chunks (RFC 9112, section 7.1), whole when the chunk of size 0 has come; trailers are not read."""
    body = bytearray()
    while True:
        line = _line(reader, f"before the size of a chunk had come, after {len(body)} bytes")
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise FetchError("bad_uri", "the server's answer has a chunk without a size")
        size = int(found[1], 16)
        if not size:
            return bytes(body)
        if len(body) + size > max_bytes:
            raise FetchError("too_large", f"more than {max_bytes} bytes")
        piece = _at_most(reader, size)
        body += piece
        end = reader.read(1)
        end = end + reader.read(1) if end == b"\r" else end
        if len(piece) < size or end in (b"", b"\r"):
            raise FetchError("truncated", f"the connection ended in a chunk, after {len(body)} bytes")
        if end not in (b"\r\n", b"\n"):
            raise FetchError("bad_uri", "the server's answer has a chunk that is longer than its size")


def _at_most(reader: BinaryIO, size: int) -> bytearray:
    """`size` bytes, fewer only where the connection ends."""
    body = bytearray()
    while len(body) < size and (piece := reader.read(min(_PIECE_BYTES, size - len(body)))):
        body += piece
    return body
