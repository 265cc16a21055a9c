"""Suite metrics: the two scores of a task side by side, the harness's own and ours, with intervals.

Owns the rows of metrics.parquet of a suite's task, and the account of where the two scores differ. Input: Docs and answers with both scores; output:
rows of METRICS.

metric: a name of the harness's (`exact_match`, `gpt_eval_score`, ...) has exactly the harness's value, in its unit (MMBench, MM-Vet: 0 to 100);
`harness_vanilla` is its judge on every rotation by itself; `ours_*` is our own reading (evals.suites.reading), from 0 to 1: `ours_accuracy` or, with rotations,
`ours_vanilla` and `ours_circular`; `ours_unparsed` is the share of answers that could not be read, which are wrong; `ours_yes_ratio`, of questions that are
answered with yes or no, is the share of answers that say yes, and under the condition `truth` that of the right answers. Intervals are over whole clusters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from evals.config import SuiteConfig
from evals.statistics.intervals import Interval, known_interval, mean_interval, paired_interval
from evals.suites.catalogue import SuiteTask, full_marks
from evals.suites.reading import EXPLAINED, UNPARSED, Scored, circular
from evals.suites.rows import Doc, clustered
from evals.tables import metric_row
from infra.step import AnyloomError

PARSED = pa.schema(
    [
        ("run_condition", pa.string()),
        ("doc_key", pa.string()),
        ("doc_group", pa.int64()),
        ("cluster", pa.string()),
        ("harness_score", pa.float64()),
        ("our_score", pa.float64()),
        ("parsed", pa.string()),
        ("parse_status", pa.string()),
    ]
)
"""Beside samples.parquet: both scores of every answer, and how ours was read. doc_group: its group of rotations; cluster: what intervals draw."""
CHANCE = "chance"
"""Condition of the floor that follows from the questions alone."""
TRUTH = "truth"
"""Condition of what the right answers say themselves."""
UNREAD, YES_RATIO = "ours_unparsed", "ours_yes_ratio"
"""Metrics that are no scores: more of them is neither better nor worse, or told by the score already."""
ROUNDED = 6e-6
"""MMMU's packaged scorer rounds its mean to five digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The answers of one condition, in the order of the Docs."""

    prompts: list[str]
    """What was asked."""
    predictions: list[str]
    ours: list[Scored] | None
    harness: list[float] | None
    """The packaged score of each answer, where there is one, from 0 to 1."""
    groups: list[float] | None
    """With rotations: the packaged score of its whole group."""
    results: Mapping[str, float]
    """The harness's numbers: metric -> value."""


class _Table:
    """Collects rows of METRICS over one set of Docs."""

    def __init__(self, docs: Sequence[Doc], config: SuiteConfig):
        self.docs, self.clusters = docs, clustered(docs)
        self._options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
        self.rows: list[dict[str, Any]] = []

    def scores(self, values: Sequence[float], first: Sequence[int] | None = None, *, scale: float = 1.0, value: float | None = None, **named: Any) -> None:
        """Rows of all and of every kind. first: the Docs that count, one per group; value: what the harness says of all; a floor called chance follows from the
        questions alone."""
        chosen = list(range(len(self.docs))) if first is None else list(first)
        for subgroup in ("all", *sorted({self.docs[i].kind for i in chosen} - {"all"})):
            mine = [i for i in chosen if subgroup in ("all", self.docs[i].kind)]
            of_kind, clusters = [values[i] for i in mine], [self.clusters[i] for i in mine]
            if named["condition"] == CHANCE:
                interval = known_interval(of_kind, clusters, **self._options)
            else:
                interval = mean_interval(of_kind, clusters, proportion=True, **self._options)
            interval = _scaled(interval, scale)
            if value is not None and subgroup == "all":
                interval = _exactly(interval, value, str(named["metric"]))
            self.rows.append(metric_row(interval, subgroup=subgroup, **named))

    def difference(self, values: Sequence[float], minus: Sequence[float], first: Sequence[int] | None, **named: Any) -> None:
        """A row of the paired difference over all."""
        chosen = range(len(self.docs)) if first is None else first
        clusters = [self.clusters[i] for i in chosen]
        interval = paired_interval([values[i] for i in chosen], [minus[i] for i in chosen], clusters, proportion=True, **self._options)
        self.rows.append(metric_row(interval, subgroup="all", kind="difference", **named))

    def value(self, value: float, **named: Any) -> None:
        """A number of the harness without an interval."""
        interval = Interval(value=value, ci_lo=None, ci_hi=None, stderr=None, n=len(self.docs), clusters=len(set(self.clusters)))
        self.rows.append(metric_row(interval, subgroup="all", **named))


def _scaled(interval: Interval, scale: float) -> Interval:
    known = {name: number for name in ("value", "ci_lo", "ci_hi", "stderr") if (number := getattr(interval, name)) is not None}
    return replace(interval, **{name: number * scale for name, number in known.items()})


