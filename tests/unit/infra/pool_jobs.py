"""What the tests of the step pool let it run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infra.step import AnyloomError


class Stubborn(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def pid() -> int:
    return os.getpid()


def slowly(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def threads() -> tuple[int, set[int], str]:
    """Of torch, of numpy's BLAS, and what libraries that come later will take."""
    import numpy  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    blas = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
    return torch.get_num_threads(), blas, os.environ["OMP_NUM_THREADS"]


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(code: int) -> None:
    os._exit(code)


def wrong() -> None:
    raise AnyloomError("shards: no such list; give one")


def stubborn() -> None:
    raise Stubborn("this", "that")


def local():
    return lambda: None


def write(words: str) -> None:
    print(words)
    print(words, file=sys.stderr)
    subprocess.run([sys.executable, "-c", f"print({words!r})"], check=True)


def note(path: Path, seconds: float = 0.0) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(seconds)
