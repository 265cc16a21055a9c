"""When Ray does not come up, the run says so and what to do."""

import socket

import pytest
import ray

from infra import ray_session
from infra.step import AnyloomError


@pytest.mark.parametrize(("given", "says"), [(False, "Ray did not start"), (True, "RAY_ADDRESS does not answer")])
def test_a_cluster_that_does_not_come_up_is_one_line_with_a_remedy(given, says, monkeypatch):
    def late(**_):
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address) if given else monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(AnyloomError, match=rf"^{says} \(The current node timed out during startup\.\).*--no-ray$"):
            ray_session.start(1)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "localhost:9", "[::1]:9", "no-such-host.invalid:6379", "127.0.0.1:99999", "a..b:6379"])
def test_a_given_cluster_where_nothing_listens_is_told_in_seconds(address, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray itself tries for minutes"))
    monkeypatch.setattr(ray_session, "KNOCK_S", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AnyloomError) as caught:
        ray_session.start(1)
    said = str(caught.value)
    assert said.startswith(f"RAY_ADDRESS does not answer ({address}: ") and said.endswith("--no-ray") and said.isprintable()


def test_a_cluster_on_its_way_up_is_waited_for(monkeypatch):
    tried = []

    def connect(place, timeout):
        tried.append(place)
        if len(tried) < 3:
            raise ConnectionRefusedError
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    ray_session._knock("127.0.0.1:6379")
    assert tried == [("127.0.0.1", 6379)] * 3
    for address in ("auto", "local", "ray://127.0.0.1:1", ""):
        ray_session._knock(address)
    assert len(tried) == 3
