"""Tables of the generation evaluations: what was made, what was said of media, and what stands behind every number.

Owns the Arrow schemas and the making of a row of details. Input: plain values. Refuses to know where scores come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

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
"""suite: held_out or concepts; how: asked or forced; caption: what is asked for; cluster: requests that the bootstrap draws together; text: what was said
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
BOOTSTRAP = "95 % percentile bootstrap over clusters"
JACKKNIFE = "95 % delete-a-group jackknife over clusters"


def detail(metric: Mapping[str, Any], definition: str, interval: str, **known: Any) -> dict[str, Any]:
    """A row of DETAILS of a row of METRICS. known: extractor, extractor_sha256, reference, reference_sha256, n_reference; absent ones are empty."""
    blank: dict[str, Any] = {"extractor": "", "extractor_sha256": "", "reference": "", "reference_sha256": "", "n_reference": 0}
    row = {name: metric[name] for name in ("condition", "metric", "subgroup", "n")}
    return {**row, "definition": definition, "interval": interval, **blank, **known}


def set_digest(members: Iterable[str]) -> str:
    """Hex sha256 of a set of texts or digests, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(members))).encode()).hexdigest()


def shown_values(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """`condition metric subgroup` -> [value, lower, upper], for the result of a step."""
    return {f"{row['condition']} {row['metric']} {row['subgroup']}": [round(row[key], 4) for key in ("value", "ci_lo", "ci_hi")] for row in metrics}
