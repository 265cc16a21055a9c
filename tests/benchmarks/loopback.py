"""A server on this machine that sends exactly the bytes that it is told, reached as if it had a public address.

Owns the network around a CannedServer: names resolve as written in NAMES, connections to public addresses lead to the server, and every other connection is
refused and noted. The guard of pipelines.shards stays as it is, so what it lets through is what is noted. Input: a server. Output: the addresses beyond it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from http_servers import CannedServer

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


@contextmanager
def network(server: CannedServer) -> Iterator[list[str]]:
    """While the body runs, names and connections of this process are those of NAMES and of the server. Gives the addresses that were connected to and are
    not public."""
    reached: list[str] = []
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host.lower().rstrip(".") in NAMES:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host.lower().rstrip(".")]]
        return resolve(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # an address, however it is written

    def create_connection(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        if address[0] not in PUBLIC:
            reached.append(address[0])
            raise ConnectionRefusedError
        return connect(("127.0.0.1", server.port), *arguments, **options)

    socket.getaddrinfo, socket.create_connection = getaddrinfo, create_connection  # type: ignore[assignment]
    try:
        yield reached
    finally:
        socket.getaddrinfo, socket.create_connection = resolve, connect
