"""Held-out retrieval of the two-tower model, and whether the encoders' own features put like beside like (step eval_retrieval).

Owns ranks, recall, chance levels and their intervals. Input: the two towers, features, caption vectors, shards. Output: samples.parquet (one row per
query) and metrics.parquet.

Candidates of a query are all distinct media, or all distinct captions, of the held-out dataset of its modality. A caption that several media carry is
right for each of them, so a hit for any counts. Chance is exact: what k candidates drawn at random hit, k / candidates for a query with one right answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evals.config import RetrievalEvalConfig
from evals.heldout import SHARDS, Media, distinct_media, where
from evals.left_out import without_features
from evals.statistics.intervals import known_interval, mean_interval, paired_interval
from evals.tables import METRICS, RETRIEVAL_SAMPLES, metric_row, rounded, write_table
from infra.step import AnyloomError, StepContext
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.left_out import summarize
from mmcore.stores.shards import ShardSet
from mmcore.training.signals import target_key
from mmcore.two_tower.model import load_two_tower

DIRECTIONS = ("media_to_text", "text_to_media")

_ROWS = 1024


def run(ctx: StepContext[RetrievalEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns recall, chance and neighbour shares by modality."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    try:
        model = load_two_tower(ctx.inputs["two_tower"].path)
    except ValueError as error:
        raise AnyloomError(f"{ctx.name}: {error}") from error
    samples: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    lines: list[str] = []
    total = len(config.datasets) + len(config.neighbours)
    for number, (modality, dataset) in enumerate(config.datasets):
        ctx.progress(number, total, f"{modality}: retrieval")
        found = _retrieval(ctx, model, modality, dataset, lines)
        samples += found
        metrics += retrieval_metrics(modality, found, config)
    for number, (modality, datasets) in enumerate(config.neighbours):
        ctx.progress(len(config.datasets) + number, total, f"{modality}: neighbours")
        metrics += _neighbours(ctx, modality, datasets, lines)
    write_table(ctx.output / "samples.parquet", samples, RETRIEVAL_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    ctx.progress(total, total, "done")
    return _summary(metrics, {modality: _seen(ctx, modality, samples) for modality, _ in config.datasets}) | ({"left_out": lines} if lines else {})


def ranks(scores_QC: np.ndarray, correct_QC: np.ndarray) -> np.ndarray:
    """Rank [Q], from 1, of each query's best correct candidate. A wrong candidate with the same score stands before it. Raises ValueError for NaN."""
    if np.isnan(scores_QC).any():
        raise ValueError("a score is not a number: the towers were not trained properly")
    best_Q1 = np.where(correct_QC, scores_QC, -np.inf).max(1, keepdims=True)
    return 1 + ((scores_QC >= best_Q1) & ~correct_QC).sum(1)


def chance_level(correct: int, candidates: int, k: int) -> float:
    """Probability that k of the candidates, drawn at random, hold at least one of the correct ones; k / candidates for one."""
    k = min(k, candidates)
    return 1 - math.comb(candidates - correct, k) / math.comb(candidates, k)


def category(uri: str, folder: int) -> str:
    """The `folder`-th part of a medium's path, from 0, parts ending at `/` or `__`; "" when that is the file itself or beyond it."""
    parts = re.split(r"/|__", uri)
    return parts[folder] if folder < len(parts) - 1 else ""


def _featured(ctx: StepContext[RetrievalEvalConfig], modality: str, datasets: Sequence[str], lines: list[str], what: str) -> tuple[Media, EmbeddingSet]:
    """(distinct media that have features, the features). Those that have none are told in `lines`."""
    media = distinct_media(ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores), datasets)
    embedded = ctx.inputs[f"embed_{modality}"].path
    features = EmbeddingSet(embedded, ctx.stores)
    kept, lost = without_features(embedded, media.keys, features)
    lines += summarize(lost, len(media.keys), f"media of {', '.join(datasets)} are {what}")
    return (where(media, set(kept)) if lost else media), features


