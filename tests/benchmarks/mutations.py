"""Mutation classes: damaged input whose right outcome is fixed before it is made, and the count of what came out otherwise.

Input: classes by name. Output: one entry of build/fuzz.json. A crash is any exception but Wrong, or an input that takes longer than its time; a wrong reason is
Wrong, raised by the class itself.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LIMIT_S = 60.0
"""Longest time of one input."""
MEMORY = Path("/dev/shm")
"""Where inputs are made, if it is there: nothing here is about disks, and what is tested waits for them."""
SHOWN = 400
"""Characters of an outcome that are printed."""


class Wrong(Exception):
    """The outcome was another than the one that was fixed."""


class Hung(BaseException):
    """An input took longer than its time. No Exception: what is tested may catch those."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One class."""

    act: Callable[[random.Random, Path], object]
    """Makes an input in an empty directory, gives it to what is tested, and raises Wrong for another outcome than the fixed one."""
    expected: str
    """The outcome in words."""


def fuzz(name: str, mutations: Mapping[str, Mutation], options: argparse.Namespace) -> list[dict]:
    """One entry over all classes, `options.inputs` inputs each; the seed, the class and the number of an input decide what it is."""
    found = {"crashes": 0, "wrong_reason": 0}
    per_class = {}
    for title, mutation in mutations.items():
        bad = 0
        for number in range(options.inputs):
            rng = random.Random(f"{options.seed}/{title}/{number}")
            with tempfile.TemporaryDirectory(prefix="anyloom-fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as box:
                what, said = _tried(mutation, rng, Path(box))
            if what:
                found[what] += 1
                bad += 1
                print(f"{what} in '{title}' input {number}: {ascii(said)[:SHOWN]}", flush=True)
        per_class[title] = {"inputs": options.inputs, "bad": bad, "expected": mutation.expected}
    return [{"name": name, "inputs": options.inputs * len(mutations), **found, "per_class": per_class, "seed": options.seed}]


def _tried(mutation: Mutation, rng: random.Random, box: Path) -> tuple[str, str]:
    """What is wrong with the outcome of one input, and how it shows; "" twice when it is right."""
    try:
        with within(LIMIT_S):
            mutation.act(rng, box)
    except Wrong as wrong:
        return "wrong_reason", str(wrong)
    except (Exception, Hung) as error:
        return "crashes", f"{type(error).__name__}: {error}"
    return "", ""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises Hung in the main thread when the body takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hung(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
