"""Comparison: two runs on the same samples, and which of their differences are more than chance.

Owns the joining of two runs' samples (by key *and* content, never by position) and the rows of the comparison table. Input: rows of the history's
sample table. Output: rows of COMPARISONS.

Every number is run_b minus run_a: with a before b, a negative delta is a drop. What is compared of a task are the metrics that are means of its samples'
scores, in their own units (evals.suites.catalogue.sample_scores). Within one comparison the tests that may raise an alert (subgroup "all" of every task and
metric, conditions that show the model the right image) are one family for Holm's correction; subgroups and controls are another, to look at only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from evals.history.reader import Group, Score
from evals.statistics.intervals import cluster_sums, paired_interval
from evals.statistics.significance import detectable_difference, holm, mcnemar_exact, permutation_p
from evals.suites.catalogue import sample_scores
from evals.suites.stand_ins import ROTATION
from infra.fingerprint import fingerprint
from infra.step import AnyloomError

COMPARISONS = pa.schema(
    [
        ("comparison_id", pa.string()),
        ("run_a", pa.string()),
        ("run_b", pa.string()),
        ("task", pa.string()),
        ("condition", pa.string()),
        ("metric", pa.string()),
        ("subgroup", pa.string()),
        ("n_paired", pa.int64()),
        ("clusters", pa.int64()),
        ("value_a", pa.float64()),
        ("value_b", pa.float64()),
        ("delta", pa.float64()),
        ("ci_lo", pa.float64()),
        ("ci_hi", pa.float64()),
        ("p", pa.float64()),
        ("p_adjusted", pa.float64()),
        ("test", pa.string()),
        ("flips_up", pa.int64()),
        ("flips_down", pa.int64()),
        ("detectable", pa.float64()),
        ("history_fingerprint", pa.string()),
        ("made", pa.timestamp("us")),
    ]
)
"""comparison_id: of the row. clusters: images. delta: value_b - value_a over the paired samples, with its 95 % interval over
clusters (null with one cluster). p: of `test`,
two-sided; p_adjusted: Holm. flips: samples whose score rose or fell. detectable: the true difference this comparison finds with 80 % chance at p < 0.05."""

CONTROLS = ("blank", "shuffled")
"""Conditions that show the model something else than the question's image: a drop there is no regression."""

AGREE = ("question", "image", "target")
"""What two samples of one key must have in common to be the same sample; `doc_sha256` too where both runs have it."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """The samples of one task and condition that two runs share, ordered by key."""

    keys: tuple[str, ...]
    a: tuple[Mapping[str, Any], ...]
    b: tuple[Mapping[str, Any], ...]
    only_a: int
    """Samples that the other run lacks."""
    only_b: int


def pair(rows_a: Rows, rows_b: Rows) -> dict[Group, Paired]:
    """Join two runs' samples by task, condition and doc_key. Samples without a partner are counted, never compared.

    Raises AnyloomError for a key that occurs twice in one run, or that stands for another question, image or target in the other run.
    """
    first, second = _by_key(rows_a, "the first run"), _by_key(rows_b, "the second run")
    pairs = {}
    for group in sorted(set(first) | set(second)):
        a, b = first.get(group, {}), second.get(group, {})
        keys = tuple(sorted(set(a) & set(b)))
        for key in keys:
            for field in (*AGREE, *(("doc_sha256",) if a[key].get("doc_sha256") and b[key].get("doc_sha256") else ())):
                if a[key].get(field) != b[key].get(field):
                    raise AnyloomError(
                        f"sample {key} of {group[0]} ({group[1]}) has the {field} {a[key].get(field)!r} in one run and {b[key].get(field)!r} in the other: "
                        "the runs did not ask the same thing, so they cannot be compared"
                    )
        pairs[group] = Paired(keys=keys, a=tuple(a[k] for k in keys), b=tuple(b[k] for k in keys), only_a=len(a) - len(keys), only_b=len(b) - len(keys))
    return pairs


def compare(
    rows_a: Rows,
    rows_b: Rows,
    *,
    run_a: str,
    run_b: str,
    fingerprints_a: Mapping[str, str],
    fingerprints_b: Mapping[str, str],
    made: datetime | None = None,
    scored: Collection[Score] | None = None,
    across_fingerprints: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of COMPARISONS: every task and condition that both runs have, all samples and each answer type.

    rows_a, rows_b: rows of the sample table (task, condition, doc_key, question_id, question, image, target, answer_type, score and, if it has one,
    cluster).
    fingerprints_a, fingerprints_b: task -> history_fingerprint. made: when, naive UTC. scored: the scores that both runs have; None: those of every task.
    across_fingerprints: compare although the task, data, scorer or harness differ; the rows then carry both fingerprints. draws, seed: of the bootstrap
    that scores outside 0..1 take; seed: of sampled permutations too.
    Raises AnyloomError for different fingerprints, and as `pair` does.
    """
    pairs = {group: paired for group, paired in pair(rows_a, rows_b).items() if paired.keys}
    comparable = {task: _fingerprint(task, run_a, run_b, fingerprints_a, fingerprints_b, across_fingerprints) for task, _ in pairs}
    rows = []
    for (task, condition), paired in pairs.items():
        for score in sample_scores(task):
            if scored is not None and (task, condition, score.metric) not in scored:
                continue
            counted = by_group(paired) if score.grouped else paired
            for subgroup, chosen in subgroups(counted.a):
                place = {"run_a": run_a, "run_b": run_b, "task": task, "condition": condition, "metric": score.metric, "subgroup": subgroup}
                place["history_fingerprint"] = comparable[task]
                identity = fingerprint(place | {"draws": draws, "seed": seed})[:16]
                rows.append({"comparison_id": identity, **place, **_difference(counted, score.scale, chosen, draws, seed), "made": made})
    _adjust(rows)
    return [{name: row[name] for name in COMPARISONS.names} for row in rows]


