"""Nightly review: what the newest run means beside the nights before it and the pinned baselines.

Owns which runs are compared, the change points of every score, and the summary. Input: the history and a run in it. Output: Review.
The same history gives the same review; once its rows are in the history, its alerts are notes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from evals.history.reader import History, history_of
from evals.history.series import Series, series_of
from evals.nightly.alerts import CHANGED, COMPARED, Alert, Policy, alerts_of_changes, alerts_of_comparisons
from evals.nightly.comparison import CONTROLS, compare, decides, pair
from evals.nightly.text import markdown
from evals.statistics.change_points import Change, find_changes, night_noise, retraining_sd, segments
from infra.fingerprint import fingerprint
from infra.step import AnyloomError

NEAR = 2
"""A change point that moves by so many nights when a night is added is the same one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """The outcome of one night."""

    comparisons: tuple[dict[str, Any], ...]
    """Rows of COMPARISONS: the newest run against the one before it and each baseline."""
    change_points: tuple[dict[str, Any], ...]
    """Rows of CHANGE_POINTS: all that today's series show, old ones included."""
    alerts: tuple[Alert, ...]
    """Alerts first, then notes."""
    markdown: str


def review(
    stores: Path,
    run_id: str,
    baselines: Sequence[str] = (),
    recipe: str | None = None,
    seed: int = 0,
    *,
    policy: Policy | None = None,
    draws: int = 2000,
) -> Review:
    """Compare a run of the history with the run before it and with `baselines`, and search every score's series for change points.

    baselines: run ids of pinned runs. recipe: whose nights the series are; None: the run's own. seed, draws: of the bootstrap that scores outside 0..1
    take; seed: of sampled permutations too. Only scores of one history_fingerprint are compared; what has no partner is a note, and so is what the history
    holds already.
    Raises AnyloomError for a run that the history has not, and for samples that disagree about what was asked.
    """
    with history_of(stores) as history:
        return _review(history, run_id, baselines, recipe or history.run(run_id).recipe, seed, policy or Policy(), draws)


def _review(history: History, run_id: str, baselines: Sequence[str], recipe: str, seed: int, policy: Policy, draws: int) -> Review:
    series = series_of(history, run_id, recipe, policy.window)
    changes, fresh = _changes(history, series, seed, policy)
    previous = _previous(history, run_id, recipe)
    comparisons: list[dict[str, Any]] = []
    alerts: list[Alert] = []
    for other, tasks in [*previous.items(), *((name, None) for name in baselines if name != run_id)]:
        rows, notes = _compare(history, other, run_id, tasks, seed, draws)
        comparisons += [row for row in rows if row["comparison_id"] not in {known["comparison_id"] for known in comparisons}]
        alerts += notes
    if not previous:
        alerts.append(Alert(kind="not_compared", severity="note", text=f"{recipe} has no earlier run that compares with {run_id}", run_id=run_id))
    names = {name: name for name in baselines}
    standing = _standing(history, previous, baselines, policy, seed, draws)
    recorded = history.recorded("comparison", COMPARED)
    alerts += alerts_of_comparisons(comparisons, policy, spread=_spread(history, series, policy), baselines=names, standing=standing, recorded=recorded)
    better = {s.metric: s.higher_is_better for s in series}
    alerts += alerts_of_changes(fresh, policy, better=better, run_id=run_id, recorded=history.recorded("change_point", CHANGED))
    ordered = tuple(sorted(alerts, key=lambda alert: alert.severity != "alert"))
    text = markdown(history.run(run_id), recipe, ordered, comparisons, changes, series)
    return Review(comparisons=tuple(comparisons), change_points=tuple(changes), alerts=ordered, markdown=text)


