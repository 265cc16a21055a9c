"""Seeded construction of modules: the same seed gives the same weights, and what is drawn elsewhere stays as it was.

Input: a seed. Output: inside `seeded` torch's generator (the CPU's, where modules are built) gives the stream of torch.manual_seed(seed); its state
comes back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random operations on the CPU read the stream that torch.manual_seed(seed) would give."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
