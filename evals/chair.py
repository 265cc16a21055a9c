"""CHAIR: how often captions name objects that are not in the picture.

Owns the two rates, their floor against other pictures' objects, and how much of what is there gets named (silence has no hallucination). Input: object words
of captions and of pictures; output: rows of METRICS. Refuses to know how words are found (evals.objects) and where captions come from.

Rohrbach et al. 2018 (arXiv 1809.02156): chair_i = hallucinated mentions / mentions, chair_s = captions with one / captions. Not the COCO benchmark: the names
are easyvqa_chair and stamps_chair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.statistics import Interval, bootstrap_ratios, cluster_sums, clustered_stderr, wilson
from evals.tables import metric_row


def ratio_interval(values: Sequence[float], weights: Sequence[float], clusters: Sequence[str], draws: int, seed: int) -> Interval | None:
    """sum(values) / sum(weights) of a rate within 0..1 with a 95 % bootstrap over clusters; n counts the weights. None when the weights are all 0.

    Resamples whose weights are all 0 are left out. At 0 or 1, where a bootstrap has no width, Wilson's interval over the clusters that have weight.
    """
    sums, counts = cluster_sums(np.asarray(values, np.float64), np.asarray(weights, np.float64), clusters)
    if not counts.sum():
        return None
    value = float(sums.sum() / counts.sum())
    with np.errstate(invalid="ignore"):
        ratios = bootstrap_ratios(sums, counts, draws, seed)
    low, high = (float(q) for q in np.quantile(ratios[np.isfinite(ratios)], (0.025, 0.975)))
    used = int((counts > 0).sum())
    if value in (0.0, 1.0):
        low, high = wilson(value * used, used)
    number = round(float(counts.sum()))
    return Interval(value=value, ci_lo=min(low, value), ci_hi=max(high, value), stderr=clustered_stderr(sums, counts), n=number, clusters=used)


def chair_metrics(
    task: str,
    words: Sequence[Sequence[str]],
    present: Sequence[Sequence[str]],
    other: Sequence[Sequence[str]],
    clusters: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of METRICS of one set of captions, subgroup `task`.

    words: object words of each caption; present: of its picture; other: of another picture (the floor `shuffled`); clusters: the pictures.
    """
    rows = []
    for condition, kind, truth in (("generated", "score", present), ("generated, shuffled", "floor", other)):
        wrong = [[word for word in said if word not in there] for said, there in zip(words, truth, strict=True)]
        kept = [[word for word in there if word in said] for said, there in zip(words, truth, strict=True)]
        for metric, values, weights in (
            ("chair_i", [len(row) for row in wrong], [len(row) for row in words]),
            ("chair_s", [bool(row) for row in wrong], [1] * len(words)),
            ("object_recall", [len(row) for row in kept], [len(row) for row in truth]),
        ):
            interval = ratio_interval([float(value) for value in values], [float(weight) for weight in weights], clusters, draws, seed)
            if interval is not None:
                rows.append(metric_row(interval, condition=condition, metric=metric, subgroup=task, kind=kind))
    said = ratio_interval([float(bool(row)) for row in words], [1.0] * len(words), clusters, draws, seed)
    return rows if said is None else [*rows, metric_row(said, condition="generated", metric="names_an_object", subgroup=task, kind="score")]
