"""Orders of the stages: 1-2-3, 1-3-2 and 1-2-3-2 of a recipe, and what stage 3 does to the stage 2 before it. Some 30 minutes for smol on 2 cores.

`prove.py bench stage_orders [--recipe smol] [--root DIR]`: branches of the root go on from everything finished in it (stage 1, the picture decoder and its
judge are made once). The last order trains stage 2 twice; all have the same number of steps of stage 2 in total, and a fourth run has twice as many. One
entry per order: ours is the mean of two shares, picture questions answered rightly and pictures drawn rightly (shape and colour) on requests in new wordings;
peer is that of the recipe's own order, limit 1. The note has, with 95 % intervals, the alignment of held-out captions (gain over the mean-caption
predictor; distance, higher is better) after the first stage 2, after stage 3 and at the end, the drift that stage 3 causes, recall, false alarms and
precision of signal blocks, and the questions by type.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from branches import artifacts, branch, print_table, rows_of, shown, start

ORDERS = {
    "1-2-3": ["stage1", "stage2", "stage3"],
    "1-3-2": ["stage1", "stage3", "stage2"],
    "1-2-3-2": ["stage1", "stage2", "stage3", "stage2"],
}
DOUBLED = "1-2-3-2, twice the stage 2"
COMMON = ("stage1", "weights_*", "shards_*", "targets", "image_decoder", "picture_judge")
JUDGED = ("eval_vqa", "eval_alignment", "eval_drift", "eval_drawing")


def run(options: argparse.Namespace) -> list[dict]:
    """One entry per order. Raises RuntimeError when a run fails."""
    from mmcore.config import StatesStage
    from pipelines.recipes import get_recipe

    recipe = get_recipe(options.recipe)
    root = options.root or Path(tempfile.mkdtemp(prefix="anyloom-orders-")) / "runs"
    common = branch(root.absolute(), "stage_orders")
    asked = {"evaluation.conditions": ["helped" if recipe.caption_turn else "plain_prompt"]}
    start(options.recipe, common, {}, threads=os.cpu_count() or 1, goals=COMMON)
    aligned = recipe.entries_of(StatesStage)
    total, requests = sum(config.steps for config in aligned.values()), max(config.requests for config in aligned.values())
    once = {"stage2.steps": total, "stage2.requests": requests}
    settings: dict[str, dict[str, Any]] = {name: {"stages": stages, **once, **asked} for name, stages in ORDERS.items()}
    half = {"stage2.steps": total // 2, "stage2_2.steps": total // 2, "stage2.requests": requests, "stage2_2.requests": requests}
    settings["1-2-3-2"] = asked if len(aligned) > 1 else {"stages": ORDERS["1-2-3-2"], **half, **asked}
    settings[DOUBLED] = {"stages": ORDERS["1-2-3-2"], **once, "stage2_2.steps": total, "stage2_2.requests": requests, **asked}
    own = next((name for name, stages in ORDERS.items() if stages == [config.stage for config in recipe.stages]), "1-2-3")

    def judged(name: str, of: Path) -> dict[str, dict[str, Any]]:
        return one(options.recipe, branch(of, name.replace(", ", "_").replace(" ", "_")), settings[name])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = [name for name in settings if not options.variants or name in options.variants.split(";")]
        jobs = {name: pool.submit(judged, name, common) for name in ("1-2-3-2", "1-3-2") if name in wanted}
        start(options.recipe, begun := branch(common, "begun"), settings["1-2-3"], threads=1, goals=("stage3",))  # what 1-2-3 and DOUBLED begin with
        jobs |= {name: pool.submit(judged, name, begun) for name in (DOUBLED, "1-2-3") if name in wanted}
        found = {name: jobs[name].result() for name in wanted}
    measures = list(dict.fromkeys(measure for each in found.values() for measure in each))
    print_table(["", *found], [[measure, *(each.get(measure, {}).get("shown", "") for each in found.values())] for measure in measures])
    return [entry(name, options.recipe, found, own) for name in found]


def one(recipe: str, root: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Train and judge one order. Returns measure -> {shown, value, n}."""
    from flows.running.run import recipe_steps

    goals = [name for name in JUDGED if name in recipe_steps(recipe, settings)]
    start(recipe, root, settings, threads=1, goals=goals)
    rows = artifacts(recipe, root, settings)
    metrics = {name: rows_of(rows[name].path, "metrics") for name in goals}
    return measures_of(metrics, str(rows["eval_vqa"].record.result["headline"]), list(recipe_steps(recipe, settings)["export"].config.stages))


