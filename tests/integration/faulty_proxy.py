"""A proxy in front of an HTTP server that does to some requests what networks and servers do: resets, errors, cut answers, slow answers.

Input: the server's address, a share of faults, a seed. Output: an address to talk to; `faults` counts what was done. Real sockets on loopback.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from http_servers import Loopback

FAULTS = ("reset before", "reset after", "500", "503", "cut", "slow")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class FaultyProxy(Loopback):
    """Listens on a free port of loopback while the context is open."""

    def __init__(self, host: str, port: int, share: float, seed: int):
        self.upstream, self.share, self.faults, self.requests = (host, port), share, Counter[str](), 0
        self._rng, self._lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.serve(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)

    def _fault(self) -> str:
        with self._lock:
            self.requests += 1
            fault = self._rng.choice(FAULTS) if self._rng.random() < self.share else ""
            self.faults[fault] += bool(fault)
            return fault

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Pass one request on, or do something else to it."""
        fault, body = self._fault(), _body(request)
        if fault == "reset before":
            return _reset(request)
        if fault in ("500", "503"):
            return _answer(request, int(fault), [], SLOW_DOWN)
        if fault == "slow":
            time.sleep(0.5)
        upstream = http.client.HTTPConnection(*self.upstream, timeout=60)
        upstream.request(request.command, request.path, body, {name: value for name, value in request.headers.items() if name.lower() not in NOT_PASSED_ON})
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "reset after":
            return _reset(request)
        return _answer(request, answer.status, answer.getheaders(), data, cut=fault == "cut")


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() == "chunked":
        parts = []
        while size := int(request.rfile.readline().split(b";")[0], 16):
            parts.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(parts)
    return request.rfile.read(int(request.headers.get("Content-Length", 0)))


def _answer(request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
    request.send_response(status)
    length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
    for name, value in headers:
        if name.lower() not in NOT_PASSED_ON | {"server", "date"}:
            request.send_header(name, value)
    request.send_header("Content-Length", length if request.command == "HEAD" else str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        request.wfile.flush()
        _reset(request, abrupt=False)


def _reset(request: BaseHTTPRequestHandler, abrupt: bool = True) -> None:
    """End the connection, with a reset where `abrupt`."""
    request.close_connection = True
    if abrupt:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close() if abrupt else request.connection.shutdown(socket.SHUT_RDWR)
