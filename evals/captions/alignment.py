"""The eval_alignment step: how near the conditioning of stage 2 comes to the text encoder's own, on held-out captions.

Owns the error, its floors (mean of the training targets, another caption's conditioning) and their paired differences. Input: cached states, stage 2, caption
targets, shards. Output: samples.parquet and metrics.parquet. Captions without states or targets are left out, and told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from evals.config import AlignmentEvalConfig
from evals.statistics.intervals import derangement, mean_interval, paired_interval
from evals.tables import ALIGNMENT_SAMPLES, METRICS, metric_row, rounded, write_table
from infra.step import StepContext
from mmcore.config import output_spec
from mmcore.model.any_model import TENSORS, load_tensors
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.left_out import NO_FEATURES, LeftOut, summarize
from mmcore.stores.shards import ShardSet
from mmcore.training.fitting import TOO_LONG
from mmcore.training.losses import alignment
from mmcore.training.signals import SignalSide, StateSet, caption_key, target_key
from mmcore.training.targets import fit_targets, padded_targets


def run_alignment(ctx: StepContext[AlignmentEvalConfig]) -> Mapping[str, Any]:
    """Step entry eval_alignment: stage 2 on held-out captions, from cached states.

    error: distance between the conditioning made from a caption's signal states and the text encoder's states of that caption;
    error_mean: the same for the mean of the training targets; error_shuffled: for the conditioning of another caption. Held out are captions
    whose text no training dataset has; with fewer than two of them the tables are empty and the result says how many were left. Captions without states or
    targets are left out.
    """
    config = ctx.config
    train, heldout = caption_texts(ctx, config.train_datasets), caption_texts(ctx, config.heldout_datasets)
    known, captions, lines = scored_captions(ctx, config, train, heldout)
    samples: list[dict[str, Any]] = []
    if len(captions) >= 2 and known:
        order = derangement([(caption,) for caption in captions], config.seed)
        samples = [
            {"key": f"{config.modality}-{i:06d}", "caption": caption, "other_caption": captions[order[i]], **errors}
            for i, (caption, errors) in enumerate(zip(captions, _alignment_errors(ctx, known, captions, order), strict=True))
        ]
    metrics = alignment_metrics(config, samples)
    write_table(ctx.output / "samples.parquet", samples, ALIGNMENT_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    gains = {row["condition"]: row for row in metrics if row["kind"] == "difference"}
    shown = {name: dict(zip(("gain", "ci_lo", "ci_hi"), rounded(r), strict=True)) for name, r in gains.items()}
    errors = {row["condition"]: round(row["value"], 4) for row in metrics if row["kind"] != "difference"}
    return {"captions": len(captions), "seen_in_training": len(heldout & train), "errors": errors, "gains": shown} | ({"left_out": lines} if lines else {})


def scored_captions(
    ctx: StepContext[Any], config: AlignmentEvalConfig, train: Collection[str], heldout: Collection[str]
) -> tuple[list[str], list[str], list[str]]:
    """(training captions that have targets; held-out captions that training does not have, with their states and targets; a line about those without), sorted.
    Of the step's inputs `states` and `targets` are read."""
    states, targets = StateSet(ctx.inputs["states"].path), EmbeddingSet(ctx.inputs["targets"].path, ctx.stores)
    every = sorted(set(heldout) - set(train))
    lost = [LeftOut(key=caption, reason=NO_FEATURES, detail="its text encoder could not take it") for caption in every if target_key(caption) not in targets]
    there = [caption for caption in every if target_key(caption) in targets]
    too_long = "it has no states: it is longer than the language model's context"
    lost += [LeftOut(key=caption, reason=TOO_LONG, detail=too_long) for caption in there if caption_key(config.modality, caption) not in states]
    captions = [caption for caption in there if caption_key(config.modality, caption) in states]
    return [caption for caption in sorted(train) if target_key(caption) in targets], captions, summarize(lost, len(every), "held-out captions are not scored")


def caption_texts(ctx: StepContext[object], datasets: Sequence[str]) -> set[str]:
    """Every distinct caption of the datasets, from shards_cc3m."""

    shards = ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores)
    return {text for name in datasets for meta in shards.metas(shards.keys(source=name)) for text in meta["texts"]}


def _alignment_errors(ctx: StepContext[AlignmentEvalConfig], train: list[str], captions: list[str], order: list[int]) -> Iterator[dict[str, float]]:
    """Per caption: its error, the mean predictor's error and the error of another caption's conditioning."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    states, targets = StateSet(ctx.inputs["states"].path), EmbeddingSet(ctx.inputs["targets"].path, ctx.stores)
    side = SignalSide(config.model, states)
    load_tensors(side, ctx.inputs["stage2"].path / TENSORS)
    queries = output_spec(config.model, config.modality).queries
    mean_QC, _, _ = fit_targets(targets, train, queries)
    with torch.no_grad():
        for start in range(0, len(captions), config.batch):
            batch = captions[start : start + config.batch]
            others = [captions[i] for i in order[start : start + config.batch]]
            target_BQC = padded_targets(targets, batch, queries)
            made = [side.conditioning(config.modality, states.gather([caption_key(config.modality, c) for c in which])[0]) for which in (batch, others)]
            found = [alignment(c_BQC, target_BQC).tolist() for c_BQC in (made[0], mean_QC.expand_as(target_BQC), made[1])]
            yield from ({"error": a, "error_mean": b, "error_shuffled": c} for a, b, c in zip(*found, strict=True))
            ctx.progress(start + len(batch), len(captions), "alignment of held-out captions")


def alignment_metrics(config: AlignmentEvalConfig, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of METRICS: the three mean errors, and how much lower the right one is than the other two (paired, each caption once).
    [] without samples.
    """
    if not samples:
        return []
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    own, mean, other = ([s[name] for s in samples] for name in ("error", "error_mean", "error_shuffled"))
    clusters = [s["caption"] for s in samples]
    named = {"metric": "alignment_error", "subgroup": config.modality}
    return [
        metric_row(mean_interval(own, clusters, **options), condition="right", kind="score", **named),
        metric_row(mean_interval(mean, clusters, **options), condition="mean_predictor", kind="floor", **named),
        metric_row(mean_interval(other, clusters, **options), condition="shuffled", kind="score", **named),
        metric_row(paired_interval(mean, own, clusters, **options), condition="mean_predictor - right", kind="difference", **named),
        metric_row(paired_interval(other, own, clusters, **options), condition="shuffled - right", kind="difference", **named),
    ]
