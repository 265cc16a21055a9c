"""Second run of the whole demo against its first: how much of the work identity saves.

ours: seconds of `anyloom run` when everything is done (median of 5); peer: seconds of the cold run, which is what a system without identity
spends again (single run; with `--root DIR`, a finished run, the seconds its steps recorded); limit: seconds of `anyloom --help`, the least a
Python command line can take (median of 5).
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))


def run(options: argparse.Namespace) -> list[dict]:
    """One entry. Raises when a run fails or the second run executes anything."""
    root = options.root or Path(tempfile.mkdtemp(prefix="anyloom-bench-")) / "runs"
    command = ["run", "--recipe", options.recipe, "--root", str(root)]
    cold = recorded_seconds(options.recipe, root) if options.root else seconds(command)[0]
    pairs = [(seconds(command), seconds(["--help"])) for _ in range(5)]
    for (_, output), _ in pairs:
        if not re.search(r"\b0 of \d+ steps executed", output):
            raise RuntimeError(f"the second run executed steps:\n{output[-2000:]}")
    warm, floor = [a[0] for a, _ in pairs], [b[0] for _, b in pairs]
    if not options.root:
        shutil.rmtree(root.parent)
    ours, limit = statistics.median(warm), statistics.median(floor)
    return [
        {
            "name": "demo_rerun",
            "ours": round(ours, 3),
            "peer": round(cold, 1),
            "limit": round(limit, 3),
            "unit": "s",
            "ratio_peer": round(cold / ours, 1),
            "ratio_limit": round(limit / ours, 3),
            "runs": 5,
            "spread": [round(min(warm), 3), round(max(warm), 3)],
            "seed": 0,
            "note": f"{options.recipe}; the cold run is a single run{', the sum of its steps' if options.root else ''}; 0 steps executed in each second run",
        }
    ]


def recorded_seconds(recipe: str, root: Path) -> float:
    """Seconds of all steps of a finished run, by their records. Raises AnyloomError when it is not finished."""
    from flows.running.run import recipe_steps
    from infra.plan import DONE, plan
    from infra.step import AnyloomError

    rows = plan(recipe_steps(recipe, {}).values(), root)
    open_steps = [row.step.name for row in rows if row.status != DONE or row.record is None]
    if open_steps:
        raise AnyloomError(f"--root {root} is not a finished run ({', '.join(open_steps)}); make it first: anyloom run --recipe {recipe} --root {root}")
    return sum(row.record.provenance.seconds for row in rows if row.record)


def seconds(arguments: list[str]) -> tuple[float, str]:
    """Wall seconds and output of one command. Raises when it fails."""
    started = time.monotonic()
    done = subprocess.run([ANYLOOM, *arguments], cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return time.monotonic() - started, done.stdout
