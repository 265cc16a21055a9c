"""Left out: what training cannot use or an evaluation cannot ask or score, each with its reason.

Owns how it is summed up and how much of it there may be. Input: what a step found missing, too long or refused by an encoder. Output: lines for `left_out` in a
step's result, and the problem where more is left out than a step allows. Raises ValueError for a limit that is no share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

NO_FEATURES = "no_features"
CUT, LEFT_OUT = "cut", "left_out"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """One record, medium or caption that is not used as it is."""

    key: str
    """Sample key, or the caption itself."""
    source: str = ""
    """Dataset; "" where the step knows only one."""
    status: str = LEFT_OUT
    """`cut`: some of it is used; `left_out`: nothing is."""
    reason: str
    """One word."""
    detail: str


def summarize(left: Sequence[LeftOut], total: int, what: str) -> list[str]:
    """A line that says how many of `total` these are, why, and which is the first; none where nothing is. what: `records of easyvqa_test are not asked`."""
    if not left:
        return []
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(one.reason for one in left).items()))
    return [f"{len(left)} of {total} {what} ({reasons}), the first is {left[0].key}: {left[0].detail}"]


def too_many(left: Sequence[LeftOut], total: int, allowed: float, what: str) -> str:
    """What is wrong when a larger share than `allowed` is left out, with the remedy; "" when it is not. Raises ValueError when `allowed` is no share."""
    if not 0 <= allowed <= 1:
        raise ValueError(f"max_lost is {allowed}: it is a share, from 0 to 1")
    if len(left) <= allowed * total:
        return ""
    return f"{summarize(left, total, what)[0]}; these are more than max_lost {allowed:g} of them: mend the list, or set max_lost"