def _exactly(interval: Interval, value: float, metric: str) -> Interval:
    """The interval around the harness's own number, to its last digit. Raises AnyloomError when the answers' scores do not add up to it."""
    if not math.isclose(interval.value, value, rel_tol=1e-9, abs_tol=ROUNDED):
        raise AnyloomError(f"lmms-eval says {metric} {value}, but the scores of its answers make {interval.value}: this version of it is not the one we know")
    return replace(interval, value=value)


def suite_metrics(task: SuiteTask, docs: Sequence[Doc], answered: Mapping[str, Answered], config: SuiteConfig) -> list[dict[str, Any]]:
    """Rows of METRICS: every condition by the harness and by us, chance, and the first condition minus each other one (ours, paired)."""
    table = _Table(docs, config)
    bases = _bases(docs) if task.rotations else None
    own = {condition: _own(docs, answers, task) for condition, answers in answered.items() if answers.ours is not None}
    for condition, answers in answered.items():
        named: dict[str, Any] = {"condition": condition, "kind": "score"}
        full = full_marks(task.headline)
        for metric, value in sorted(answers.results.items()):
            if metric == task.headline and answers.groups is not None:
                table.scores(answers.groups, bases, scale=full, value=value, metric=metric, **named)
            elif metric == task.headline and answers.harness is not None:
                table.scores(answers.harness, scale=full, value=value, metric=metric, **named)
            else:
                table.value(value, metric=metric, **named)
        if answers.groups is not None and answers.harness is not None:
            table.scores(answers.harness, scale=full, metric="harness_vanilla", **named)
        for metric, values in own.get(condition, {}).items():
            table.scores(values, bases if metric == "ours_circular" else None, metric=metric, **named)
    if task.reading == "yes_no":
        truth = [float(doc.target.strip().casefold() == "yes") for doc in docs]
        table.scores(truth, metric=YES_RATIO, condition=TRUTH, kind="floor")
    for metric, values in _chance(task, docs).items():
        table.scores(values, bases if metric == "ours_circular" else None, metric=metric, condition=CHANCE, kind="floor")
    headline, *others = answered
    for other in others:
        for metric, values in own.get(headline, {}).items():
            if metric not in (UNREAD, YES_RATIO):
                chosen = bases if metric == "ours_circular" else None
                table.difference(values, own[other][metric], chosen, metric=metric, condition=f"{headline} - {other}")
    return table.rows


def _bases(docs: Sequence[Doc]) -> list[int]:
    """Place of the first row of every group."""
    first: dict[int, int] = {}
    for place, doc in enumerate(docs):
        first.setdefault(doc.group, place)
    return list(first.values())


def _own(docs: Sequence[Doc], answers: Answered, task: SuiteTask) -> dict[str, list[float]]:
    """Our metrics -> a score for every Doc."""
    assert answers.ours is not None
    scores = [one.score for one in answers.ours]
    unparsed = [float(one.how == UNPARSED) for one in answers.ours]
    if task.reading == "yes_no":
        return {"ours_accuracy": scores, UNREAD: unparsed, YES_RATIO: [float(one.parsed == "yes") for one in answers.ours]}
    if not task.rotations:
        return {"ours_accuracy": scores, UNREAD: unparsed}
    hits = circular([doc.group for doc in docs], scores)
    return {"ours_vanilla": scores, "ours_circular": [hits[doc.group] for doc in docs], UNREAD: unparsed}


def _chance(task: SuiteTask, docs: Sequence[Doc]) -> dict[str, list[float]]:
    """What a letter drawn at random would score on multiple-choice questions."""
    if task.reading != "choice" or not all(doc.options for doc in docs):
        return {}
    single = [1 / len(doc.options) for doc in docs]
    if not task.rotations:
        return {"ours_accuracy": single}
    sizes = Counter(doc.group for doc in docs)
    return {"ours_vanilla": single, "ours_circular": [share ** sizes[doc.group] for doc, share in zip(docs, single, strict=True)]}


def explained(task: SuiteTask, answers: Answered) -> dict[str, Any]:
    """Where our score of an answer and the harness's differ, how often, and why they can."""
    if answers.ours is None or answers.harness is None:
        return {}
    pairs = list(zip(answers.ours, answers.harness, strict=True))
    higher, lower = ([one.how for one, other in pairs if compare(one.score, other)] for compare in (_above, _below))
    return {
        "why": EXPLAINED[task.reading],
        "ours_higher": len(higher),
        "ours_higher_read_by": dict(sorted(Counter(higher).items())),
        "ours_lower": len(lower),
        "ours_lower_read_by": dict(sorted(Counter(lower).items())),
    }


def _above(ours: float, theirs: float) -> bool:
    return ours > theirs + 1e-9


def _below(ours: float, theirs: float) -> bool:
    return ours < theirs - 1e-9