def _captioned(ctx: StepContext[RetrievalEvalConfig], media: Media, texts: EmbeddingSet, lines: list[str]) -> Media:
    """The media with the captions that have vectors. Captions that have none are told in `lines`."""
    every = sorted({caption for captions in media.captions for caption in captions})
    _, lost = without_features(ctx.inputs["embed_text"].path, [target_key(caption) for caption in every], texts)
    lines += summarize(lost, len(every), "captions are no candidates")
    if not lost:
        return media
    known = replace(media, captions=[[caption for caption in captions if target_key(caption) in texts] for captions in media.captions])
    return where(known, {key for key, captions in zip(known.keys, known.captions, strict=True) if captions})


def _retrieval(ctx: StepContext[RetrievalEvalConfig], model: Any, modality: str, dataset: str, lines: list[str]) -> list[dict[str, Any]]:
    """Rows of RETRIEVAL_SAMPLES of both directions; [] for a dataset with fewer than two media or captions. What has no features is told in `lines`."""

    config = ctx.config
    media, features = _featured(ctx, modality, (dataset,), lines, "no candidates")
    texts = EmbeddingSet(ctx.inputs["embed_text"].path, ctx.stores)
    media = _captioned(ctx, media, texts, lines)
    captions = sorted({caption for texts_of in media.captions for caption in texts_of})
    if min(len(media.keys), len(captions)) < 2:
        return []
    media_MW = tower_vectors(model, modality, features, media.keys, config.batch)
    texts_TW = tower_vectors(model, "text", texts, [target_key(c) for c in captions], config.batch)
    scores_MT = media_MW @ texts_TW.T
    own_MT = np.array([[caption in own for caption in captions] for own in map(set, media.captions)])
    groups = caption_groups(media)
    base = {"modality": modality, "source": dataset}
    rows = []
    for m, rank in enumerate(ranks(scores_MT, own_MT).tolist()):
        query = {"key": media.keys[m], "media_sha256": media.sha256[m], "media_group": groups[m], "caption": media.captions[m][0]}
        rows.append({**base, "direction": DIRECTIONS[0], **query, "rank": rank, "correct": int(own_MT[m].sum()), "candidates": len(captions)})
    for t, rank in enumerate(ranks(scores_MT.T, own_MT.T).tolist()):
        m = int(own_MT[:, t].argmax())
        query = {"key": media.keys[m], "media_sha256": media.sha256[m], "media_group": groups[m], "caption": captions[t]}
        rows.append({**base, "direction": DIRECTIONS[1], **query, "rank": rank, "correct": int(own_MT[:, t].sum()), "candidates": len(media.keys)})
    return rows


def tower_vectors(model: Any, modality: str, source: Any, keys: Sequence[str], batch: int) -> np.ndarray:
    """Unit vectors [len(keys), W] of stored features, `batch` at a time."""
    return np.concatenate([model.vectors(modality, *source.gather(keys[start : start + batch])) for start in range(0, len(keys), batch)])


def retrieval_metrics(modality: str, samples: Sequence[dict[str, Any]], config: RetrievalEvalConfig) -> list[dict[str, Any]]:
    """Rows of METRICS: recall at each k in both directions, its chance level and the paired difference.

    Intervals: 95 % over media; media that share a caption are one cluster.
    """
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    rows = []
    for direction in DIRECTIONS:
        queries = [sample for sample in samples if sample["direction"] == direction]
        clusters = [sample["media_group"] for sample in queries]
        for k in config.ks if queries else ():
            hits = [float(sample["rank"] <= k) for sample in queries]
            chance = [chance_level(sample["correct"], sample["candidates"], k) for sample in queries]
            intervals = {
                (direction, "score"): mean_interval(hits, clusters, proportion=True, **options),
                (f"{direction} chance", "floor"): known_interval(chance, clusters, **options),
                (f"{direction} - chance", "difference"): paired_interval(hits, chance, clusters, proportion=True, **options),
            }
            rows += [metric_row(i, condition=name, metric=f"recall_at_{k}", subgroup=modality, kind=kind) for (name, kind), i in intervals.items()]
    return rows