def compare_runs(history: History, run_a: str, run_b: str, *, seed: int = 0, draws: int = 2000) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of COMPARISONS of any two runs, and a line about every task or sample of either that is left out.

    Raises AnyloomError for a run that the history has not, for the same run twice, for two runs that were asked nothing alike, and for samples that
    disagree about what was asked.
    """
    history.run(run_a)
    if run_a == run_b:
        raise AnyloomError(f"run {run_a} is named twice: name another one to compare it with")
    rows, notes = _compare(history, run_a, run_b, None, seed, draws)
    notices = [note.text for note in notes]
    alone = sum(row["ci_lo"] is None for row in rows)
    if alone:
        notices.append(f"{alone} differences have no interval: their samples are one cluster, so nothing says how much another one would differ")
    if not rows:
        why = f": {notices[0]}" if notices else ""
        raise AnyloomError(f"runs {run_a} and {run_b} have no score on the same samples{why}; compare runs that were asked the same")
    return rows, notices


def _previous(history: History, run_id: str, recipe: str) -> dict[str, set[str]]:
    """Earlier run -> tasks of the newest run for which it is the latest one with the same fingerprint."""
    found: dict[str, set[str]] = defaultdict(set)
    earlier = history.before(run_id, recipe)[::-1]
    for task, comparable in history.fingerprints(run_id).items():
        name = next((name for name in earlier if history.fingerprints(name).get(task) == comparable), None)
        if name is not None:
            found[name].add(task)
    return dict(found)


def _compare(history: History, other: str, run_id: str, tasks: set[str] | None, seed: int, draws: int) -> tuple[list[dict[str, Any]], list[Alert]]:
    """Rows of COMPARISONS of the tasks (None: all that both have) with one fingerprint, and notes about what has no partner."""
    first, second = history.fingerprints(other), history.fingerprints(run_id)
    shared = {task for task in second if first.get(task) == second[task] and (tasks is None or task in tasks)}
    a, b = (history.samples(name, shared) for name in (other, run_id))
    notes = [
        Alert(
            kind="not_compared",
            severity="note",
            text=f"{task} of run {other} has another history fingerprint ({first.get(task, 'none')}, now {second[task]}): not compared",
            run_id=run_id,
            task=task,
        )
        for task in sorted(second)
        if tasks is None and task not in shared
    ]
    for (task, condition), paired in pair(a, b).items():
        if paired.only_a or paired.only_b:
            text = f"{task} ({condition}): {paired.only_a} samples of run {other} and {paired.only_b} of run {run_id} have no partner and are left out"
            notes.append(Alert(kind="unpaired", severity="note", text=text, run_id=run_id, task=task, condition=condition))
    made = history.run(run_id).evaluated
    both = history.scores(other) & history.scores(run_id)
    rows = compare(a, b, run_a=other, run_b=run_id, fingerprints_a=first, fingerprints_b=second, made=made, scored=both, seed=seed, draws=draws)
    return rows, notes


def _standing(
    history: History, previous: Mapping[str, set[str]], baselines: Sequence[str], policy: Policy, seed: int, draws: int
) -> frozenset[tuple[str, str, str, str]]:
    """(baseline, task, condition, metric) that the run before this one was already significantly below."""
    found = set()
    for before, tasks in previous.items():
        for baseline in baselines:
            if baseline == before:
                continue
            rows, _ = _compare(history, baseline, before, tasks, seed, draws)
            for row in rows:
                if decides(row) and row["p_adjusted"] < policy.level and -row["delta"] > policy.relevant(row["metric"]):
                    found.add((baseline, row["task"], row["condition"], row["metric"]))
    return frozenset(found)


def _changes(history: History, series: Sequence[Series], seed: int, policy: Policy) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of CHANGE_POINTS of all series, those of headline series that the newest night brought to light)."""
    rows, fresh = [], []
    overall = {(s.task, s.condition, s.metric) for s in series if s.subgroup == "all"}
    for one in series:
        annotations = history.annotations(one.recipe, one.task)
        found = _found(one, annotations, seed, policy)
        now = _change_rows(one, found)
        rows += now
        headline = one.subgroup == "all" or (one.task, one.condition, one.metric) not in overall
        if now and headline and one.condition not in CONTROLS:
            known = [night for night, _ in _found(_without_newest(one), annotations, seed, policy)]
            fresh += [row for row, (night, _) in zip(now, found, strict=True) if not any(abs(night - old) <= NEAR for old in known)]
    return rows, fresh


def _without_newest(series: Series) -> Series:
    return replace(series, nights=series.nights[:-1], scores=None if series.scores is None else series.scores[:-1])


def _found(series: Series, annotations: Sequence[datetime], seed: int, policy: Policy) -> list[tuple[int, Change]]:
    """(night, change) of a series, each segment between annotations on its own. With shared samples the noise of single answers is known."""
    found, start = [], 0
    for part in segments(series.nights, annotations):
        noise = 0.0 if series.scores is None else night_noise(series.scores[start : start + len(part)], series.clusters)
        changes = find_changes([night.value for night in part], noise=noise, level=policy.change_level, seed=seed)
        found += [(start + change.index, change) for change in changes]
        start += len(part)
    return found


def _change_rows(series: Series, found: Sequence[tuple[int, Change]]) -> list[dict[str, Any]]:
    """Rows of CHANGE_POINTS of one series."""
    names = ("recipe", "task", "condition", "metric", "subgroup", "history_fingerprint")
    place = {name: getattr(series, name) for name in names}
    rows = []
    for night, change in found:
        at = series.nights[night].at
        rows.append(
            {
                "series_id": fingerprint(place)[:16],
                **{name: place[name] for name in names[:-1]},
                "run_before": series.nights[night - 1].run_id,
                "run_at": series.nights[night].run_id,
                "at": at if at > datetime.min else None,
                "before": change.before,
                "after": change.after,
                "delta": change.after - change.before,
                "p": change.p,
                "history_fingerprint": series.history_fingerprint,
            }
        )
    return rows


def _spread(history: History, series: Sequence[Series], policy: Policy) -> dict[tuple[str, str, str], float]:
    """(task, condition, metric) -> standard deviation of a night beyond its single answers, from the nights since the last annotation but the newest."""
    found = {}
    for one in series:
        if one.subgroup != "all" or one.scores is None:
            continue
        part = segments(one.nights, history.annotations(one.recipe, one.task))[-1]
        scores, nights = one.scores[-len(part) : -1], part[:-1]
        if len(nights) >= policy.nights:
            found[one.task, one.condition, one.metric] = retraining_sd([night.value for night in nights], night_noise(scores, one.clusters))
    return found
