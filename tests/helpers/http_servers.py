"""Servers on loopback for tests: HttpServer answers requests with what a function says, CannedServer sends exactly the bytes that it is told.

Owns their start and stop: they listen on a free port while their context is open. Input: answers. Output: an address; what was asked of it.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
RESET = "reset"
"""In an answer of CannedServer: the connection is cut off."""
ANY = ""
"""Path of a CannedServer's answer to what has none of its own."""
NONE = b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n"
Pieces = Sequence[bytes | float | str]
"""Bytes to send, seconds to wait, or RESET."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Said:
    """An answer; its length is told beside the headers."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Loopback:
    """A server whose requests a handler answers, while the context is open."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        self._server = ThreadingHTTPServer((LOOPBACK, 0), handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # whoever asked has hung up
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class HttpServer(Loopback):
    """Answers every request with what `answer` says to it. `asked`: the requests in order."""

    def __init__(self, answer: Callable[[Asked], Said]):
        self.asked: list[Asked] = []
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = Asked(self.command, self.path, self.headers, self.rfile.read(int(self.headers.get("Content-Length", 0))))
                mine.asked.append(asked)
                said = answer(asked)
                self.send_response(said.status)
                for name, value in {**said.headers, "Content-Length": str(len(said.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)

    @property
    def paths(self) -> list[str]:
        """What was asked for."""
        return [asked.path for asked in self.asked]


class CannedServer:
    """Sends what stands in `answers` under the path that is asked for. `paths`: what was asked for, in order."""

    def __init__(self, answers: Mapping[str, Pieces] | None = None):
        self.answers, self.paths = dict(answers or {}), list[str]()
        self._over = threading.Event()
        self._socket = socket.create_server((LOOPBACK, 0))
        self.port = int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the wait for a connection
        self._socket.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = b""
                while b"\r\n\r\n" not in request and (more := connection.recv(65536)):
                    request += more
                path = request.split(b" ")[1].decode("latin-1") if request.count(b" ") > 1 else ""
                self.paths.append(path)
                for piece in self.answers.get(path, self.answers.get(ANY, (NONE,))):
                    if isinstance(piece, bytes):
                        connection.sendall(piece)
                    elif piece == RESET:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    elif isinstance(piece, float) and self._over.wait(piece):
                        return
            except OSError:  # the other side has heard enough
                return
