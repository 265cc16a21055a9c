"""Tables: the columns of evaluation results.

Owns the Arrow schemas of samples and metrics, and the making of metric rows from scores. Input: plain rows. Output: Parquet with
the same bytes for the same rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evals.statistics.intervals import Interval, mean_interval, paired_interval

GENERATED = pa.schema(
    [
        ("suite", pa.string()),
        ("how", pa.string()),
        ("modality", pa.string()),
        ("prompt", pa.string()),
        ("caption", pa.string()),
        ("cluster", pa.string()),
        ("text", pa.string()),
        ("broken", pa.string()),
        ("emitted", pa.float64()),
        ("file", pa.string()),
        ("media_sha256", pa.string()),
        ("seed", pa.int64()),
        ("shown", pa.bool_()),
        ("seen", pa.string()),
        ("right", pa.float64()),
        ("right_of_other", pa.float64()),
        ("clipscore", pa.float64()),
        ("clipscore_of_other", pa.float64()),
    ]
)
"""suite: held_out or concepts; how: asked or forced; caption: what is asked for; cluster: requests that intervals take as one; text: what was said
in words; emitted: 1 when the model wrote the whole signal block itself; file: the medium in the artifact, "" when none was made; shown: a seeded draw of the
suite; seen: what a classifier saw or heard; right: 1 where that is what was asked for; *_of_other: the same medium against another request; null: not
scored."""

CAPTIONED = pa.schema(
    [
        ("modality", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("media_sha256", pa.string()),
        ("references", pa.list_(pa.string())),
        ("other_key", pa.string()),
        ("generated", pa.string()),
        ("cider", pa.float64()),
        ("cider_of_other", pa.float64()),
        ("rouge_l", pa.float64()),
        ("rouge_l_of_other", pa.float64()),
        ("spice", pa.float64()),
        ("named", pa.list_(pa.string())),
        ("hallucinated", pa.list_(pa.string())),
        ("present", pa.list_(pa.string())),
    ]
)
"""references: the medium's own captions; other_key: the medium whose captions stand for wrong ones; named: object words of the generated caption, each once;
hallucinated: those that are not present; present: object words that the medium is known to show; null: not scored."""

DETAILS = pa.schema(
    [
        ("condition", pa.string()),
        ("metric", pa.string()),
        ("subgroup", pa.string()),
        ("definition", pa.string()),
        ("extractor", pa.string()),
        ("extractor_sha256", pa.string()),
        ("reference", pa.string()),
        ("reference_sha256", pa.string()),
        ("n", pa.int64()),
        ("n_reference", pa.int64()),
        ("interval", pa.string()),
    ]
)
"""One row for each row of metrics, in its order. definition: the formula, its library with version and what is ours in it; extractor: encoder or judge, with
the digest of its weights; reference: what media or captions it is compared with, with the digest of all their bytes; interval: how it was made."""

CLUSTERED = "95 % interval over clusters: of a share a score interval, of other scores bootstrap-t (CR2)"

JACKKNIFE = "95 % delete-a-group jackknife over clusters"


def detail(metric: Mapping[str, Any], definition: str, interval: str, **known: Any) -> dict[str, Any]:
    """A row of DETAILS of a row of METRICS. known: extractor, extractor_sha256, reference, reference_sha256, n_reference; absent ones are empty."""
    blank: dict[str, Any] = {"extractor": "", "extractor_sha256": "", "reference": "", "reference_sha256": "", "n_reference": 0}
    row = {name: metric[name] for name in ("condition", "metric", "subgroup", "n")}
    return {**row, "definition": definition, "interval": interval, **blank, **known}


def set_digest(members: Iterable[str]) -> str:
    """Hex sha256 of a set of texts or digests, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(members))).encode()).hexdigest()


