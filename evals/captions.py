"""Held-out evaluation of stage 1 (captions with the right, the wrong or blank media) and of stage 2 (alignment).

Owns the pairing with a wrong media, the paired differences and their intervals, clustered by media. Input: shards, embeddings,
stage tensors. Output: samples.parquet and metrics.parquet. Refuses to know how the model computes a loss (mmcore.scoring,
mmcore.model do) and how the history stores results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evals.blank import BLANK, blank_medium
from evals.config import AlignmentEvalConfig, CaptionEvalConfig
from evals.journal import Journal
from evals.statistics import derangement, mean_interval, paired_interval
from evals.tables import ALIGNMENT_SAMPLES, CAPTION_SAMPLES, METRICS, metric_row, write_table
from infra.step import AnyloomError, StepContext

SHARDS = {"image": "shards_cc3m", "video": "shards_webvid", "audio": "shards_audiocaps"}
"""modality -> input with its shards."""


def run(ctx: StepContext) -> Mapping[str, Any]:
    """Step entry eval_captions: cross-entropy of held-out captions after stage 1, with the right, with another sample's and with a blank medium.

    A killed run continues after the last scored batch.
    """
    from mmcore.data.embeddings import EmbeddingSet

    config: CaptionEvalConfig = ctx.config
    pairs = [(modality, row) for modality, dataset in config.datasets for row in pair_up(ctx, modality, dataset)]
    model, done = None, 0
    samples = []
    for modality, _ in config.datasets:
        rows = [row for m, row in pairs if m == modality]
        if not rows:
            continue
        encoder = dict(config.model.encoders)[modality]
        scored, embeddings = Journal(ctx.work / f"{modality}.jsonl"), EmbeddingSet(ctx.inputs[f"embed_{modality}"].path, ctx.stores, encoder)
        blank = None
        for batch in scored.missing(rows, config.batch):
            model = model or _load_model(ctx)
            blank = _blank(ctx, modality, encoder) if blank is None else blank
            scored.add(_score(model, embeddings, modality, batch, blank))
            ctx.progress(done + len(scored.rows), len(pairs), f"{modality} captions with the right, the wrong and blank media")
        done += len(rows)
        samples += [{**row, **score} for row, score in zip(rows, scored.rows, strict=True)]
    metrics = [row for modality, _ in config.datasets for row in caption_metrics(modality, [s for s in samples if s["modality"] == modality], config)]
    write_table(ctx.output / "samples.parquet", samples, CAPTION_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    return _summary(metrics, {modality: _seen(ctx, modality, samples) for modality, _ in config.datasets})


def pair_up(ctx: StepContext, modality: str, dataset: str) -> list[dict[str, Any]]:
    """Held-out samples of one dataset, each with the key of a sample with another media *and* another caption (seeded), sorted by key.

    Flagged duplicates are left out. Returns the columns of CAPTION_SAMPLES that are known before scoring; [] for a dataset that has
    no sample. Raises AnyloomError when the samples cannot be paired.
    """
    from mmcore.data.shards import ShardSet

    config: CaptionEvalConfig = ctx.config
    shards = ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores)
    keys = sorted(shards.keys(source=dataset))
    if config.limit and config.limit < len(keys):
        picks = np.random.default_rng(config.seed).choice(len(keys), size=config.limit, replace=False)
        keys = [keys[i] for i in sorted(int(p) for p in picks)]
    if not keys:
        return []
    captions = {meta["key"]: meta["texts"][0] for meta in shards.metas(keys)}
    media = {key: shards.media_sha(key) for key in keys}
    try:
        order = derangement([(media[key], captions[key]) for key in keys], config.seed)
    except ValueError as error:
        raise AnyloomError(f"dataset {dataset}: {error}") from error
    return [
        {"modality": modality, "source": dataset, "key": key, "media_sha256": media[key], "caption": captions[key], "other_key": keys[other]}
        for key, other in zip(keys, order, strict=True)
    ]


def _load_model(ctx: StepContext) -> Any:
    import torch

    from mmcore.devices import device_for
    from mmcore.model import load_model

    torch.set_num_threads(max(1, ctx.resources.threads))
    device = device_for(ctx.resources.gpus)
    return load_model(ctx.config.model, ctx.inputs["weights_lm"].path / "lm", (ctx.inputs["stage1"].path,), device).to(device)


def _blank(ctx: StepContext, modality: str, encoder: Any) -> np.ndarray:
    """features_NE of a blank medium, as the stored ones were made."""
    from mmcore.encoders import load_encoder

    weights = ctx.inputs["weights_audio" if modality == "audio" else "weights_image"]
    return np.asarray(load_encoder(encoder, weights.path).encode([blank_medium(modality, ctx.work)])[0], np.float32)


def _score(model: Any, embeddings: Any, modality: str, batch: Sequence[dict[str, Any]], blank_NE: np.ndarray) -> list[dict[str, Any]]:
    """Summed cross-entropy in nats of each caption with the right, the other and a blank medium, and its supervised tokens."""
    import torch

    from mmcore.scoring import caption_nll

    captions = [row["caption"] for row in batch]
    found: dict[str, list[float]] = {}
    for which in ("key", "other_key", BLANK):
        if which == BLANK:
            features_BNE, lengths_B = np.repeat(blank_NE[None], len(batch), 0), np.full(len(batch), len(blank_NE))
        else:
            features_BNE, lengths_B = embeddings.gather([row[which] for row in batch])
        nll_B, tokens_B = caption_nll(model, torch.from_numpy(features_BNE), torch.from_numpy(lengths_B), modality, captions)
        found[which] = [float(x) for x in nll_B]
    return [
        {"nll_right": right, "nll_shuffled": wrong, "nll_blank": nothing, "num_tokens": int(tokens)}
        for right, wrong, nothing, tokens in zip(found["key"], found["other_key"], found[BLANK], tokens_B, strict=True)
    ]


def caption_metrics(modality: str, samples: Sequence[dict[str, Any]], config: CaptionEvalConfig) -> list[dict[str, Any]]:
    """Rows of METRICS of one modality, clustered by media: nll_per_token and nll_per_caption for right, shuffled, blank and the
    paired differences (shuffled - right, blank - right: what the right media is worth, in nats), and right_wins, the share of captions that are likelier
    with their own media. [] without samples.
    """
    if not samples:
        return []
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    clusters = [s["media_sha256"] for s in samples]
    right, wrong, blank = ([s[f"nll_{which}"] for s in samples] for which in ("right", "shuffled", "blank"))
    rows = []
    for metric, weights in (("nll_per_token", [s["num_tokens"] for s in samples]), ("nll_per_caption", None)):
        intervals = {
            ("right", "score"): mean_interval(right, clusters, weights=weights, **options),
            ("shuffled", "score"): mean_interval(wrong, clusters, weights=weights, **options),
            ("blank", "score"): mean_interval(blank, clusters, weights=weights, **options),
            ("shuffled - right", "difference"): paired_interval(wrong, right, clusters, weights=weights, **options),
            ("blank - right", "difference"): paired_interval(blank, right, clusters, weights=weights, **options),
        }
        rows += [metric_row(i, condition=name, metric=metric, subgroup=modality, kind=kind) for (name, kind), i in intervals.items()]
    wins = mean_interval([float(r < w) for r, w in zip(right, wrong, strict=True)], clusters, proportion=True, **options)
    return [*rows, metric_row(wins, condition="right", metric="right_wins", subgroup=modality, kind="score")]


def _seen(ctx: StepContext, modality: str, samples: Sequence[dict[str, Any]]) -> int:
    """Held-out samples whose caption text also stands in a training sample."""
    from mmcore.data.shards import ShardSet

    shards = ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores)
    texts = {text for meta in shards.metas(shards.keys(split="train")) for text in meta["texts"]}
    return sum(s["modality"] == modality and s["caption"] in texts for s in samples)


def _summary(metrics: Sequence[dict[str, Any]], seen: Mapping[str, int]) -> dict[str, Any]:
    """modality -> the gain per caption with its interval, the samples, and how many of their caption texts training has too."""
    return {
        row["subgroup"]: {
            "gain_nats_per_caption": round(row["value"], 4),
            "ci_lo": round(row["ci_lo"], 4),
            "ci_hi": round(row["ci_hi"], 4),
            "n": row["n"],
            "caption_text_in_training": seen[row["subgroup"]],
        }
        for row in metrics
        if row["condition"] == "shuffled - right" and row["metric"] == "nll_per_caption"
    }


def run_alignment(ctx: StepContext) -> Mapping[str, Any]:
    """Step entry eval_alignment: stage 2 on held-out captions, from cached states.

    error: distance between the conditioning made from a caption's signal states and the text encoder's states of that caption;
    error_mean: the same for the mean of the training targets; error_shuffled: for the conditioning of another caption. Held out are captions
    whose text no training dataset has; with fewer than two of them the tables are empty and the result says how many were left.
    """
    config: AlignmentEvalConfig = ctx.config
    train, heldout = caption_texts(ctx, config.train_datasets), caption_texts(ctx, config.heldout_datasets)
    captions = sorted(heldout - train)
    samples: list[dict[str, Any]] = []
    if len(captions) >= 2:
        order = derangement([(caption,) for caption in captions], config.seed)
        samples = [
            {"key": f"{config.modality}-{i:06d}", "caption": caption, "other_caption": captions[order[i]], **errors}
            for i, (caption, errors) in enumerate(zip(captions, _alignment_errors(ctx, sorted(train), captions, order), strict=True))
        ]
    metrics = alignment_metrics(config, samples)
    write_table(ctx.output / "samples.parquet", samples, ALIGNMENT_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    gains = {row["condition"]: row for row in metrics if row["kind"] == "difference"}
    shown = {name: {"gain": round(r["value"], 4), "ci_lo": round(r["ci_lo"], 4), "ci_hi": round(r["ci_hi"], 4)} for name, r in gains.items()}
    errors = {row["condition"]: round(row["value"], 4) for row in metrics if row["kind"] != "difference"}
    return {"captions": len(captions), "seen_in_training": len(heldout & train), "errors": errors, "gains": shown}


def caption_texts(ctx: StepContext, datasets: Sequence[str]) -> set[str]:
    """Every distinct caption of the datasets, from shards_cc3m."""
    from mmcore.data.shards import ShardSet

    shards = ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores)
    return {text for name in datasets for meta in shards.metas(shards.keys(source=name)) for text in meta["texts"]}


def _alignment_errors(ctx: StepContext, train: list[str], captions: list[str], order: list[int]) -> Iterator[dict[str, float]]:
    """Per caption: its error, the mean predictor's error and the error of another caption's conditioning."""
    import torch

    from mmcore.config import output_spec
    from mmcore.data.embeddings import EmbeddingSet
    from mmcore.losses import alignment
    from mmcore.model import TENSORS, load_tensors
    from mmcore.signal_data import fit_targets, padded_targets
    from mmcore.signals import SignalSide, StateSet, caption_key

    torch.set_num_threads(max(1, ctx.resources.threads))
    config: AlignmentEvalConfig = ctx.config
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
