"""Accuracy of the demo's recipes over seeds: helped, plain and frozen projectors, each beside its floors. Takes about an hour on 2 cores.

`prove.py bench seeds [--seeds 3] [--root DIR]`. Runs share one root, so data, embeddings and stage 1 of a seed are made once. One entry per recipe: ours
is the mean accuracy over seeds on the questions of the recipe's evaluation, peer the blind per-question majority on the same questions, limit 1.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))
RECIPES = ("smol", "smol_plain", "smol_frozen")
GROUPS = ("all", "yes/no", "shape", "colour")


def run(options: argparse.Namespace) -> list[dict]:
    """One entry per recipe, with a table per question type in its note. Raises when a run fails."""
    root = options.root or Path(tempfile.mkdtemp(prefix="anyloom-seeds-"))
    return [entry(recipe, [one(recipe, seed, root) for seed in range(options.seeds)], root) for recipe in RECIPES]


def one(recipe: str, seed: int, root: Path) -> dict[tuple[str, str], dict]:
    """Train and evaluate one recipe with one seed. Returns (condition, group) -> row of metrics.parquet."""
    import pyarrow.parquet as pq

    from flows.run import recipe_steps
    from infra.plan import plan

    overrides = {f"{stage}.seed": seed for stage in ("stage1", "stage2", "stage3")}
    command = [ANYLOOM, "run", "--recipe", recipe, "--root", str(root), "eval_vqa", "eval_captions", "history"]
    command += [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{recipe} seed {seed} failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    (path,) = (row.path for row in plan(recipe_steps(recipe, overrides).values(), root) if row.step.name == "eval_vqa")
    rows = pq.read_table(path / "metrics.parquet").to_pylist()
    found = {(row["condition"], row["subgroup"]): row for row in rows if row["kind"] in ("score", "floor")}
    best = "helped" if ("helped", "all") in found else "plain_prompt"
    print(recipe, "seed", seed, {group: round(found[best, group]["value"], 4) for group in GROUPS}, flush=True)
    return {("headline", group): found[best, group] for group in GROUPS} | found


def entry(recipe: str, runs: list[dict[tuple[str, str], dict]], root: Path) -> dict:
    """The mean over seeds; the note has every condition by type."""
    conditions = list(dict.fromkeys(condition for condition, _ in runs[0] if condition != "headline"))
    table = {
        condition: {group: [round(100 * run[condition, group]["value"], 1) for run in runs if (condition, group) in run] for group in GROUPS}
        for condition in conditions
    }
    ours = statistics.mean(run["headline", "all"]["value"] for run in runs)
    floor = max(run[c, "all"]["value"] for run in runs for c in conditions if run[c, "all"]["kind"] == "floor")
    return {
        "name": f"seeds_{recipe}",
        "ours": round(ours, 4),
        "peer": round(floor, 4),
        "limit": 1.0,
        "unit": "accuracy",
        "ratio_peer": round(ours / floor, 3),
        "ratio_limit": round(ours, 4),
        "runs": len(runs),
        "spread": [round(run["headline", "all"][key], 4) for run in runs for key in ("ci_lo", "ci_hi")],
        "seed": list(range(len(runs))),
        "note": {"questions": runs[0]["headline", "all"]["n"], "by condition and type, per cent, one number per seed": table, "root": root.name},
    }
