"""Kill -9 of embedding builds at `--kills` random moments, in turn with and without Ray; the store must be that of an undisturbed build, bit for bit.

Pictures, clips and sounds of the recipe, in small parts so that many are in flight. A kill aims at the moment when a random number of parts has been
committed by this build; it counts when it left parts of the build's plan undone, so it landed between the plan and the last part. When a disturbed build
reaches its end before the kills are used up, it is compared and a new one begins. Compared: every committed part (features, rows, record) and the
artifacts; counted: media that are missing from the disturbed store (lost) or stand in two committed parts (doubled).
`--root DIR`: finished shards and weights of the recipe to start from; they are copied.
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

from demo_process import PROJECT, check_code, digests, environment, kill_all, read_root, start, wait_end, wait_for, working

from infra.storage import RECORD, digest_tree, read_json
from pipelines.embed.fill import part_name
from pipelines.embed.space import SPACES

PARTS = ("image", "video", "audio")
TIMEOUT_S = 1800.0
KILLS = 3
PART_ROWS = {"tiny": (2, 2, 2)}
"""Recipe -> media per part of each of PARTS."""
OTHER_ROWS = (32, 8, 4)
AIMS = (0, 1, 1, 2, 3, 5)
"""Parts a build commits before it is killed."""
LOADING_S, BETWEEN_S = 2.0, 0.03
"""Upper bounds of the random time between that moment and the kill: before the first part, after it."""
MAX_ROUNDS = 20
AFTER = ("embed_*", "targets", "stage*", "states", "export", "eval_*", "history", "report")
"""Steps behind the shards and weights."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry; raises when a build fails for another reason than our kill, or when kills do not land."""
    check_code()
    box, began = Path(tempfile.mkdtemp(prefix="anyloom-chaos-")), time.monotonic()
    small = [word for part, rows in zip(PARTS, PART_ROWS.get(options.recipe, OTHER_ROWS), strict=True) for word in ("--set", f"{part}.part_rows={rows}")]
    if options.root is None:
        prepare(box / "base", options.recipe, small)
    else:
        copy_data(read_root(options.root, options.recipe, "shards_*", "weights_*"), box / "base")
    shutil.copytree(box / "base", box / "reference")
    log = box / "builds.log"
    finish(box / "reference", options.recipe, log, small)
    rng, kills, missed, rounds, progress = random.Random(options.seed), Counter[str](), 0, 0, []
    differing, lost, doubled = 0, 0, 0
    while kills.total() < options.kills:
        rounds += 1
        if rounds > MAX_ROUNDS:
            raise RuntimeError(f"only {kills.total()} of {options.kills} kills landed in {MAX_ROUNDS} builds; log: {log}")
        root = box / f"disturbed-{rounds}"
        shutil.copytree(box / "base", root)
        while kills.total() < options.kills:
            ended, where, state = attempt(root, options.recipe, log, small, rng, use_ray=kills.total() % 2 == 0)
            if ended:
                break
            missed += where is None
            if where is not None:
                kills[where] += 1
                progress.append(state)
                print(f"killed in {where}, parts done {state}", flush=True)
        finish(root, options.recipe, log, small)
        found = compare(box / "reference", root, options.recipe, small)
        differing, lost, doubled = (a + b for a, b in zip((differing, lost, doubled), found, strict=True))
    media = len(addresses(box / "reference"))
    what = f"{options.recipe}; {media} media in {len(parts(box / 'reference'))} parts; {rounds} builds compared"
    hits = f"kills {dict(sorted(kills.items()))}, parts done then {progress}; {missed} more kills hit before or after the parts"
    note = f"{what}; {hits}; {time.monotonic() - began:.0f} s"
    if differing or lost or doubled:
        print(f"kept: {box}", file=sys.stderr)
    else:
        shutil.rmtree(box)
    return [{"name": "embed", "kills": kills.total(), "differences": differing, "lost": lost, "doubled": doubled, "seed": options.seed, "note": note}]


