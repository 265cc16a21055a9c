"""When Ray does not come up, the run says so and what to do."""

import pytest
import ray

from infra import ray_session
from infra.step import AnyloomError


@pytest.mark.parametrize(("address", "says"), [("", "Ray did not start"), ("127.0.0.1:1", "RAY_ADDRESS does not answer")])
def test_a_cluster_that_does_not_come_up_is_one_line_with_a_remedy(address, says, monkeypatch):
    def late(**_):
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setenv("RAY_ADDRESS", address) if address else monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(AnyloomError, match=rf"^{says} \(The current node timed out during startup\.\).*--no-ray$"):
        ray_session.start(1)
