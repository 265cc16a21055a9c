"""Rows of metrics about distances: made media to real ones, beside real ones among themselves and scrambled ones.

Owns which sets are compared, at what number, and the words that say so. Input: vectors of three sets; output: rows of METRICS with their definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from evals.generation.distances import frechet_distance, in_span, kernel_distance
from evals.generation.extractors import Extractor
from evals.statistics.jackknife import MIN_GROUPS, jackknife_interval
from evals.tables import metric_row

FORMULA = {"frechet_distance": {"image": "FID", "video": "FID of frames", "audio": "FAD"}, "kernel_distance": dict.fromkeys(("image", "video", "audio"), "KID")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """Vectors of one set of media, float32 [M, E], and the independent item each belongs to."""

    rows_ME: np.ndarray
    clusters: list[str]

    @classmethod
    def of(cls, extractor: Extractor, media: Sequence[Any], clusters: Sequence[str]) -> Vectors:
        """Of media in the order of their clusters; a video has several vectors."""
        rows_ME, owners = extractor.vectors(media)
        return cls(rows_ME=rows_ME, clusters=[clusters[owner] for owner in owners])

    def where(self, chosen: set[str]) -> Vectors:
        """The rows of some clusters."""
        keep = np.array([cluster in chosen for cluster in self.clusters])
        return Vectors(rows_ME=self.rows_ME[keep], clusters=[cluster for cluster in self.clusters if cluster in chosen])


def distance_rows(
    condition: str, modality: str, made: Vectors, real: Vectors, mixed: Vectors, groups: int, seed: int
) -> tuple[list[tuple[dict[str, Any], str]], dict[str, str]]:
    """([(row of METRICS, its definition)], pair -> why it is not scored): made to real, scrambled to real, and real to real with as many on the made side.

    real: in a drawn order, which the halves and the kernel distance follow.
    """
    order = list(dict.fromkeys(real.clusters))
    half = min(len(set(made.clusters)), len(order) // 2)
    pairs = {
        (condition, "score"): (made, real),
        (f"{condition}, scrambled", "floor"): (mixed, real),
        (f"{condition}, real", "floor"): (real.where(set(order[:half])), real.where(set(order[half:]))),
    }
    rows, refused = [], {}
    for (name, kind), (first, second) in pairs.items():
        counts = len(set(first.clusters)), len(set(second.clusters))
        if min(counts) < MIN_GROUPS:
            refused[f"distance ({name})"] = f"{counts[0]} media against {counts[1]} real ones: at least {MIN_GROUPS} on each side are needed"
            continue
        for metric, score in _scores(first, second).items():
            interval = jackknife_interval(score, [first.clusters, second.clusters], groups, seed)
            row = metric_row(interval, condition=name, metric=metric, subgroup=modality, kind=kind)
            numbers = {key: row[key] for key in ("value", "ci_lo", "ci_hi", "stderr") if row[key] is not None}
            row |= {key: float(f"{number:.8g}") for key, number in numbers.items()}  # matrix products round by the number of threads
            rows.append((row, _definition(metric, modality, first, second)))
    return rows, refused


def _scores(first: Vectors, second: Vectors) -> dict[str, Callable[[list[np.ndarray]], float]]:
    """Both distances as functions of the rows that are kept."""
    made, real = in_span(first.rows_ME, second.rows_ME)
    width = first.rows_ME.shape[1]
    return {
        "frechet_distance": lambda keep: frechet_distance(made[keep[0]], real[keep[1]]),
        "kernel_distance": lambda keep: kernel_distance(made[keep[0]], real[keep[1]], width),
    }


def _definition(metric: str, modality: str, first: Vectors, second: Vectors) -> str:
    """What the number is, and how far it can be trusted."""
    formula = f"the formula of {FORMULA[metric][modality]} by torchmetrics {version('torchmetrics')}, on this extractor and not on its usual one"
    numbers = f"{len(first.rows_ME)} against {len(second.rows_ME)} vectors of width {first.rows_ME.shape[1]}"
    if metric == "kernel_distance":
        return f"{formula}; {numbers}, of which {min(len(first.rows_ME), len(second.rows_ME))} on each side; unbiased, so it can fall below 0"
    return f"{formula}; {numbers}; biased upwards at small numbers: read it beside real to real of the same number, and beside the kernel distance"
