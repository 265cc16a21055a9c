"""A Prefect server that the environment names: whatever is wrong with it is one line with the remedy, and no password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from flows.running.prefect_server import check_given
from infra.step import AnyloomError

REMEDY = "start that server, unset the variable so that the run starts its own, or run without Prefect: --no-prefect"
REFUSED = ", which does not answer ([Errno 111] Connection refused)"
NO_ADDRESS = "no address of a server (one is http://HOST:4200/api)"


@pytest.fixture
def place() -> Iterator[tuple[str, list[bytes]]]:
    """(host and port, what is sent to whoever connects): a server on a plain socket, which keeps what it is asked."""
    listening = socket.create_server(("127.0.0.1", 0))
    answer: list[bytes] = [b""]

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                answer.append(connection.recv(65536))
                connection.sendall(answer[0])

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listening.getsockname()[1]}", answer
    listening.close()


def problem(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """What is said of the address, without the remedy."""
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(AnyloomError) as caught:
        check_given()
    said = str(caught.value)
    assert said.endswith(f": {REMEDY}") and said.isprintable() and "s3cret" not in said
    return said.removesuffix(f": {REMEDY}").removeprefix("PREFECT_API_URL names ")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9/api", f"http://127.0.0.1:9{REFUSED}"),
        ("http://me:s3cret@127.0.0.1:9/api/", f"http://127.0.0.1:9{REFUSED}"),
        ("https://127.0.0.1:9/api", f"https://127.0.0.1:9{REFUSED}"),
        *((url, NO_ADDRESS) for url in ("127.0.0.1:9/api", "localhost:4200/api", "me:s3cret@localhost/api", "api", "/", "http://", "http:///api")),
        *((url, NO_ADDRESS) for url in ("http://me:s3cret@127.0.0.1:x/api", "http://127.0.0.1:99999/api", "http://[::1/api", "http://a b:4200/api")),
        *((url, NO_ADDRESS) for url in ("file:///etc/passwd", "ftp://a/api", "http://a:42 00/api", "http://127.0.0.1:9/a pi")),
    ],
)
def test_an_address_where_nothing_answers_is_one_line(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem(monkeypatch, url) == says


def test_a_host_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem(monkeypatch, "http://no-such-host.invalid:4200/api").startswith("http://no-such-host.invalid:4200, which does not answer (")


@pytest.mark.parametrize(("answer", "says"), [(b"+PONG\r\n", "BadStatusLine"), (b"\x16\x03\x01\x02\x00", "BadStatusLine"), (b"", "Remote end closed")])
def test_what_is_no_web_server_is_told(answer: bytes, says: str, place: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    where, sent = place
    sent[0] = answer
    said = problem(monkeypatch, f"http://{where}/api")
    assert said.startswith(f"http://{where}, which does not answer") and says in said


@pytest.mark.parametrize("status", ["500 No", "502 Bad Gateway", "503 Later"])
def test_a_server_that_is_not_well_is_told(status: str, place: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    where, sent = place
    sent[0] = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    assert problem(monkeypatch, f"http://{where}/api") == f"http://{where}, which answers HTTP {status[:3]}"


@pytest.mark.parametrize("status", ["200 OK", "401 Who", "403 No", "404 None"])
@pytest.mark.parametrize("form", ["http://{}/api", "http://{}/api/", "http://me:s3cret@{}/api", " http://{}/api\n"])
def test_a_server_that_answers_is_taken(status: str, form: str, place: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    where, sent = place
    sent[0] = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    monkeypatch.setenv("PREFECT_API_URL", form.format(where))
    check_given()
    assert sent[1].startswith(b"GET /api/health HTTP/1.1\r\n") and b"s3cret" not in sent[1]
