"""Kill -9 of an evaluation at `--kills` random moments; no answer is computed twice beyond the batch in flight, and the history ends the same.

Stand-in suites of the recipe (all conditions) from a finished export, in small batches. A kill aims at the moment when a random number of batches has
been persisted by this run, and falls a random time after it; it counts when the run had begun to answer and had answers left. When a disturbed run reaches
its end before the kills are used up, it is compared and a new one begins. Every batch is named in the answer file before it is computed, so what was
computed is counted, not believed: a batch may be begun once more for every kill that fell into it. Compared with an undisturbed run: the artifacts of the
suites and the rows of the history (all but the time of the run); counted: answers that are missing from the history (lost) or were computed twice though
they had been persisted (doubled). `--root DIR`: a finished run of the recipe to start from; it is copied.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from demo_process import check_code, digests, kill_all, start, wait_for

from evals.answers import AnswerFile

GOALS = ("eval_stamps_as_mmbench", "eval_words_as_textvqa", "history")
SETTINGS = {"suites": ["stand_in"], "suite.chunk": 6, "suite.bootstrap_draws": 50}
OTHER = {"suite.chunk": 24, "suite.num_questions": 96}
"""For recipes that are not tiny."""
AIMS = (0, 1, 1, 2, 3, 5)
"""Batches a run persists before it is killed."""
BETWEEN_S = {"tiny": 0.15}
OTHER_BETWEEN_S = 3.0
"""Upper bound of the random time between that moment and the kill."""
TIMEOUT_S, MAX_ROUNDS = 1800.0, 40
AFTER = ("eval_*", "history", "report")
"""Steps that every run makes anew."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry; raises when a run fails for another reason than our kill, or when kills do not land."""
    check_code()
    box, began = Path(tempfile.mkdtemp(prefix="anyloom-chaos-")), time.monotonic()
    settings = SETTINGS | ({} if options.recipe.startswith("tiny") else OTHER)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    log = box / "runs.log"
    if options.root is None:
        finish(box / "base", options.recipe, log, words, ("history",))
    else:
        shutil.copytree(options.root, box / "base", ignore=shutil.ignore_patterns("logs", "prefect", "locks", "work"))
    strip(box / "base")
    shutil.copytree(box / "base", box / "reference")
    finish(box / "reference", options.recipe, log, words, GOALS)
    wanted = history_rows(box / "reference")
    rng, kills, missed, rounds, where = random.Random(options.seed), 0, 0, 0, Counter[str]()
    found: Counter[str] = Counter()
    while kills < options.kills:
        rounds += 1
        if rounds > MAX_ROUNDS:
            raise RuntimeError(f"only {kills} of {options.kills} kills landed in {MAX_ROUNDS} runs; log: {log}")
        root, here = box / f"disturbed-{rounds}", 0
        shutil.copytree(box / "base", root)
        while kills < options.kills:
            ended, landed = attempt(root, options.recipe, log, words, rng)
            if ended:
                break
            here, kills, missed = here + landed, kills + landed, missed + (not landed)
            where.update([f"{batches(root)[0]} batches done"] * landed)
        finish(root, options.recipe, log, words, GOALS)
        found.update(compare(box / "reference", root, options.recipe, settings, wanted, here + missed))
        shutil.rmtree(root) if not found["differences"] + found["lost"] + found["doubled"] else None
    done, answers = batches(box / "reference")
    note = {
        "recipe": options.recipe,
        "answers": answers,
        "batches": done,
        "runs compared": rounds,
        "begun again": found["again"],
        "kills before the first or after the last answer": missed,
        "killed at": dict(sorted(where.items())),
        "seconds": round(time.monotonic() - began),
    }
    bad = found["differences"] + found["lost"] + found["doubled"]
    print(f"kept: {box}", file=sys.stderr) if bad else shutil.rmtree(box)
    counts = {name: found[name] for name in ("differences", "lost", "doubled")}
    return [{"name": "eval", "kills": kills, **counts, "seed": options.seed, "note": note}]


def strip(root: Path) -> None:
    """Take away what every run makes anew: suites, answers, features and history."""
    for pattern in (
        "artifacts/eval_*_as_*",
        "artifacts/history",
        "artifacts/report",
        "stores/answers",
        "stores/eval_features",
        "stores/history",
        "history.duckdb*",
    ):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def finish(root: Path, recipe: str, log: Path, words: list[str], goals: tuple[str, ...]) -> None:
    """Run to the end. Raises RuntimeError when it fails."""
    child = start(root, recipe, log, *goals, *words, "--no-prefect", "--no-ray", "--threads", "1")
    if child.wait(timeout=TIMEOUT_S) != 0:
        raise RuntimeError(f"the run failed (exit {child.returncode}); log: {log}")


def attempt(root: Path, recipe: str, log: Path, words: list[str], rng: random.Random) -> tuple[bool, bool]:
    """One run that is killed: (it ended before that, the kill fell between the first and the last answer of a suite)."""
    aim, delay = rng.choice(AIMS), rng.uniform(0, BETWEEN_S.get(recipe, OTHER_BETWEEN_S))
    lines = count_lines(root)
    before = lines["batches"]
    child = start(root, recipe, log, *GOALS, *words, "--no-prefect", "--no-ray", "--threads", "1")
    if not wait_for(lambda: count_lines(root)["begun"] > lines["begun"] and count_lines(root)["batches"] >= before + aim, child, TIMEOUT_S, every_s=0.005):
        if child.returncode != 0:
            raise RuntimeError(f"the run failed on its own (exit {child.returncode}); log: {log}")
        return True, False
    time.sleep(delay)
    kill_all(child)
    if child.returncode != -9:
        return True, False
    return False, bool(list((root / "work").glob("eval_*_as_*/*")))


def count_lines(root: Path) -> dict[str, int]:
    """begun: batches named so far; batches: those whose answers are there."""
    begun = batches_done = 0
    for path in (root / "stores" / "answers").glob("*.jsonl"):
        kinds = ["begun" in line[:12] for line in path.read_text(errors="replace").splitlines()]
        begun += sum(kinds)
        batches_done += sum(first and not second for first, second in itertools.pairwise(kinds))
    return {"begun": begun, "batches": batches_done}


def batches(root: Path) -> tuple[int, int]:
    """(batches with answers, answers) of a root."""
    answers = [AnswerFile(copy_of(path)) for path in (root / "stores" / "answers").glob("*.jsonl")]
    return count_lines(root)["batches"], sum(len(file.replies) for file in answers)


def copy_of(path: Path) -> Path:
    """The answer file elsewhere: opening one cuts off a torn line."""
    copied = Path(tempfile.mkdtemp(prefix="anyloom-answers-")) / path.name
    shutil.copyfile(path, copied)
    return copied


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
        row = json.loads(line)
        if "begun" in row:
            current, size, seen = row["begun"], row["answers"], 0
            wrong += current in persisted
        else:
            seen += 1
            if seen == size:
                persisted.add(current)
    return wrong