def caption_groups(media: Media) -> list[str]:
    """Name of each medium's group: media that share a caption, directly or through others, are one group, named by its lowest sha256."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    carrier: dict[str, str] = {}
    for sha256, captions in zip(media.sha256, media.captions, strict=True):
        for caption in captions:
            low, high = sorted((find(sha256), find(carrier.setdefault(caption, sha256))))
            leader[high] = low
    return [find(sha256) for sha256 in media.sha256]


def _neighbours(ctx: StepContext[RetrievalEvalConfig], modality: str, datasets: Sequence[str], lines: list[str]) -> list[dict[str, Any]]:
    """Rows of METRICS: share of the media whose nearest others (cosine of the mean stored token) hold their category, against random others. What has no
    features is told in `lines`."""

    config = ctx.config
    media, features = _featured(ctx, modality, datasets, lines, "no neighbours")
    named = [
        (key, sha256, name) for key, sha256, uri in zip(media.keys, media.sha256, media.uris, strict=True) if (name := category(uri, config.category_folder))
    ]
    if len(named) <= config.num_neighbours:
        return []
    vectors_ME = mean_vectors(features, [key for key, _, _ in named], config.batch)
    hits, chance = neighbour_hits(vectors_ME, [name for _, _, name in named], config.num_neighbours)
    clusters = [sha256 for _, sha256, _ in named]
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    intervals = {
        ("neighbours", "score"): mean_interval(hits, clusters, proportion=True, **options),
        ("neighbours chance", "floor"): known_interval(chance, clusters, **options),
        ("neighbours - chance", "difference"): paired_interval(hits, chance, clusters, proportion=True, **options),
    }
    metric = f"category_in_nearest_{config.num_neighbours}"
    return [metric_row(i, condition=name, metric=metric, subgroup=modality, kind=kind) for (name, kind), i in intervals.items()]


def mean_vectors(source: Any, keys: Sequence[str], batch: int) -> np.ndarray:
    """Mean stored token of each key as a unit vector, float32 [len(keys), E]; zero features stay zero."""
    pooled = []
    for start in range(0, len(keys), batch):
        features_BNE, lengths_B = source.gather(keys[start : start + batch])
        pooled.append(features_BNE.sum(1) / np.maximum(lengths_B, 1)[:, None].astype(np.float32))
    vectors = np.concatenate(pooled)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def neighbour_hits(vectors_ME: np.ndarray, names: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(1.0 where one of the `count` nearest others has the same name, else 0.0; the exact chance of `count` random others), float64 [M] each."""
    _, labels_M = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    sizes_M = np.bincount(labels_M)[labels_M]
    hits = np.zeros(len(names))
    for start in range(0, len(names), _ROWS):
        scores = vectors_ME[start : start + _ROWS] @ vectors_ME.T
        own = np.arange(len(scores))
        scores[own, start + own] = -np.inf
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        hits[start : start + len(scores)] = (labels_M[nearest] == labels_M[start : start + len(scores), None]).any(1)
    levels = {size: chance_level(int(size) - 1, len(names) - 1, count) for size in set(sizes_M.tolist())}
    return hits, np.array([levels[size] for size in sizes_M.tolist()])


def _seen(ctx: StepContext[RetrievalEvalConfig], modality: str, samples: Sequence[dict[str, Any]]) -> int:
    """Held-out captions whose text also stands in a training sample."""

    shards = ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores)
    texts = {text for meta in shards.metas(shards.keys(split="train")) for text in meta["texts"]}
    return sum(s["modality"] == modality and s["direction"] == DIRECTIONS[1] and s["caption"] in texts for s in samples)


def _summary(metrics: Sequence[dict[str, Any]], seen: Mapping[str, int]) -> dict[str, Any]:
    """modality -> condition -> metric -> {value, ci_lo, ci_hi, n} of the scores, {value} of the chance levels; and captions that training has too."""
    found: dict[str, Any] = {}
    for row in metrics:
        if row["kind"] == "difference":
            continue
        shown = dict(zip(("value", "ci_lo", "ci_hi"), rounded(row), strict=True))
        values = shown | {"n": row["n"]} if row["kind"] == "score" else shown["value"]
        found.setdefault(row["subgroup"], {"caption_text_in_training": seen.get(row["subgroup"], 0)}).setdefault(row["condition"], {})[row["metric"]] = values
    return found
