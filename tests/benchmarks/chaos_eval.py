"""Kill -9 of an evaluation at `--kills` random moments; no answer is computed twice beyond the batch in flight, and the history ends the same.

Stand-in suites of the recipe (all conditions) from a finished export, in small batches. A kill aims at the moment when a random number of batches has
been persisted by this run, and falls a random time after it; it counts when the run had begun to answer and had answers left. When a disturbed run reaches
its end before the kills are used up, it is compared and a new one begins. Every batch is named in the answer file before it is computed, so what was
computed is counted, not believed: in each run that is compared, every kill that counts may have one batch begun once more. Compared with an undisturbed
run: the artifacts of the suites and the rows of the history (all but the time of the run); counted: answers that are missing from the history (lost) or
were computed twice though they had been persisted (doubled). `--root DIR`: a run of the recipe to start from; its artifacts and stores are copied, and what
is missing in them is made first, on every core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from demo_process import check_code, digests, kill_all, read_root, start, wait_end, wait_for

from evals.harness.answers import AnswerFile

GOALS = ("eval_stamps_as_mmbench", "eval_words_as_textvqa", "history")
SETTINGS = {"suites": ["stand_in"], "suite.chunk": 6, "suite.bootstrap_draws": 50}
OTHER = {"suite.chunk": 24, "suite.num_questions": 96}
"""For recipes that are not tiny."""
AIMS = (0, 1, 1, 2, 3, 5)
"""Batches a run persists before it is killed."""
TINY_BETWEEN_S, OTHER_BETWEEN_S = 0.15, 3.0
"""Upper bounds of the random time between that moment and the kill."""
KILLS = 20
TIMEOUT_S, BASE_TIMEOUT_S, MAX_ROUNDS = 1800.0, 4 * 3600.0, 40


def run(options: argparse.Namespace) -> list[dict]:
    """One entry; raises RuntimeError when a run fails for another reason than our kill, or when kills do not land."""
    check_code()
    box, began = Path(tempfile.mkdtemp(prefix="anyloom-chaos-")), time.monotonic()
    settings = SETTINGS | ({} if options.recipe.startswith("tiny") else OTHER)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    log = box / "runs.log"
    if options.root is not None:
        root = read_root(options.root, options.recipe)
        for folder in ("artifacts", "stores"):
            shutil.copytree(root / folder, box / "base" / folder)
    finish(box / "base", options.recipe, log, [], ("history",), threads=os.cpu_count() or 1, timeout_s=BASE_TIMEOUT_S)
    strip(box / "base")
    shutil.copytree(box / "base", box / "reference")
    finish(box / "reference", options.recipe, log, words, GOALS)
    wanted, (done, answers) = history_rows(box / "reference"), batches(box / "reference")
    rng, kills, missed, rounds, where = random.Random(options.seed), 0, 0, 0, Counter[str]()
    found: Counter[str] = Counter()
    while kills < options.kills:
        rounds += 1
        if rounds > MAX_ROUNDS:
            raise RuntimeError(f"only {kills} of {options.kills} kills landed in {MAX_ROUNDS} runs; log: {log}")
        root, here = box / f"disturbed-{rounds}", 0
        shutil.copytree(box / "base", root)
        while kills + here < options.kills and attempt(root, options.recipe, log, words, rng):
            batches_done, answered = batches(root)
            if answered < answers:
                here += 1
                where[f"{batches_done} batches done"] += 1
            else:
                missed += 1
        finish(root, options.recipe, log, words, GOALS)
        kills += here
        found.update(compare(box / "reference", root, options.recipe, settings, wanted, here))
        if not found["differences"] + found["lost"] + found["doubled"]:
            shutil.rmtree(root)
    note = {
        "recipe": options.recipe,
        "answers": answers,
        "batches": done,
        "runs compared": rounds,
        "begun again": found["again"],
        "kills after the last answer": missed,
        "killed at": dict(sorted(where.items())),
        "seconds": round(time.monotonic() - began),
    }
    counts = {name: found[name] for name in ("differences", "lost", "doubled")}
    if sum(counts.values()):
        print(f"kept: {box}", file=sys.stderr)
    else:
        shutil.rmtree(box)
    return [{"name": "eval", "kills": kills, **counts, "seed": options.seed, "note": note}]


def strip(root: Path) -> None:
    """Take away what every run makes anew: suites, answers, features and history."""
    for pattern in (
        "artifacts/eval_*_as_vqav2",
        "artifacts/eval_*_as_mmbench",
        "artifacts/eval_*_as_textvqa",
        "artifacts/history",
        "artifacts/report",
        "stores/answers",
        "stores/eval_features",
        "stores/history",
        "history.duckdb*",
    ):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def begin(root: Path, recipe: str, log: Path, words: list[str], goals: tuple[str, ...], threads: int = 1) -> subprocess.Popen[bytes]:
    """A run in processes of its own, without schedulers."""
    return start(root, recipe, log, *goals, *words, "--no-prefect", "--no-ray", "--threads", str(threads))


def finish(root: Path, recipe: str, log: Path, words: list[str], goals: tuple[str, ...], threads: int = 1, timeout_s: float = TIMEOUT_S) -> None:
    """Run to the end. Raises RuntimeError naming the log when it fails or takes longer; then it is ended."""
    wait_end(begin(root, recipe, log, words, goals, threads), log, timeout_s)


def attempt(root: Path, recipe: str, log: Path, words: list[str], rng: random.Random) -> bool:
    """One run that is killed after it has begun to answer; False when it reached its end before. Raises RuntimeError when it fails on its own."""
    aim, delay = rng.choice(AIMS), rng.uniform(0, TINY_BETWEEN_S if recipe.startswith("tiny") else OTHER_BETWEEN_S)
    before = count_lines(root)

    def there() -> bool:
        now = count_lines(root)
        return now["begun"] > before["begun"] and now["batches"] >= before["batches"] + aim

    child = begin(root, recipe, log, words, GOALS)
    if not wait_for(there, child, log, TIMEOUT_S, every_s=0.005):
        return False
    time.sleep(delay)
    kill_all(child)
    if child.returncode not in (0, -9):
        raise RuntimeError(f"the run failed on its own (exit {child.returncode}); log: {log}")
    return child.returncode == -9


def count_lines(root: Path) -> dict[str, int]:
    """begun: batches named so far; batches: those whose answers are there."""
    begun = batches_done = 0
    for path in (root / "stores" / "answers").glob("*.jsonl"):
        kinds = ["begun" in line[:12] for line in path.read_text(errors="replace").splitlines()]
        begun += sum(kinds)
        batches_done += sum(first and not second for first, second in itertools.pairwise(kinds))
    return {"begun": begun, "batches": batches_done}


def batches(root: Path) -> tuple[int, int]:
    """(batches with answers, answers) of a root. Looks at copies: opening an answer file cuts off a torn line."""
    with tempfile.TemporaryDirectory(prefix="anyloom-answers-") as box:
        copies = [shutil.copy(path, box) for path in (root / "stores" / "answers").glob("*.jsonl")]
        return count_lines(root)["batches"], sum(len(AnswerFile(Path(path)).replies) for path in copies)


def history_rows(root: Path) -> dict[str, list[str]]:
    """Table -> its rows as sorted JSON, all but when the run was and from which commit."""
    import pyarrow.parquet as pq

    found: dict[str, list[str]] = {}
    for path in sorted((root / "stores" / "history").glob("*/*.parquet")):
        rows = [{key: value for key, value in row.items() if key not in ("evaluated", "git_commit")} for row in pq.read_table(path).to_pylist()]
        found.setdefault(path.parent.name, []).extend(sorted(json.dumps(row, sort_keys=True, default=str) for row in rows))
    return found


def compare(reference: Path, root: Path, recipe: str, settings: dict[str, Any], wanted: dict[str, list[str]], kills: int) -> dict[str, int]:
    """differences: artifacts and history rows that are not the reference's; lost: rows of it that are missing; doubled: answers computed again though they
    were persisted; again: batches begun again, of which every kill may leave one."""
    ours, theirs = (digests(where, recipe, settings) for where in (root, reference))
    names = [name for name in theirs if name.startswith("eval_")]
    rows, known = history_rows(root), {table: Counter(lines) for table, lines in wanted.items()}
    extra = sum((Counter(rows.get(table, [])) - lines).total() for table, lines in known.items())
    lost = sum((lines - Counter(rows.get(table, []))).total() for table, lines in known.items())
    again = doubled = 0
    for path in (root / "stores" / "answers").glob("*.jsonl"):
        again += sum(count - 1 for count in AnswerFile(path).begun.values())
        doubled += repeated(path)
    return {
        "differences": sum(ours.get(name) != theirs[name] for name in names) + extra + (rows.keys() != known.keys()),
        "lost": lost,
        "doubled": doubled + max(0, again - kills),
        "again": again,
    }


def repeated(path: Path) -> int:
    """Batches that were begun although their answers stood whole in the file."""
    persisted: set[str] = set()
    wrong, current, size, seen = 0, "", 0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line.partition("\t")[0])
        if "begun" in row:
            current, size, seen = row["begun"], row["answers"], 0
            wrong += current in persisted
        else:
            seen += 1
            if seen == size:
                persisted.add(current)
    return wrong
