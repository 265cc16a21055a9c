"""Which tests run in one process when several processes share the work (`make test`), and what all of them say to the runs they start."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
os.environ.setdefault("ANYLOOM_BACKGROUND_PRIORITY", "normal")  # the other tests leave nothing over that a background step could live on


@cache
def group_of(file: str) -> str:
    """The tests of one file stay together, for what they share is made once; so do all files that look at the run of the fixture `tiny`, or at a copy of it."""
    return "tiny" if re.search(r"^def test_\w+\([^)]*\b(tiny|copy)\b", (PROJECT / file).read_text(), re.M) else file


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Hands the groups out in the order of the files."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return ByGroup(config, log)
