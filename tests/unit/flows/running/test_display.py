"""Rates a person can read."""

import pytest

from flows.running.display import human_rate


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [(1, 200, 9, ""), (0.5, 1, 3, ""), (10, 200, 4, "2.5/s"), (10, 200, 40, "4.0 s each")],
)
def test_rates(done, total, seconds, said):
    assert human_rate(done, total, seconds) == said
