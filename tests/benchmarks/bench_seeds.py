"""Accuracy of the demo's recipes over seeds: helped, plain and frozen projectors, each beside its floors. Takes the better part of an hour on 2 cores.

`prove.py bench seeds [--seeds 3] [--recipes smol,smol_plain] [--root DIR]`. Data, embeddings and stage 1 of a seed are made once; the runs branch off from
there and go side by side, as many as there are cores, each on one thread. One entry per recipe: ours
is the mean accuracy over seeds on the questions of the recipe's evaluation, peer the blind per-question majority on the same questions, limit 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from branches import artifacts, branch, rows_of, start

GROUPS = ("all", "yes/no", "shape", "colour")


def run(options: argparse.Namespace) -> list[dict]:
    """One entry per recipe, with a table per question type in its note. Raises when a run fails."""
    root = options.root or Path(tempfile.mkdtemp(prefix="anyloom-seeds-"))
    recipes, seeds = options.recipes.split(","), range(options.seeds)
    start(recipes[0], root, overrides(0), threads=os.cpu_count() or 1, goals=("embed_image", "embed_video", "embed_audio", "targets"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = list(pool.map(lambda seed: begin(recipes[0], seed, root), seeds))
        runs = {recipe: [pool.submit(one, recipe, seed, branch(begun[seed], f"{recipe}-{seed}")) for seed in seeds] for recipe in recipes}
    return [entry(recipe, [future.result() for future in runs[recipe]], root) for recipe in recipes]


def begin(recipe: str, seed: int, root: Path) -> Path:
    """Stage 1 of a seed, which its recipes share, in a branch of the root."""
    copy = branch(root, f"seed{seed}")
    start(recipe, copy, overrides(seed), threads=1, goals=("stage1",))
    return copy


def overrides(seed: int) -> dict[str, int]:
    """Settings of a seed."""
    return {f"{stage}.seed": seed for stage in ("stage1", "stage2", "stage3")}


def one(recipe: str, seed: int, root: Path) -> dict[tuple[str, str], dict]:
    """Train and evaluate one recipe with one seed. Returns (condition, group) -> row of metrics.parquet."""
    start(recipe, root, overrides(seed), threads=1, goals=("eval_vqa", "eval_captions", "history"))
    rows = rows_of(artifacts(recipe, root, overrides(seed))["eval_vqa"].path, "metrics")
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
