"""The house rules find what they look for."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    import house

    yield house
    sys.modules.pop("house")


def test_every_circle_of_imports_is_told(house):
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"c"}, "e": {"a"}}
    circles = list(house.circles_of(imports))
    assert {frozenset(circle) for circle in circles} == {frozenset("abc"), frozenset("cd")}
    assert all(circle[0] == circle[-1] and all(b in imports[a] for a, b in zip(circle, circle[1:], strict=False)) for circle in circles)
    assert not list(house.circles_of({"a": {"b"}, "b": {"c"}, "c": set()}))