def measures_of(metrics: Mapping[str, list[dict[str, Any]]], headline: str, stages: list[str]) -> dict[str, dict[str, Any]]:
    """Measure -> {shown, value, n}, from the metrics of the evaluations that this order has."""
    at = {(step, row["condition"], row["metric"], row["subgroup"]): row for step, rows in metrics.items() for row in rows}
    drift, last = "eval_drift", ("eval_alignment", "mean_predictor - right", "alignment_error", "image")
    after_first = (drift, "mean_predictor - before", *last[2:]) if drift in metrics else last
    after_third = (drift, "mean_predictor - after", *last[2:])
    wanted = {
        "alignment gain after the first stage 2": after_first,
        "alignment gain after stage 3": after_third,
        "alignment gain at the end": last if stages[-1].startswith("stage2") else after_third,
        "drift of the alignment error by stage 3": (drift, "after - before", *last[2:]),
        "drift of the signal tokens' cross-entropy by stage 3": (drift, "after - before", "signal_nll", "image"),
    }
    found = {measure: _cell(at[key], 1.0, 3) for measure, key in wanted.items() if key in at}
    shares = {
        "asked for a picture: draws (recall), %": ("eval_drawing", "asked", "emits_block", "image"),
        "not asked: draws (false alarms), %": ("eval_drawing", "not_asked", "emits_block", "image"),
        "drew: was asked (precision), %": ("eval_drawing", "all", "precision", "image"),
        "pictures right, new wordings, %": ("eval_drawing", "asked_new_wording", "judged_right", "both"),
        "pictures right, trained wordings, %": ("eval_drawing", "asked_trained_wording", "judged_right", "both"),
        "pictures right, after a question, %": ("eval_drawing", "asked_after_question", "judged_right", "both"),
    }
    kinds = [row["subgroup"] for row in metrics["eval_vqa"] if row["condition"] == headline]
    shares |= {f"picture questions, {kind}, %": ("eval_vqa", headline, "exact_match", kind) for kind in kinds}
    return found | {measure: _cell(at[key], 100.0, 1) for measure, key in shares.items() if key in at}


def _cell(row: Mapping[str, Any], scale: float, digits: int) -> dict[str, Any]:
    return {"shown": shown(row, scale, digits), "value": row["value"], "n": row["n"]}


def entry(name: str, recipe: str, found: Mapping[str, Mapping[str, Mapping[str, Any]]], own: str) -> dict:
    """The entry of one order beside the recipe's own."""
    parts = ("picture questions, all, %", "pictures right, new wordings, %")
    mean = {which: [found[which][part]["value"] for part in parts if part in found[which]] for which in (name, own)}
    ours, peer = (sum(values) / len(values) for values in (mean[name], mean[own]))
    return {
        "name": f"stage_orders_{name.replace(', ', '_').replace(' ', '_')}",
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "limit": 1.0,
        "unit": "mean share of questions and pictures right",
        "ratio_peer": round(ours / peer, 3) if peer else None,
        "ratio_limit": round(ours, 4),
        "runs": 1,
        "spread": [round(value, 4) for value in mean[name]],
        "seed": 0,
        "note": {"recipe": recipe, "the recipe's own order": own, "measured": {measure: cell["shown"] for measure, cell in found[name].items()}},
    }
