"""The benchmark history. In Python: `from evals.history import connect, runs, samples` (evals/history/frames.py), loaded when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.history.frames import connect, runs, samples

__all__ = ["connect", "runs", "samples"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from evals.history import frames

    return getattr(frames, name)
