"""The demo with Ray and Prefect, ended again and again in four ways; every end must be clean, and the results those of an undisturbed run, byte for byte.

The ways, in seeded order and equally often: SIGKILL to the process group, SIGKILL to the main process, SIGTERM, Ctrl-C typed on a terminal. Each comes at a
seeded moment after the start (`--moments`, in seconds), and the next run goes on from there; a run that is done before its moment counts as no kill, its
results are compared, and the next one begins with a fresh root.

differences, lost, doubled: steps whose digest is another than in the undisturbed run (what a digest leaves out are the times below info/), that are missing,
and that have two artifacts or two runs in the history. unclean: interrupts (SIGTERM, Ctrl-C) that took longer than SOON_S, ended with another code than 143 or
130, or showed a traceback. left_running: ends after which a process of the run was still there GONE_S later.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from demo_process import check_code, digests, start, wait_end, working
from run_to_end import CODES, SOON_S, TERMINATED, TYPED, WAYS, Run

TIMEOUT_S = 7200.0
KILLS = 12


@dataclass(slots=True)
class Found:
    """What went wrong so far, in words, and what was done."""

    differences: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    left_running: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """Steps at work when a run was ended."""
    slowest_s: float = 0.0
    """Longest end of an interrupted run."""
    gone_s: float = 0.0
    """Longest time until nothing of an ended run was there."""
    finished: int = 0

    @property
    def wrong(self) -> dict[str, list[str]]:
        """Name of the count -> what was counted."""
        names = ("differences", "lost", "doubled", "unclean", "left_running")
        return {name: getattr(self, name) for name in names}


def run(options: argparse.Namespace) -> list[dict]:
    """One entry; raises RuntimeError when a run fails for another reason than our kill."""
    check_code()
    box, began = Path(tempfile.mkdtemp(prefix="anyloom-chaos-")), time.monotonic()
    reference = options.reference or box / "reference"
    if options.reference is None:
        finish(reference, options.recipe, box / "reference.log")
    rng, found = random.Random(options.seed), Found()
    earliest, latest = map(float, options.moments.split(","))
    ways = [way for _ in range(options.kills // len(WAYS) + 1) for way in rng.sample(WAYS, len(WAYS))]
    root, number = box / "disturbed-0", 0
    while found.ways.total() < options.kills:
        number += 1
        if attempt(root, options.recipe, box / f"{number}.log", ways[found.ways.total()], rng.uniform(earliest, latest), found):
            root = next_root(root, reference, options.recipe, found)
    if root.exists():
        finish(root, options.recipe, box / "last.log")
        next_root(root, reference, options.recipe, found)
    if any(found.wrong.values()):
        print(f"{found.wrong}; kept: {box}", file=sys.stderr)
    else:
        shutil.rmtree(box)
    note = (
        f"{options.recipe}, Ray and Prefect; {dict(found.ways)}; {found.finished} roots run to the end and compared; steps at work {dict(found.steps)}; "
        f"interrupts end within {found.slowest_s:.1f} s, nothing is left after {found.gone_s:.1f} s; {time.monotonic() - began:.0f} s in all"
    )
    counts = {name: len(what) for name, what in found.wrong.items()}
    return [{"name": "demo", "kills": found.ways.total(), **counts, "seed": options.seed, "note": note}]


def attempt(root: Path, recipe: str, log: Path, way: str, moment_s: float, found: Found) -> bool:
    """One run that is ended `moment_s` after its start; True when it is done before."""
    child = Run(root, recipe, log, typed=way == TYPED)
    try:
        try:
            child.process.wait(timeout=moment_s)
        except subprocess.TimeoutExpired:
            busy = working(root) if root.exists() else set()
            ended = child.end(way)
        else:
            busy, ended = set(), None
        remains, gone_s = child.remains()
    finally:
        child.close()
    if remains:
        found.left_running.append(f"{log.name}, {way}: {'; '.join(remains)}")
    if ended is None or ended.code == 0:
        if child.process.returncode != 0:
            raise RuntimeError(f"the run failed (exit {child.process.returncode}); log: {log}")
        return True
    found.ways[way] += 1
    found.steps.update(busy or ("none",))
    found.gone_s = max(found.gone_s, gone_s)
    said = log.read_text(errors="replace") if log.exists() else ""
    if way in (TERMINATED, TYPED):
        found.slowest_s = max(found.slowest_s, ended.seconds)
    if ended.code != CODES[way] or (way in (TERMINATED, TYPED) and (ended.seconds > SOON_S or "Traceback" in said)):
        found.unclean.append(f"{log.name}, {way}: exit {ended.code} after {ended.seconds:.1f} s, {said[-300:]!r}")
    print(
        f"{way} after {moment_s:.1f} s ({', '.join(sorted(busy)) or 'no step'}): exit {ended.code} in {ended.seconds:.1f} s, gone in {gone_s:.1f} s", flush=True
    )
    return False


def next_root(root: Path, reference: Path, recipe: str, found: Found) -> Path:
    """Compare a root that is done with the undisturbed one, and say where the next one is."""
    expected, got = digests(reference, recipe), digests(root, recipe)
    found.finished += 1
    found.differences += [f"{root.name}: {name}" for name in expected if name in got and got[name] != expected[name]]
    found.lost += [f"{root.name}: {name}" for name in expected if name not in got]
    found.doubled += [f"{root.name}: {name}" for name in expected if len(made(root, name)) > 1]
    runs, once = (sum(1 for _ in (place / "stores" / "history" / "run").glob("*.parquet")) for place in (root, reference))
    (found.doubled if runs > once else found.lost).extend([f"{root.name}: {runs} runs in the history instead of {once}"] * (runs != once))
    if not any(found.wrong.values()):
        shutil.rmtree(root)
    return root.with_name(f"disturbed-{found.finished}")


def made(root: Path, step: str) -> list[Path]:
    """The complete artifacts of a step."""
    return [path for path in (root / "artifacts" / step).glob("*/artifact.json") if not path.parent.name.startswith(".")]


def finish(root: Path, recipe: str, log: Path) -> None:
    """Run to the end. Raises RuntimeError when it fails or hangs."""
    wait_end(start(root, recipe, log), log, TIMEOUT_S)