def prepare(root: Path, recipe: str, extra: list[str]) -> None:
    """Everything before the embeddings. Raises RuntimeError when it fails."""
    command = [str(Path(sys.executable).with_name("anyloom")), "run", "shards_*", "weights_*", "--recipe", recipe, "--root", str(root), *extra]
    done = subprocess.run(
        [*command, "--no-prefect", "--no-ray", "--threads", "1"], cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise RuntimeError(f"the shards and weights could not be made:\n{done.stdout[-1000:]}\n{done.stderr[-1000:]}")


def copy_data(given: Path, root: Path) -> None:
    """A root with what the embeddings are made from, and nothing after it."""
    shutil.copytree(given / "artifacts", root / "artifacts", ignore=shutil.ignore_patterns(*AFTER))
    shutil.copytree(given / "stores" / "shards", root / "stores" / "shards")


def finish(root: Path, recipe: str, log: Path, extra: list[str]) -> None:
    """Build to the end. Raises RuntimeError when it fails or hangs."""
    wait_end(start(root, recipe, log, *extra, "--no-prefect", "--no-ray", command=("embed", "build")), log, TIMEOUT_S)


def attempt(root: Path, recipe: str, log: Path, extra: list[str], rng: random.Random, use_ray: bool) -> tuple[bool, str | None, str]:
    """One build that is killed. Returns (it ended before that, the step that the kill left with parts undone, its parts `done/planned`)."""
    aim = rng.choice(AIMS)
    delay = rng.uniform(0, BETWEEN_S if aim else LOADING_S)
    before = len(parts(root))
    child = start(root, recipe, log, *extra, "--no-prefect", *(() if use_ray else ("--no-ray",)), command=("embed", "build"))
    if not wait_for(lambda: bool(at_work(root)) and len(parts(root)) >= before + aim, child, log, TIMEOUT_S, every_s=0.002):
        return True, None, ""
    time.sleep(delay)
    busy = at_work(root)
    kill_all(child)
    if child.returncode != -9:
        return True, None, ""
    left = {step: count for step, count in undone(root).items() if step in busy}
    if not left:
        return False, None, ""
    how = "Ray" if use_ray else "threads"
    return False, f"{' and '.join(left)} ({how})", ", ".join(f"{done}/{planned}" for done, planned in left.values())


def at_work(root: Path) -> list[str]:
    """Steps that have parts of their plan to do, and a process that holds them."""
    return sorted(working(root) & undone(root).keys())


def undone(root: Path) -> dict[str, tuple[int, int]]:
    """Step -> (committed, planned) parts of every plan on disk that is not done."""
    found = {}
    for path in sorted((root / "work").glob("*/*/plan.json")):
        try:
            plan = read_json(path)
        except FileNotFoundError:  # the step has just ended
            continue
        names = [part_name(part) for part in plan["parts"]]
        done = sum((root / "stores" / SPACES / plan["space"] / "parts" / name / RECORD).exists() for name in names)
        if done < len(names):
            found[path.parent.parent.name] = (done, len(names))
    return found


def parts(root: Path) -> dict[str, Path]:
    """Committed parts by their path in the store."""
    return {path.parent.relative_to(root).as_posix(): path.parent for path in sorted((root / "stores" / SPACES).glob(f"*/parts/*/{RECORD}"))}


def addresses(root: Path) -> list[str]:
    """space/address of every row of every committed part."""
    import pyarrow.parquet as pq

    found = []
    for path in parts(root).values():
        found += [f"{path.parent.parent.name}/{address}" for address in pq.read_table(path / "rows.parquet").column("media_sha256").to_pylist()]
    return found


def compare(reference: Path, root: Path, recipe: str, extra: list[str]) -> tuple[int, int, int]:
    """(differing parts and artifacts, lost media, doubled media)."""
    wanted, got = ({name: digest_tree(path, skip=()) for name, path in parts(where).items()} for where in (reference, root))
    overrides = {key: int(value) for key, value in (pair.split("=") for pair in extra[1::2])}
    steps = [{name: digest for name, digest in digests(where, recipe, overrides).items() if name.startswith("embed_")} for where in (reference, root)]
    differing = sum(wanted.get(name) != got.get(name) for name in wanted.keys() | got.keys()) + sum(steps[1].get(name) != d for name, d in steps[0].items())
    expected, found = Counter(addresses(reference)), Counter(addresses(root))
    return differing, len(expected.keys() - found.keys()), sum(count > 1 for count in found.values())
