"""Which tests run in one process when several processes share the work (`make test`)."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of one file stay together, for what they share is made once; so do all that look at the run of the fixture `tiny`."""
    for item in items:
        group = "tiny" if "tiny" in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
