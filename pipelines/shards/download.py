"""Download: one try to get the bytes behind an http(s) uri.

Owns what may be reached (no private network), how much (size limit) and how long (total time limit); pipelines.shards.answers reads what comes. Input: uri,
FetchPolicy; output: bytes; every failure is a FetchError with a reason of the closed set, whatever the server answers.

A manifest is untrusted input: a host is resolved once, every address it has must be public, and the connection goes to exactly
the address that was checked (so a second DNS answer cannot redirect it); redirects are checked the same way.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pipelines.shards.addresses import is_public, resolve
from pipelines.shards.answers import read_answer, read_body
from pipelines.shards.errors import FetchError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_KEPT = "%/:?#[]@!$&'()*+,;=~"
"""Characters that mean something in an address, or are part of an escape; every other one beyond letters and digits is escaped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchPolicy:
    """Limits of one fetch."""

    max_bytes: int = 256 * 2**20
    """Larger media are refused."""
    timeout_s: float = 30.0
    """Seconds for one attempt in all: name, connection, headers, body and redirects."""
    attempts: int = 3
    """Tries for a failure that may pass (timeout, dns, http_5xx, HTTP 429, an answer cut short)."""
    backoff_s: float = 0.5
    """Wait before the second try, doubled each time, in seconds."""
    max_redirects: int = 5
    allow_private: bool = False
    """Also reach private, loopback and link-local addresses (an intranet mirror, tests)."""
    roots: tuple[Path, ...] = ()
    """Directories beside the list's that local media may lie in: a relative path that is not below the list's is looked for there, and an absolute one is
    taken where it leads into one of them."""


def download(uri: str, policy: FetchPolicy) -> bytes:
    """The bytes that the server sends, its Content-Encoding undone; at least one. Raises FetchError."""
    deadline = time.monotonic() + policy.timeout_s
    try:
        for _ in range(policy.max_redirects + 1):
            answer = _request(uri, policy, deadline)
            if isinstance(answer, bytes):
                return answer
            uri = _redirected(uri, answer)
    except FetchError as error:
        if error.reason == "truncated" and time.monotonic() >= deadline:  # it was ended here
            raise _late(policy) from error
        raise
    except OSError as error:  # also TimeoutError, ssl.SSLError
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise _late(policy) from error
        raise FetchError("timeout", f"unreachable: {type(error).__name__}") from error
    except (http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:  # for odd bytes in a host or an address
        raise FetchError("bad_uri", f"the address cannot be understood ({type(error).__name__})") from error
    raise FetchError("bad_uri", f"more than {policy.max_redirects} redirects")


def _late(policy: FetchPolicy) -> FetchError:
    return FetchError("timeout", f"not finished within {policy.timeout_s:g} s")


def _redirected(uri: str, location: str) -> str:
    """The address a redirect leads to; its characters beyond ASCII, which are read as Latin-1, are escaped byte by byte."""
    if _CONTROL.search(location):
        raise FetchError("bad_uri", "the redirect has control characters")
    try:
        return urljoin(uri, quote(location.encode("latin-1"), safe=_KEPT))
    except ValueError as error:
        raise FetchError("bad_uri", "the redirect leads to no valid address") from error


def _request(uri: str, policy: FetchPolicy, deadline: float) -> bytes | str:
    """One request to a checked address: the body, or where it redirects to."""
    parts, port = _split(uri)
    address = _checked_address(str(parts.hostname), port, policy, deadline)
    connection = _connect(parts, port, address, deadline)
    # Reads are bounded one by one; this bounds them all, also against a server that sends a byte at a time.
    twin = socket.socket(fileno=os.dup(connection.sock.fileno()))
    alarm = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [twin])
    alarm.daemon = True
    alarm.start()
    try:
        target = quote(parts.path or "/", safe=_KEPT) + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "anyloom", "Accept-Encoding": "identity", "Connection": "close"})
        with connection.sock.makefile("rb") as reader:
            return _answered(reader, policy, deadline)
    except ConnectionError as error:
        raise FetchError("truncated", f"the connection was lost before the end of the answer ({type(error).__name__})") from error
    finally:
        alarm.cancel()
        twin.close()
        connection.close()