def decides(row: Mapping[str, Any]) -> bool:
    """Whether a row's test may raise an alert: all samples of a condition that shows the model the right image."""
    return row["subgroup"] == "all" and row["condition"] not in CONTROLS


def subgroups(rows: Rows) -> Iterable[tuple[str, list[int]]]:
    """("all", every index), then each answer type in alphabetical order with its indices; only "all" when there is one type."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        found[str(row.get("answer_type") or "other")].append(index)
    return [("all", list(range(len(rows)))), *(sorted(found.items()) if len(found) > 1 else ())]


def paired_test(a: np.ndarray, b: np.ndarray, clusters: Sequence[str], *, draws: int = 9999, seed: int = 0) -> tuple[float, str]:
    """(two-sided p, test) for scores [n] of the same samples: McNemar's where it is exact, the permutation over clusters otherwise.

    McNemar's test takes changed answers for independent, which holds when the scores are right or wrong and every changed answer has a cluster of its own.
    """
    difference = b - a
    sums, changed = cluster_sums(difference, np.abs(np.sign(difference)), clusters)
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0} and (changed <= 1).all():
        return mcnemar_exact(int(np.sum(difference > 0)), int(np.sum(difference < 0))), "mcnemar_exact"
    return permutation_p(sums, draws=draws, seed=seed)


def cluster_of(row: Mapping[str, Any]) -> str:
    """The independent unit a sample belongs to: its cluster or image, or itself when it has none."""
    return str(row.get("cluster") or row.get("image") or row["doc_key"])


def by_group(paired: Paired) -> Paired:
    """The rotations of each question as one sample: its first row, with the lowest score of them all."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, row in enumerate(paired.a):
        groups[paired.keys[place] if row.get("question_id") is None else int(row["question_id"]) % ROTATION].append(place)

    def lowest(side: Rows) -> tuple[Mapping[str, Any], ...]:
        scores: list[list[Any]] = [[side[place].get("score") for place in places] for places in groups.values()]
        return tuple({**side[places[0]], "score": None if None in of else min(of)} for places, of in zip(groups.values(), scores, strict=True))

    keys = tuple(paired.keys[places[0]] for places in groups.values())
    return Paired(keys=keys, a=lowest(paired.a), b=lowest(paired.b), only_a=paired.only_a, only_b=paired.only_b)


def _by_key(rows: Rows, run: str) -> dict[Group, dict[str, Mapping[str, Any]]]:
    groups: dict[Group, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        group = (str(row["task"]), str(row["condition"]))
        if row["doc_key"] in groups[group]:
            raise AnyloomError(f"{run} has the sample {row['doc_key']} of {group[0]} ({group[1]}) twice: sample keys must be unique to pair runs")
        groups[group][row["doc_key"]] = row
    return groups


def _fingerprint(task: str, run_a: str, run_b: str, first: Mapping[str, str], second: Mapping[str, str], across: bool) -> str:
    a, b = first.get(task, ""), second.get(task, "")
    if a == b and a:
        return a
    if not across:
        raise AnyloomError(
            f"{task} has the history fingerprint {a or 'none'} in run {run_a} and {b or 'none'} in run {run_b}: task, data, scorer or harness differ, so the "
            "scores are not comparable; compare runs of one fingerprint, or ask for a comparison across fingerprints"
        )
    return a if a == b else f"{a or 'none'} {b or 'none'}"


def _difference(paired: Paired, scale: float, chosen: Sequence[int], draws: int, seed: int) -> dict[str, Any]:
    """The numbers of one row, in units of a metric that is `scale` where every sample scores 1."""
    a, b = (np.array([side[i].get("score") for i in chosen], dtype=np.float64) for side in (paired.a, paired.b))
    missing = np.flatnonzero(np.isnan(a + b))
    if len(missing):
        raise AnyloomError(f"sample {paired.keys[chosen[missing[0]]]} has no score in one of the runs: leave unscored samples out, or score them")
    clusters = [cluster_of(paired.a[i]) for i in chosen]
    shares = bool(np.all((np.concatenate([a, b]) >= 0) & (np.concatenate([a, b]) <= 1)))
    interval = paired_interval(b, a, clusters, draws=draws, seed=seed, proportion=shares)
    p, test = paired_test(a, b, clusters, seed=seed)
    detectable = detectable_difference(interval.stderr, interval.n, binary=set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0})
    return {
        "n_paired": interval.n,
        "clusters": interval.clusters,
        "value_a": scale * float(a.mean()),
        "value_b": scale * float(b.mean()),
        "delta": scale * interval.value,
        "ci_lo": None if interval.ci_lo is None else scale * interval.ci_lo,
        "ci_hi": None if interval.ci_hi is None else scale * interval.ci_hi,
        "p": p,
        "test": test,
        "flips_up": int(np.sum(b > a)),
        "flips_down": int(np.sum(b < a)),
        "detectable": None if detectable is None else scale * detectable,
    }


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in p_adjusted within the two families of the module docstring."""
    families: dict[bool, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        families[decides(row)].append(row)
    for family in families.values():
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_adjusted"] = adjusted
