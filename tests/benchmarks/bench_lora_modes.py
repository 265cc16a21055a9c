"""One shared LoRA adapter against one per modality, on pictures, clips and sounds together. Takes the better part of half an hour on 2 cores.

`prove.py bench lora_modes [--recipe smol] [--root DIR] [--variants "shared;per_modality"]`: the recipe's variant with questions about clips and sounds
(`smol_mix`), in branches of the root that go on from everything finished in it. Variants: `shared`; `per_modality` at the same rank, which has an adapter
for text and one per medium; and `per_modality, equal parameters`, whose rank is divided by the number of adapters (alpha too, so that the scale stays).
Same steps, seeds, batches and questions. Only stages 1 and 3 are trained: stage 2 answers no question. One entry per variant but the first: ours is the
mean accuracy over pictures, clips and sounds, peer that of `shared`, limit 1. The note has accuracies by kind, the paired differences to `shared` (95 %
interval over media), trained parameters, and the step time: the variants' steps in turn in one process on one thread, median of ROUNDS.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from branches import artifacts, branch, print_table, rows_of, shown, start

from evals.statistics.intervals import mean_interval, paired_interval
from evals.tables import metric_row

BASE: dict[str, Any] = {"stages": ["stage1", "stage3"], "decoders": [], "evaluation.conditions": ["helped"]}
MODALITIES = {"image": "eval_vqa", "video": "eval_media_questions", "audio": "eval_media_questions"}
ROUNDS, STEPS = 5, 2
"""Timed turns of every variant, and optimizer steps in each."""
Scores = dict[str, list[tuple[str, str, float]]]
"""group of questions -> (question, medium, score)s."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry per variant but `shared`. Raises RuntimeError when a run fails or the variants were asked other questions."""
    recipe = options.recipe if options.recipe.endswith("_mix") else f"{options.recipe}_mix"
    root = options.root or Path(tempfile.mkdtemp(prefix="anyloom-lora-")) / "runs"
    common = branch(root.absolute(), "lora_modes")
    start(recipe, common, BASE, threads=os.cpu_count() or 1, goals=("stage1", "shards_instruct", "weights_*"))
    settings = {name: made for name, made in variants(recipe).items() if not options.variants or name in options.variants.split(";")}
    roots = {name: branch(common, f"v{place}") for place, name in enumerate(settings)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(start, recipe, roots[name], settings[name], 1, ("eval_vqa", "eval_media_questions")) for name in settings]
        for job in jobs:
            job.result()
    rows = {name: artifacts(recipe, roots[name], settings[name]) for name in settings}
    scores = {name: scores_of(found) for name, found in rows.items()}
    parameters = {name: int(found["stage3"].record.result["trained_parameters"]) for name, found in rows.items()}
    seconds = step_seconds({name: (roots[name], found) for name, found in rows.items()})
    compared = {name: compare(scores[name], scores["shared"]) for name in scores}
    groups = list(compared["shared"])
    print_table(
        ["", *compared, *(f"{name} - shared" for name in compared if name != "shared")],
        [
            [f"{group} (n {compared['shared'][group]['n']})", *(c[group]["accuracy"] for c in compared.values())]
            + [c[group]["minus shared"] for name, c in compared.items() if name != "shared"]
            for group in groups
        ]
        + [["trained parameters", *parameters.values()], ["seconds per step", *(f"{statistics.median(found):.3f}" for found in seconds.values())]],
    )
    return [entry(name, recipe, settings, compared, parameters, seconds, scores) for name in settings if name != "shared"]


def variants(recipe: str) -> dict[str, dict[str, Any]]:
    """Name -> settings."""
    from pipelines.recipes import get_recipe

    found = get_recipe(recipe)
    adapters = 1 + sum(getattr(found, modality) is not None for modality in MODALITIES)
    rank = max(1, round(found.lora.rank / adapters))
    alpha = max(1, round(found.lora.alpha * rank / found.lora.rank))
    return {
        "shared": {**BASE, "lora.mode": "shared"},
        "per_modality": {**BASE, "lora.mode": "per_modality"},
        "per_modality, equal parameters": {**BASE, "lora.mode": "per_modality", "lora.rank": rank, "lora.alpha": alpha},
    }


