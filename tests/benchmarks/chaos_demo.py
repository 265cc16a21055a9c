"""Kill -9 of the whole demo in every phase; the end must be that of an undisturbed run, byte for byte.

Phases: data, embed, stage1, stage2, stage3, evaluation. In each, `--kills` SIGKILLs of the driver and all its Ray and Prefect processes, spread
over the phase's steps, at seeded random moments while such a step works. `report` and `history` hold times of the run itself, so their bytes are not compared;
scores, weights, shards and embeddings are.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from demo_process import digests, kill_all, start, wait_end, wait_for, working

PHASES = {
    "data": ("lists", "shards_instruct"),
    "embed": ("embed_audio", "embed_video", "embed_image"),
    "stage1": ("stage1",),
    "stage2": ("states", "stage2"),
    "stage3": ("stage3",),
    "evaluation": ("eval_captions", "eval_vqa"),
}
"""The steps that are killed, in the order they run."""
BRIEF_S = {"shards_instruct": 0.7}
"""Steps that may be over before a longer wait is."""
TIMEOUT_S = 7200.0
KILLS = 3
"""Of each phase."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry; raises when a run fails for another reason than our kill."""
    box = Path(tempfile.mkdtemp(prefix="anyloom-chaos-"))
    seconds = time.monotonic()
    reference = options.reference
    if reference is None:
        reference = box / "reference"
        finish(reference, options.recipe, box / "reference.log")
    expected = digests(reference, options.recipe)
    root, log = box / "disturbed", box / "disturbed.log"
    kills: dict[str, list[str]] = {phase: [] for phase in PHASES}
    rng = random.Random(options.seed)
    while any(len(hits) < options.kills for hits in kills.values()):
        before = sum(map(len, kills.values()))
        attempt(root, options.recipe, log, kills, options.kills, rng)
        if sum(map(len, kills.values())) == before:
            break  # the run ended before the next kill: report what was reached
    finish(root, options.recipe, log)
    found = digests(root, options.recipe)
    compared = list(expected)
    differing = [name for name in compared if name in found and found[name] != expected[name]]
    lost = [name for name in expected if name not in found]
    doubled = [name for name in expected if len([p for p in (root / "artifacts" / name).glob("*/artifact.json") if not p.parent.name.startswith(".")]) > 1]
    short = {phase: len(hits) for phase, hits in kills.items() if len(hits) < options.kills}
    if short:
        raise RuntimeError(f"fewer than {options.kills} kills in {short}; log: {log}")
    note = (
        f"{options.recipe}; kills per phase { {p: len(h) for p, h in kills.items()} }; steps hit {sorted({s for h in kills.values() for s in h})}; "
        f"{len(compared)} steps compared; {time.monotonic() - seconds:.0f} s"
    )
    if differing or lost or doubled:
        print(f"differing {differing}, lost {lost}, doubled {doubled}; kept: {box}", file=sys.stderr)
    else:
        shutil.rmtree(box)
    return [
        {
            "name": "demo",
            "kills": sum(map(len, kills.values())),
            "differences": len(differing),
            "lost": len(lost),
            "doubled": len(doubled),
            "seed": options.seed,
            "note": note,
        }
    ]


def attempt(root: Path, recipe: str, log: Path, kills: dict[str, list[str]], wanted: int, rng: random.Random) -> None:
    """One run that is killed while a step of a phase with too few kills works."""
    child = start(root, recipe, log)

    def target() -> tuple[str, str] | None:
        busy = working(root)
        for phase, steps in PHASES.items():
            number = len(kills[phase])
            for place, step in enumerate(steps):
                if number < wanted and step in busy and place >= number * len(steps) // wanted:
                    return phase, step
        return None

    delay = rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 8)))  # at once, early, or deep inside
    while True:
        if not wait_for(lambda: target() is not None, child, log, TIMEOUT_S):
            return
        aim = target()
        if aim is not None:
            time.sleep(min(delay, BRIEF_S.get(aim[1], delay)))
        hit = target()
        if hit is not None:  # still at work: the kill lands inside the phase
            break
        delay = 0.0
    died = kill_all(child)
    if child.returncode == -9:
        kills[hit[0]].append(hit[1])
        print(f"killed {died} processes in {hit[0]} ({hit[1]})", flush=True)


def finish(root: Path, recipe: str, log: Path) -> None:
    """Run to the end. Raises RuntimeError when it fails or hangs."""
    wait_end(start(root, recipe, log), log, TIMEOUT_S)
