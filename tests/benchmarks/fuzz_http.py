"""Mutated and hostile HTTP answers to the fetcher of pipelines.shards, from a server on this machine: each class fixes its outcome beforehand.

The outcomes: the bytes that the server means, or a FetchError with the one reason that the answer was made for and one line about it. Never is another place
reached than a public address, and never does a fetch take much longer than its time.
"""

from __future__ import annotations

import argparse
import random
import time
from functools import partial
from pathlib import Path

import hostile_answers
import hostile_redirects
from http_case import HOST_URI, Case
from http_servers import CannedServer
from loopback import network
from mutations import Mutation, Wrong, fuzz

from pipelines.shards.download import FetchPolicy
from pipelines.shards.errors import FetchError
from pipelines.shards.fetch import fetch

CLASSES = hostile_answers.CLASSES | hostile_redirects.CLASSES
MOST_BYTES = 50_000
LATE_S = 1.5
"""How much longer than its time a fetch may take on a busy machine."""


def act(case: Case, rng: random.Random, box: Path) -> None:
    """Serve one answer, fetch it, and raise Wrong unless the outcome is the fixed one."""
    made = case.make(rng)
    policy = FetchPolicy(max_bytes=MOST_BYTES, timeout_s=case.timeout_s, attempts=case.attempts, backoff_s=0.01)
    began = time.monotonic()
    try:
        with CannedServer(made.answers) as server, network(server) as reached:
            outcome: bytes | FetchError = fetch(HOST_URI, box, policy)
    except FetchError as error:
        outcome = error
    took = time.monotonic() - began
    if reached:
        raise Wrong(f"reached {reached}")
    if took > case.timeout_s * case.attempts + LATE_S:
        raise Wrong(f"took {took:.1f} s of {case.timeout_s:g}")
    right = case.reason if made.reason is None else made.reason
    if isinstance(outcome, bytes):
        if right or outcome != made.body:
            raise Wrong(f"{right or len(made.body)}, but taken: {len(outcome)} bytes, {outcome[:60]!r}; {list(made.answers.values())[-1]!r:.200}")
        return
    if outcome.reason != right:
        raise Wrong(f"{outcome}, not {right or 'taken'}; {list(made.answers.values())[-1]!r:.200}")
    if not outcome.detail.isprintable() or len(outcome.detail) > 400 or "secret" in outcome.detail:
        raise Wrong(f"no line to print: {outcome.detail!r}")


def run(options: argparse.Namespace) -> list[dict]:
    """One entry over all classes."""
    return fuzz("http", {name: Mutation(partial(act, case), str(case)) for name, case in CLASSES.items()}, options)