def scores_of(rows: Mapping[str, Any]) -> Scores:
    """Scores under the headline condition, of a modality and of each of its kinds of questions."""
    found: Scores = {}
    for modality, step in MODALITIES.items():
        headline = rows[step].record.result["headline"]
        for sample in rows_of(rows[step].path, "samples"):
            kind = sample["answer_type"] if step != "eval_vqa" else f"image {sample['answer_type']}"
            if sample["run_condition"] == headline and kind.startswith(modality):
                for group in (f"{modality}, all", kind):
                    found.setdefault(group, []).append((sample["doc_key"], sample["picture"], float(sample["score"])))
    return dict(sorted(found.items()))


def compare(mine: Scores, shared: Scores) -> dict[str, dict[str, Any]]:
    """group -> accuracy with its interval, paired difference to `shared` in points, questions and media."""
    table = {}
    for group, scored in mine.items():
        keys, media, values = zip(*scored, strict=True)
        if keys != tuple(key for key, _, _ in shared[group]):
            raise RuntimeError(f"{group}: the variants were asked other questions")
        own, other = mean_interval(values, media, proportion=True), paired_interval(values, [score for *_, score in shared[group]], media, proportion=True)
        named = {"condition": "", "metric": "", "subgroup": "", "kind": ""}
        difference = shown(metric_row(other, **named)) if mine is not shared else "0"
        table[group] = {"accuracy": shown(metric_row(own, **named)), "minus shared": difference, "n": own.n, "media": own.clusters}
    return table


def step_seconds(finished: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Seconds of an optimizer step of stage 3 per round, the variants taking turns in this process on one thread."""
    import torch
    from store_bench import context, scratch

    from infra.settings import offline_environment
    from infra.step import Artifact
    from mmcore.training.loop import Collective, LossLog, one_step
    from mmcore.training.optimizer import FlatAdamW
    from mmcore.training.stages import select_trainable
    from pipelines.training.loop import stage_course
    from pipelines.training.train import _chat_stage

    offline_environment()
    torch.set_num_threads(1)
    sides: dict[str, Any] = {}
    with scratch() as box:
        for name, (root, rows) in finished.items():
            step = rows["stage3"].step
            records = {key: (rows[source.name].path, rows[source.name].record) for key, source in step.inputs.items()}
            inputs = {key: Artifact(name=r.name, path=path, fingerprint=r.fingerprint, digest=r.digest, result=r.result) for key, (path, r) in records.items()}
            ctx = context(box / name.replace(" ", "_"), "stage3", step.config, inputs, stores=root / "stores")
            model, data = _chat_stage(step.config, step.config.stage, ctx, "cpu", (inputs["stage1"].path,))
            trained = select_trainable(model, step.config.stage)
            course = stage_course(step.config.stage, model, data, trained, Collective())
            sides[name] = (FlatAdamW(trained, step.config.stage, course.shares), course, LossLog(data.part_names))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(ROUNDS + 1):
            for name, (optimizer, course, log) in sides.items():
                begun = time.monotonic()
                for number in range(STEPS):
                    one_step(optimizer, course, min(turn * STEPS + number, course.config.steps - 1), Collective(), log)
                if turn:  # the first one warms up
                    seconds[name].append((time.monotonic() - begun) / STEPS)
    return seconds


def entry(
    name: str,
    recipe: str,
    settings: Mapping[str, Mapping[str, Any]],
    compared: Mapping[str, Any],
    parameters: Mapping[str, int],
    seconds: Mapping[str, list[float]],
    scores: Mapping[str, Scores],
) -> dict:
    """The entry of one variant beside `shared`."""
    means = {which: [statistics.mean(score for *_, score in scores[which][f"{m}, all"]) for m in MODALITIES] for which in (name, "shared")}
    ours, peer = (statistics.mean(means[which]) for which in (name, "shared"))
    return {
        "name": f"lora_modes_{name.replace(', ', '_').replace(' ', '_')}",
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "limit": 1.0,
        "unit": "mean accuracy of pictures, clips and sounds",
        "ratio_peer": round(ours / peer, 3) if peer else None,
        "ratio_limit": round(ours, 4),
        "runs": 1,
        "spread": [round(value, 4) for value in means[name]],
        "seed": 0,
        "note": {
            "recipe": recipe,
            "settings": dict(settings[name]),
            "per cent": compared[name],
            "shared, per cent": {group: cells["accuracy"] for group, cells in compared["shared"].items()},
            "trained parameters": {which: parameters[which] for which in (name, "shared")},
            "seconds per step, one thread": {which: [round(value, 3) for value in sorted(seconds[which])] for which in (name, "shared")},
        },
    }
