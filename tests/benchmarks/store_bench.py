"""What the measurements of the embedding store share: interleaved pairs, one entry of the JSON, a root to measure on, steps without a scheduler."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_process import read_root

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from infra.artifact import find  # noqa: E402
from infra.step import Artifact, Resources, Step, StepContext  # noqa: E402

PARTS = ("image", "video", "audio")


def checksum(array: np.ndarray, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """(crc32, sum of the bits as uint16) over everything so far; reads every byte."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return zlib.crc32(flat.view(np.uint8), before[0]), before[1] + int(flat.view(np.uint16).sum(dtype=np.uint64))


def interleaved(sides: Mapping[str, Callable[[], tuple[float, Any]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, `rounds` times, in turn and in a rotating order. A side returns (seconds, what it computed).

    Raises RuntimeError when two sides computed different things.
    """
    names, seconds = list(sides), {name: [] for name in sides}
    expected: Any = None
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent, value = sides[name]()
            if expected is None:
                expected = value
            if value != expected:
                raise RuntimeError(f"the sides do not agree: {name} gives {value}, another side gave {expected}")
            seconds[name].append(spent)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over the rounds of how many times longer the first took."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def rates(name: str, seconds: Mapping[str, Sequence[float]], work: float, unit: str, seed: Any, note: Any) -> dict[str, Any]:
    """An entry in work per second from the seconds of `ours`, `peer` and `limit`."""
    median = {side: work / statistics.median(spent) for side, spent in seconds.items()}
    return {
        "name": name,
        **{side: round(median[side], 1) for side in ("ours", "peer", "limit")},
        "unit": unit,
        "ratio_peer": round(ratio(seconds["peer"], seconds["ours"]), 3),
        "ratio_limit": round(ratio(seconds["limit"], seconds["ours"]), 3),
        "runs": len(seconds["ours"]),
        "spread": {side: [round(work / max(spent), 1), round(work / min(spent), 1)] for side, spent in seconds.items()},
        "seed": seed,
        "note": note,
    }


def anyloom(*arguments: str) -> None:
    """One command of this tree's code. Raises RuntimeError when it fails."""
    command = [sys.executable, "-c", "import sys; from flows.cli.main import main; sys.exit(main())", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": python_path()})
    if done.returncode:
        raise RuntimeError(f"anyloom {' '.join(arguments)} failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")


def python_path() -> str:
    """PYTHONPATH that lets a child import this tree's packages before any installed copy."""
    return os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def pinned(count: int) -> Iterator[None]:
    """This process on `count` of its cores, with all its threads. Raises RuntimeError when it has fewer."""
    before = os.sched_getaffinity(0)
    if count > len(before):
        raise RuntimeError(f"{count} threads are asked for, but this process has {len(before)} cores")
    move(set(sorted(before)[:count]))
    try:
        yield
    finally:
        move(before)


def move(cores: set[int]) -> None:
    """Put every thread of this process on these cores; threads that it starts later inherit them."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:  # it has just ended
            continue


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="anyloom-bench-") as box:
        yield Path(box)


def ensure_root(given: Path | None, recipe: str, box: Path, extra: Sequence[str] = ()) -> Path:
    """A root with finished shards and weights of the recipe: the one given, or one made in `box`."""
    if given is not None:
        return read_root(given, recipe, "shards_*", "weights_*")
    anyloom("run", "shards_*", "weights_*", "--recipe", recipe, "--root", str(box / "runs"), "--no-prefect", "--no-ray", *extra)
    return box / "runs"


def inputs_of(step: Step, root: Path) -> dict[str, Artifact]:
    """The newest artifact of each input of a step."""
    found = {name: find(root, source.name) for name, source in step.inputs.items()}
    return {
        name: Artifact(name=record.name, path=path, fingerprint=record.fingerprint, digest=record.digest, result=record.result)
        for name, (path, record) in found.items()
    }


def context(box: Path, name: str, config: Any, inputs: Mapping[str, Artifact], threads: int = 1, stores: Path | None = None) -> StepContext:
    """Where a step's function runs without Ray: output, work and (unless given) stores below `box`."""
    made = StepContext(
        name=name,
        config=config,
        inputs=inputs,
        sources={},
        output=box / "output" / name,
        work=box / "work" / name,
        stores=stores or box / "stores",
        resources=Resources(threads=threads, workers=threads, use_ray=False),
    )
    for directory in (made.output, made.work, made.stores):
        directory.mkdir(parents=True, exist_ok=True)
    return replace(made)
