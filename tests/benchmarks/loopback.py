"""A server on this machine that sends exactly the bytes that it is told, reached as if it had a public address.

Owns Server, and the network around it: names resolve as written in NAMES, connections to public addresses lead to the server, and every other connection is
refused and noted. The guard of pipelines.shards stays as it is, so what it lets through is what is noted. Input: answers by path. Output: what was asked.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HOST = "media.example"
PUBLIC = ("93.184.216.34", "8.8.8.8")
NAMES = {
    HOST: PUBLIC[:1],
    "other.example": PUBLIC[::-1],
    "mixed.example": (PUBLIC[0], "10.0.0.7"),
    "inside.example": ("192.168.3.4",),
    "localhost": ("127.0.0.1", "::1"),
}
"""Name -> its addresses."""
RESET = "reset"
"""In an answer: the connection is cut off."""
Answer = Sequence[bytes | float | str]
"""Bytes to send, seconds to wait, or RESET."""


class Server:
    """Answers a request for a path with what stands in `answers`."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.reached: list[str] = []
        """Addresses that were connected to and are not public."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
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
                self.asked.append(path)
                for piece in self.answers.get(path, (b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n",)):
                    if piece == RESET:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    elif isinstance(piece, float):
                        time.sleep(piece)
                    elif isinstance(piece, bytes):
                        connection.sendall(piece)
            except OSError:  # the other side has heard enough
                return

    def close(self) -> None:
        """No more connections."""
        self._socket.close()


@contextmanager
def network(server: Server) -> Iterator[None]:
    """While the body runs, names and connections of this process are those of NAMES and of the server."""
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host.lower().rstrip(".") in NAMES:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host.lower().rstrip(".")]]
        return resolve(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # an address, however it is written

    def create_connection(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        if address[0] not in PUBLIC:
            server.reached.append(address[0])
            raise ConnectionRefusedError
        return connect(("127.0.0.1", server.port), *arguments, **options)

    socket.getaddrinfo, socket.create_connection = getaddrinfo, create_connection  # type: ignore[assignment]
    try:
        yield
    finally:
        socket.getaddrinfo, socket.create_connection = resolve, connect
