"""CHAIR: how often captions name objects that are not in the image.

Owns the two rates, their floor against other images' objects, and how much of what is there gets named (silence has no hallucination). Input: object words
of captions and of images; output: rows of METRICS.

Rohrbach et al. 2018 (arXiv 1809.02156): chair_i = hallucinated mentions / mentions, chair_s = captions with one / captions. Not the COCO benchmark: the names
are easyvqa_chair and stamps_chair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.statistics.intervals import ratio_interval
from evals.tables import metric_row


def chair_metrics(
    task: str,
    words: Sequence[Sequence[str]],
    present: Sequence[Sequence[str]],
    other: Sequence[Sequence[str]],
    clusters: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of METRICS of one set of captions, subgroup `task`.

    words: object words of each caption; present: of its image; other: of another image (the floor `shuffled`); clusters: the images.
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
            interval = ratio_interval([float(value) for value in values], [float(weight) for weight in weights], clusters)
            if interval is not None:
                rows.append(metric_row(interval, condition=condition, metric=metric, subgroup=task, kind=kind))
    said = ratio_interval([float(bool(row)) for row in words], [1.0] * len(words), clusters)
    return rows if said is None else [*rows, metric_row(said, condition="generated", metric="names_an_object", subgroup=task, kind="score")]
