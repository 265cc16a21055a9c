"""Noise that is a function of what it falls on and the training step, not of a random generator.

A generator's numbers depend on what was drawn before: on the other items of the batch, on the number of ranks, on what other threads do. Numbers hashed
from (item, draw, place) give the same bytes after a restart, and another world size changes rounding only. Owns the hash.
"""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1


def signed(value: int) -> int:
    """A 64-bit pattern as torch's int64 holds it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_STEP, _FIRST, _SECOND = signed(0x9E3779B97F4A7C15), signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64 of int64 patterns (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = x + _STEP
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def uniform(x: torch.Tensor) -> torch.Tensor:
    """int64 patterns -> float64 in (0, 1)."""
    return (_shifted(mix(x), 11).double() + 0.5) / (1 << 53)


def mixed(value: int) -> int:
    """mix of one number."""
    return int(mix(torch.tensor(signed(value))))