def _answered(reader: BinaryIO, policy: FetchPolicy, deadline: float) -> bytes | str:
    """What a server's answer holds: the body, or where it redirects to. Raises FetchError, OSError."""
    answer = read_answer(reader)
    (location, *_), (wait, *_) = (answer.headers.get(name, ("",)) for name in ("location", "retry-after"))
    if answer.status in (301, 302, 303, 307, 308) and location:
        return location
    if 400 <= answer.status < 500:
        raise FetchError("http_4xx", f"HTTP {answer.status}", wait_s=_wait_s(wait))
    if not 100 <= answer.status < 500:  # a number that is no status is an error of the server (RFC 9110, section 15)
        raise FetchError("http_5xx", f"HTTP {answer.status}", wait_s=_wait_s(wait))
    if answer.status != 200:
        raise FetchError("http_other", f"HTTP {answer.status}, which is neither the file nor an error")
    body = read_body(reader, answer, policy.max_bytes)
    if time.monotonic() >= deadline:  # a body without a length ends with the connection, which was ended here
        raise TimeoutError
    data = _decoded(body, answer.values("content-encoding"), policy.max_bytes)
    if not data:
        raise FetchError("empty_file", "the server sent 0 bytes")
    return data


def _wait_s(asked: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date (RFC 9110, section 10.2.3); None for what is neither."""
    if re.fullmatch(r"[0-9]{1,6}", asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _decoded(body: bytes, encodings: Sequence[str], max_bytes: int) -> bytes:
    """The body without its Content-Encoding (some servers compress though they were asked not to)."""
    names = [name.strip().lower() for name in encodings if name.strip().lower() not in ("", "identity")]
    for name in reversed(names[:3]):
        if name not in ("gzip", "x-gzip", "deflate") or len(names) > 2:
            raise FetchError("not_media", "the server's Content-Encoding is neither gzip nor deflate")
        body = _inflated(body, name, max_bytes)
    return body


def _inflated(body: bytes, name: str, max_bytes: int) -> bytes:
    """gzip (one or several members), zlib or raw deflate -> what it holds. Raises FetchError: truncated, decode, too_large."""
    is_raw = name == "deflate" and not (body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0)
    out = b""
    try:
        while body:
            stream = zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)
            out += stream.decompress(body, max_bytes + 1 - len(out))
            if len(out) > max_bytes:
                raise FetchError("too_large", f"more than {max_bytes} bytes")
            if not stream.eof:
                raise FetchError("truncated", "the compressed body ends early")
            body = stream.unused_data if stream.unused_data[:2] == b"\x1f\x8b" else b""
    except zlib.error as error:
        raise FetchError("decode", "the body is not what its Content-Encoding says") from error
    return out


def _shut(twin: socket.socket) -> None:
    try:
        twin.shutdown(socket.SHUT_RDWR)
    except OSError:  # already closed by the other side: there is nothing left to end
        return


def _split(uri: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(uri)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise FetchError("bad_uri", "the address has no valid host or port") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError("bad_uri", f"scheme '{parts.scheme}' or host is not allowed")
    if not re.fullmatch(r"[^\[\]]*|\[[^\[\]]*\](:[0-9]*)?", parts.netloc.rpartition("@")[2]):
        raise FetchError("bad_uri", "the address has brackets around no host")
    if parts.username is not None or parts.password is not None or _CONTROL.search(uri) or re.search(r"\s", parts.netloc):
        raise FetchError("bad_uri", "user names, and control characters or spaces in the host, are not allowed")
    return parts, port


def _checked_address(host: str, port: int, policy: FetchPolicy, deadline: float) -> str:
    """The first address of `host`; all of them must be public unless the policy says otherwise."""
    addresses = resolve(host, port, deadline)
    if not policy.allow_private:
        for address in addresses:
            if not is_public(address):
                raise FetchError("forbidden_address", f"{host} is at {address}, which is not a public address")
    return addresses[0]


def _connect(parts: SplitResult, port: int, address: str, deadline: float) -> http.client.HTTPConnection:
    """A connection to `address` that speaks (and checks the certificate) as the uri's host."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    raw = socket.create_connection((address, port), timeout=remaining)
    host = str(parts.hostname)
    try:
        if parts.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
        connection = http.client.HTTPConnection(host, port, timeout=remaining)
        connection.default_port = 443 if parts.scheme == "https" else 80  # leaves the port out of the Host header
        connection.sock = raw
        return connection
    except BaseException:
        raw.close()
        raise