def shown_values(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """`condition metric subgroup` -> [value, lower, upper], for the result of a step."""
    return {f"{row['condition']} {row['metric']} {row['subgroup']}": rounded(row) for row in metrics}


def rounded(row: Mapping[str, Any], digits: int = 4) -> list[float | None]:
    """[value, lower, upper] of a row of METRICS; None where it has none."""
    return [None if row[key] is None else round(row[key], digits) for key in ("value", "ci_lo", "ci_hi")]


VQA_SAMPLES = pa.schema(
    [
        ("run_condition", pa.string()),
        ("doc_key", pa.string()),
        ("question_id", pa.int64()),
        ("picture", pa.string()),
        ("question", pa.string()),
        ("answer_type", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),
        ("caption", pa.string()),
        ("score", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)

CAPTION_SAMPLES = pa.schema(
    [
        ("modality", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("media_sha256", pa.string()),
        ("caption", pa.string()),
        ("other_key", pa.string()),
        ("nll_right", pa.float64()),
        ("nll_shuffled", pa.float64()),
        ("nll_blank", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)

ALIGNMENT_SAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("other_caption", pa.string()),
        ("error", pa.float64()),
        ("error_mean", pa.float64()),
        ("error_shuffled", pa.float64()),
    ]
)

DRIFT_SAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("error_before", pa.float64()),
        ("error_after", pa.float64()),
        ("error_mean", pa.float64()),
        ("nll_before", pa.float64()),
        ("nll_after", pa.float64()),
    ]
)
"""before and after stage 3: error of the conditioning (error_mean: of the mean predictor), and cross-entropy of the signal tokens in nats per token."""

RETRIEVAL_SAMPLES = pa.schema(
    [
        ("modality", pa.string()),
        ("source", pa.string()),
        ("direction", pa.string()),
        ("key", pa.string()),
        ("media_sha256", pa.string()),
        ("media_group", pa.string()),
        ("caption", pa.string()),
        ("rank", pa.int64()),
        ("correct", pa.int64()),
        ("candidates", pa.int64()),
    ]
)
"""direction: media_to_text or text_to_media. key, media_sha256, caption: of the query; a caption's medium is the first that carries it.
media_group: media that share a caption, the unit of intervals.
rank: of the best correct candidate, from 1; correct: how many of the candidates are."""

IMAGE_SAMPLES = pa.schema(
    [
        ("made_as", pa.string()),
        ("prompt", pa.string()),
        ("concept", pa.string()),
        ("draw", pa.int64()),
        ("seen_shape", pa.string()),
        ("seen_colour", pa.string()),
        ("shape", pa.float64()),
        ("colour", pa.float64()),
        ("both", pa.float64()),
        ("nearest_key", pa.string()),
        ("nearest_rmse", pa.float64()),
    ]
)
"""made_as: the condition; seen_*: what the judge says; shape, colour, both: 1 where that is what was asked for; nearest_key: the training image that is
nearest, itself or mirrored; nearest_rmse: root mean square difference to it, of pixels in [0, 1]."""

DRAWING_REPLIES = pa.schema(
    [
        ("condition", pa.string()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("blocks", pa.int64()),
        ("broken", pa.string()),
        ("emitted", pa.float64()),
    ]
)
"""text: what was said in words; blocks: whole signal blocks in the reply; broken: what was wrong with signal tokens that made none."""

DRAWING_SAMPLES = pa.schema(
    [
        ("made_as", pa.string()),
        ("prompt", pa.string()),
        ("concept", pa.string()),
        ("other_concept", pa.string()),
        ("drawn", pa.float64()),
        ("seen_shape", pa.string()),
        ("seen_colour", pa.string()),
        ("shape", pa.float64()),
        ("colour", pa.float64()),
        ("both", pa.float64()),
        ("shape_of_other", pa.float64()),
        ("colour_of_other", pa.float64()),
        ("both_of_other", pa.float64()),
    ]
)
"""As IMAGE_SAMPLES; drawn: 1 when the model drew anything; *_of_other: the same image judged against other_concept."""

SPEAKING_REPLIES = pa.schema([*DRAWING_REPLIES, ("pictures", pa.int64())])
"""images: whole signal blocks of images in the reply."""

SPEAKING_SAMPLES = pa.schema(
    [
        ("made_as", pa.string()),
        ("prompt", pa.string()),
        ("concept", pa.string()),
        ("other_concept", pa.string()),
        ("spoken", pa.float64()),
        ("heard", pa.string()),
        ("sound", pa.string()),
        ("shape", pa.float64()),
        ("colour", pa.float64()),
        ("both", pa.float64()),
        ("shape_of_other", pa.float64()),
        ("colour_of_other", pa.float64()),
        ("both_of_other", pa.float64()),
    ]
)
"""spoken: 1 when there was an audio clip; heard: what the judge wrote down; audio: file in the artifact, "" when it was not kept; shape, colour, both: 1 where
that word was heard; *_of_other: the same audio clip against other_concept."""

METRICS = pa.schema(
    [
        ("condition", pa.string()),
        ("metric", pa.string()),
        ("subgroup", pa.string()),
        ("value", pa.float64()),
        ("ci_lo", pa.float64()),
        ("ci_hi", pa.float64()),
        ("n", pa.int64()),
        ("clusters", pa.int64()),
        ("stderr", pa.float64()),
        ("kind", pa.string()),
    ]
)
"""kind: score (of the model), floor (without the media or the model) or difference (paired, first minus second condition)."""

SUBGROUPS = ("yes/no", "shape", "colour", "other")


def write_table(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows as Parquet; every row must have exactly the schema's columns (ValueError otherwise)."""
    for row in rows:
        if set(row) != set(schema.names):
            raise ValueError(f"{path.name}: a row has the columns {sorted(row)}, not {sorted(schema.names)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")


def metric_row(interval: Interval, *, condition: str, metric: str, subgroup: str, kind: str) -> dict[str, Any]:
    """One row of METRICS. What is not known, or no number, is None."""
    return {
        "condition": condition,
        "metric": metric,
        "subgroup": subgroup,
        "value": _number(interval.value),
        "ci_lo": _number(interval.ci_lo),
        "ci_hi": _number(interval.ci_hi),
        "n": interval.n,
        "clusters": interval.clusters,
        "stderr": _number(interval.stderr),
        "kind": kind,
    }


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def score_rows(
    samples: Sequence[dict[str, Any]],
    scores: Sequence[float],
    *,
    condition: str,
    kind: str,
    draws: int,
    seed: int,
    minus: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Metric rows `exact_match` of all samples and of each subgroup present, with intervals clustered by image.

    samples: dicts with `picture` and `answer_type`; minus: scores of the same samples to subtract (paired difference).
    """
    rows = []
    present = {sample["answer_type"] for sample in samples}
    for subgroup in ("all", *(name for name in SUBGROUPS if name in present)):
        chosen = [i for i, sample in enumerate(samples) if subgroup in ("all", sample["answer_type"])]
        values, clusters = [scores[i] for i in chosen], [samples[i]["picture"] for i in chosen]
        if minus is None:
            interval = mean_interval(values, clusters, draws=draws, seed=seed, proportion=True)
        else:
            interval = paired_interval(values, [minus[i] for i in chosen], clusters, draws=draws, seed=seed, proportion=True)
        rows.append(metric_row(interval, condition=condition, metric="exact_match", subgroup=subgroup, kind=kind))
    return rows
