"""Fetch: a media uri of a manifest -> its bytes, from below a base directory or over http(s).

Owns what may be reached (no path outside the base, no private network), how much (size limit) and how long (total time limit).
Input: uri, base, FetchPolicy; output: bytes; every failure is a FetchError with a reason of the closed set.

A manifest is untrusted input: a host is resolved once, every address it has must be public, and the connection goes to exactly
the address that was checked (so a second DNS answer cannot redirect it); redirects are checked the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, urljoin, urlsplit

RETRIED = ("timeout", "dns", "http_5xx")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CHUNK_BYTES = 1 << 16


class FetchError(Exception):
    """Bytes that could not be had.

    reason: missing_file, empty_file, truncated, too_large, http_4xx, http_5xx, timeout (also: unreachable), dns, forbidden_address, bad_uri;
    detail: one line; attempts: how often it was tried.
    """

    def __init__(self, reason: str, detail: str, attempts: int = 1):
        super().__init__(reason, detail, attempts)
        self.reason, self.detail, self.attempts = reason, detail, attempts

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchPolicy:
    """Limits of one fetch."""

    max_bytes: int = 256 * 2**20
    """Larger media are refused."""
    timeout_s: float = 30.0
    """Seconds for one attempt in all: name, connection, headers, body and redirects."""
    attempts: int = 3
    """Tries for a failure that may pass (timeout, dns, http_5xx)."""
    backoff_s: float = 0.5
    """Wait before the second try, doubled each time, in seconds."""
    max_redirects: int = 5
    allow_private: bool = False
    """Also reach private, loopback and link-local addresses (an intranet mirror, tests)."""


def fetch(uri: str, base: Path, policy: FetchPolicy = FetchPolicy()) -> bytes:
    """The bytes behind `uri`: a relative POSIX path below `base`, or http(s). Raises FetchError."""
    return fetch_counted(uri, base, policy)[0]


def fetch_counted(uri: str, base: Path, policy: FetchPolicy = FetchPolicy()) -> tuple[bytes, int]:
    """(bytes, attempts). Raises FetchError, whose `attempts` says how often it was tried."""
    if not is_remote(uri):
        return read_local(uri, base, policy.max_bytes), 1
    for attempt in range(1, policy.attempts + 1):
        try:
            data = _fetch_http(uri, policy)
            if not data:
                raise FetchError("empty_file", "the server sent 0 bytes")
            return data, attempt
        except FetchError as error:
            if error.reason not in RETRIED or attempt == policy.attempts:
                raise FetchError(error.reason, error.detail, attempt) from error
            time.sleep(policy.backoff_s * 2 ** (attempt - 1))
    raise FetchError("bad_uri", "the policy allows no attempt", 0)


def is_remote(uri: str) -> bool:
    """True for http(s) uris."""
    return uri.lower().startswith(("http://", "https://"))


# ---- local


def resolve_local(uri: str, base: Path) -> Path:
    """The real path of a relative uri. Raises FetchError (bad_uri) when it leaves `base`, also through a symbolic link."""
    parts = PurePosixPath(uri).parts
    if not uri or "\0" in uri or "\\" in uri or _SCHEME.match(uri) or uri.startswith("/") or ".." in parts:
        raise FetchError("bad_uri", f"'{uri}' is neither a relative path below the list root nor http(s)")
    path = base / uri
    if not path.resolve().is_relative_to(base.resolve()):
        raise FetchError("bad_uri", f"'{uri}' leads outside the list root")
    return path


def read_local(uri: str, base: Path, max_bytes: int) -> bytes:
    """Bytes of a regular file below `base`. Raises FetchError: bad_uri, missing_file, empty_file, too_large."""
    path = resolve_local(uri, base)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # O_NONBLOCK: a FIFO must not hang us
    except (FileNotFoundError, NotADirectoryError):
        raise FetchError("missing_file", f"no file '{uri}' below the list root") from None
    except PermissionError:
        raise FetchError("missing_file", f"no permission to read '{uri}'") from None
    with open(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise FetchError("missing_file", f"'{uri}' is not a regular file")
        if info.st_size > max_bytes:
            raise FetchError("too_large", f"{info.st_size} bytes, the limit is {max_bytes}")
        data = file.read()
    if not data:
        raise FetchError("empty_file", "0 bytes")
    return data


# ---- http


def _fetch_http(uri: str, policy: FetchPolicy) -> bytes:
    deadline = time.monotonic() + policy.timeout_s
    try:
        for _ in range(policy.max_redirects + 1):
            answer = _request(uri, policy, deadline)
            if isinstance(answer, bytes):
                return answer
            uri = urljoin(uri, answer)
    except (TimeoutError, http.client.HTTPException, ssl.SSLError, OSError) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise FetchError("timeout", f"not finished within {policy.timeout_s:g} s") from error
        if isinstance(error, http.client.IncompleteRead):
            raise FetchError("truncated", "the body is shorter than its Content-Length") from error
        raise FetchError("timeout", f"unreachable: {type(error).__name__}") from error
    raise FetchError("bad_uri", f"more than {policy.max_redirects} redirects")


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
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "anyloom", "Accept-Encoding": "identity", "Connection": "close"})
        response = connection.getresponse()
        location = response.headers.get("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status >= 400:
            raise FetchError("http_4xx" if response.status < 500 else "http_5xx", f"HTTP {response.status}")
        if response.status != 200:
            raise FetchError("http_4xx", f"unexpected HTTP {response.status}")
        return _body(response, policy, deadline)
    except UnicodeError as error:
        raise FetchError("bad_uri", "the uri has characters that must be percent-encoded") from error
    finally:
        alarm.cancel()
        twin.close()
        connection.close()


def _body(response: http.client.HTTPResponse, policy: FetchPolicy, deadline: float) -> bytes:
    if (response.length or 0) > policy.max_bytes:
        raise FetchError("too_large", f"{response.length} bytes, the limit is {policy.max_bytes}")
    promised, body = response.length, bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > policy.max_bytes:
            raise FetchError("too_large", f"more than {policy.max_bytes} bytes")
    if time.monotonic() >= deadline:
        raise TimeoutError
    if promised is not None and len(body) < promised:
        raise FetchError("truncated", f"{len(body)} of {promised} bytes")
    return bytes(body)


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
        raise FetchError("bad_uri", str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError("bad_uri", f"scheme '{parts.scheme}' or host is not allowed")
    if parts.username is not None or parts.password is not None or re.search(r"[\x00-\x20\x7f]", uri):
        raise FetchError("bad_uri", "user names, spaces and control characters are not allowed")
    return parts, port


def _checked_address(host: str, port: int, policy: FetchPolicy, deadline: float) -> str:
    """The first address of `host`; all of them must be public unless the policy says otherwise."""
    addresses = _resolve(host, port, deadline)
    if not policy.allow_private:
        for address in addresses:
            if not is_public(address):
                raise FetchError("forbidden_address", f"{host} is at {address}, which is not a public address")
    return addresses[0]


def _resolve(host: str, port: int, deadline: float) -> list[str]:
    """Addresses in the resolver's order. The system resolver has no time limit of its own, so it runs in a thread."""
    found: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            found.append([str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not found:
        raise FetchError("timeout", f"no answer about the name {host} in time")
    if isinstance(found[0], Exception) or not found[0]:
        raise FetchError("dns", f"the name {host} cannot be resolved")
    return found[0]


def is_public(address: str) -> bool:
    """True when an IP address, and any IPv4 address inside it (mapped, 6to4, Teredo, NAT64), is globally routable."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and all(v4.is_global for v4 in inner if v4 is not None)


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
