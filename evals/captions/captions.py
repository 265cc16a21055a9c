"""Held-out evaluation of stage 1 (captions with the right, the wrong or blank media) and of stage 2 (alignment).

Owns the pairing with a wrong media, the paired differences and their intervals, clustered by media. Input: shards, embeddings,
stage tensors. Output: samples.parquet and metrics.parquet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.blank import BLANK, blank_medium
from evals.config import CaptionEvalConfig
from evals.heldout import SHARDS
from evals.journal import Journal
from evals.left_out import without_features
from evals.statistics.intervals import derangement, mean_interval, paired_interval
from evals.tables import CAPTION_SAMPLES, METRICS, metric_row, rounded, write_table
from infra.step import AnyloomError, StepContext
from mmcore.encoders import load_encoder
from mmcore.model.any_model import load_model
from mmcore.runtime.devices import device_for
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.left_out import summarize
from mmcore.stores.shards import ShardSet
from mmcore.training.scoring import caption_nll


def run(ctx: StepContext[CaptionEvalConfig]) -> Mapping[str, Any]:
    """Step entry eval_captions: cross-entropy of held-out captions after stage 1, with the right, with another sample's and with a blank medium.

    A killed run continues after the last scored batch.
    """

    config = ctx.config
    paired = [(modality, pair_up(ctx, modality, dataset)) for modality, dataset in config.datasets]
    pairs = [(modality, row) for modality, (rows, _) in paired for row in rows]
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
    lines = [line for _, (_, told_of) in paired for line in told_of]
    return _summary(metrics, {modality: _seen(ctx, modality, samples) for modality, _ in config.datasets}) | ({"left_out": lines} if lines else {})


def pair_up(ctx: StepContext[CaptionEvalConfig], modality: str, dataset: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(held-out samples of one dataset, each with the key of a sample with another media *and* another caption (seeded), sorted by key; a line about those
    that have no features, if there are any).

    Flagged duplicates are left out. The samples have the columns of CAPTION_SAMPLES that are known before scoring; there are none for a dataset without
    samples, or one of which too few have features to be paired. Raises AnyloomError when all have, and cannot be paired.
    """

    config = ctx.config
    shards = ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores)
    every = sorted(shards.keys(source=dataset))
    if not every:
        return [], []
    embedded = ctx.inputs[f"embed_{modality}"].path
    keys, lost = without_features(embedded, every, EmbeddingSet(embedded, ctx.stores))
    lines = summarize(lost, len(every), f"captions of {dataset} are not scored")
    if config.limit and config.limit < len(keys):
        picks = np.random.default_rng(config.seed).choice(len(keys), size=config.limit, replace=False)
        keys = [keys[i] for i in sorted(int(p) for p in picks)]
    if not keys:
        return [], lines
    captions = {meta["key"]: meta["texts"][0] for meta in shards.metas(keys)}
    media = {key: shards.media_sha(key) for key in keys}
    try:
        order = derangement([(media[key], captions[key]) for key in keys], config.seed)
    except ValueError as error:
        if lost:
            return [], [*lines, f"the other captions of {dataset}: {error}"]
        raise AnyloomError(f"dataset {dataset}: {error}") from error
    rows = [
        {"modality": modality, "source": dataset, "key": key, "media_sha256": media[key], "caption": captions[key], "other_key": keys[other]}
        for key, other in zip(keys, order, strict=True)
    ]
    return rows, lines


def _load_model(ctx: StepContext[CaptionEvalConfig]) -> Any:
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    device = device_for(ctx.resources.gpus)
    return load_model(ctx.config.model, ctx.inputs["weights_lm"].path / "lm", (ctx.inputs["stage1"].path,), device).to(device)


def _blank(ctx: StepContext[CaptionEvalConfig], modality: str, encoder: Any) -> np.ndarray:
    """features_NE of a blank medium, as the stored ones were made."""

    weights = ctx.inputs["weights_audio" if modality == "audio" else "weights_image"]
    return np.asarray(load_encoder(encoder, weights.path).encode([blank_medium(modality, ctx.work)])[0], np.float32)


def _score(model: Any, embeddings: Any, modality: str, batch: Sequence[dict[str, Any]], blank_NE: np.ndarray) -> list[dict[str, Any]]:
    """Summed cross-entropy in nats of each caption with the right, the other and a blank medium, and its supervised tokens."""
    import torch

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


def _seen(ctx: StepContext[CaptionEvalConfig], modality: str, samples: Sequence[dict[str, Any]]) -> int:
    """Held-out samples whose caption text also stands in a training sample."""

    shards = ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores)
    texts = {text for meta in shards.metas(shards.keys(split="train")) for text in meta["texts"]}
    return sum(s["modality"] == modality and s["caption"] in texts for s in samples)


def _summary(metrics: Sequence[dict[str, Any]], seen: Mapping[str, int]) -> dict[str, Any]:
    """modality -> the gain per caption with its interval, the samples, and how many of their caption texts training has too."""
    return {
        row["subgroup"]: {
            **dict(zip(("gain_nats_per_caption", "ci_lo", "ci_hi"), rounded(row), strict=True)),
            "n": row["n"],
            "caption_text_in_training": seen[row["subgroup"]],
        }
        for row in metrics
        if row["condition"] == "shuffled - right" and row["metric"] == "nll_per_caption"
    }
