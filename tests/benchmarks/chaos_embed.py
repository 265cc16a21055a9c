"""Kill -9 of embedding builds at `--kills` random moments (with and without Ray); the store must be that of an undisturbed build, bit for bit.

Pictures, clips and sounds of the recipe, in small parts so that many are in flight. When a disturbed build reaches its end before the kills are used
up, it is compared and a new one begins. Compared: every committed part (features, rows, record) and the artifacts; counted: media that are missing
from the disturbed store (lost) or stand in two committed parts (doubled).
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
from pathlib import Path

from demo_process import PROJECT, digests, kill_all, start, wait_for, working

PARTS = ("image", "video", "audio")
TIMEOUT_S = 1800.0
WAITS_S = (0.3, 1.5, 4.0)
"""Upper bounds of the random time between the moment a build is at work and its kill."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry; raises when a build fails for another reason than our kill."""
    box, began = Path(tempfile.mkdtemp(prefix="anyloom-chaos-")), time.monotonic()
    small = [argument for part in PARTS for argument in ("--set", f"{part}.part_rows={4 if part == 'audio' else 8}")]
    prepare(box / "base", options.recipe, small)
    shutil.copytree(box / "base", box / "reference")
    log = box / "builds.log"
    if start(box / "reference", options.recipe, log, *small, command=("embed", "build")).wait(TIMEOUT_S) != 0:
        raise RuntimeError(f"the undisturbed build failed; log: {log}")
    rng, kills, rounds = random.Random(options.seed), Counter[str](), 0
    differing, lost, doubled = 0, 0, 0
    while kills.total() < options.kills:
        rounds += 1
        root = box / f"disturbed-{rounds}"
        shutil.copytree(box / "base", root)
        while kills.total() < options.kills and attempt(root, options.recipe, log, small, rng, kills):
            pass
        if start(root, options.recipe, log, *small, command=("embed", "build")).wait(TIMEOUT_S) != 0:
            raise RuntimeError(f"the build after the kills failed; log: {log}")
        found = compare(box / "reference", root, options.recipe, small)
        differing, lost, doubled = (a + b for a, b in zip((differing, lost, doubled), found, strict=True))
    media = sum(Counter(addresses(box / "reference")).values())
    what = f"{options.recipe}; {media} media in {len(parts(box / 'reference'))} parts; {rounds} builds"
    note = f"{what}; kills while at work on {dict(sorted(kills.items()))}; {time.monotonic() - began:.0f} s"
    if differing or lost or doubled:
        print(f"kept: {box}", file=sys.stderr)
    else:
        shutil.rmtree(box)
    return [{"name": "embed", "kills": kills.total(), "differences": differing, "lost": lost, "doubled": doubled, "seed": options.seed, "note": note}]


def prepare(root: Path, recipe: str, extra: list[str]) -> None:
    """Everything before the embeddings."""
    command = [str(Path(sys.executable).with_name("anyloom")), "run", "shards_*", "weights_*", "--recipe", recipe, "--root", str(root), *extra]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=TIMEOUT_S)


def attempt(root: Path, recipe: str, log: Path, extra: list[str], rng: random.Random, kills: Counter[str]) -> bool:
    """One build that is killed at a random moment after it has begun to embed. False when it reached its end first."""
    how = ("--no-prefect", *(() if rng.random() < 0.5 else ("--no-ray",)))
    delay = rng.uniform(0, rng.choice(WAITS_S))
    child = start(root, recipe, log, *extra, *how, command=("embed", "build"))
    if not wait_for(lambda: any(name.startswith("embed_") for name in working(root)), child, TIMEOUT_S):
        if child.returncode != 0:
            raise RuntimeError(f"the build failed on its own (exit {child.returncode}); log: {log}")
        return False
    time.sleep(delay)
    busy = sorted(name for name in working(root) if name.startswith("embed_"))
    kill_all(child)
    if child.returncode == -9:
        kills[busy[0] if busy else "between steps"] += 1
    return child.returncode == -9


def parts(root: Path) -> dict[str, Path]:
    """Committed parts by their path in the store."""
    return {path.parent.relative_to(root).as_posix(): path.parent for path in sorted((root / "stores" / "embeddings").glob("*/parts/*/record.json"))}


def addresses(root: Path) -> list[str]:
    """space/address of every row of every committed part."""
    import pyarrow.parquet as pq

    found = []
    for path in parts(root).values():
        found += [f"{path.parent.parent.name}/{address}" for address in pq.read_table(path / "rows.parquet").column("media_sha256").to_pylist()]
    return found


def compare(reference: Path, root: Path, recipe: str, extra: list[str]) -> tuple[int, int, int]:
    """(differing parts and artifacts, lost media, doubled media)."""
    from infra.storage import digest_tree

    wanted, got = ({name: digest_tree(path, skip=()) for name, path in parts(where).items()} for where in (reference, root))
    overrides = {key: int(value) for key, value in (pair.split("=") for pair in extra[1::2])}
    steps = [{name: digest for name, digest in digests(where, recipe, overrides).items() if name.startswith("embed_")} for where in (reference, root)]
    differing = sum(wanted.get(name) != got.get(name) for name in wanted.keys() | got.keys()) + sum(steps[1].get(name) != d for name, d in steps[0].items())
    expected, found = Counter(addresses(reference)), Counter(addresses(root))
    return differing, len(expected.keys() - found.keys()), sum(count > 1 for count in found.values())
