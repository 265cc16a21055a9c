"""Running a recipe: plan, run what is missing, print the closing table. Shared by the Prefect flows and the CLI."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.suites.catalogue import SUITES
from flows.running.display import Display, human_bytes, table
from flows.running.graph import GraphRun
from flows.running.runner import run_graph
from infra.logs import quiet
from infra.materialize import REUSED, Place
from infra.plan import PlanRow, check_files, plan, topological
from infra.remote import Remote
from infra.settings import Settings, offline_environment
from infra.step import AnyloomError, Step

if TYPE_CHECKING:
    from pipelines.recipes.recipe import Recipe

PREPARE_DATA = ("shards_*", "overlap")

EMBED = ("embed_*", "targets*")

EVALUATE = ("history", "report")


ANSWERED = {"eval_vqa", "eval_media_questions", *(f"eval_{task}" for tasks in SUITES.values() for task in tasks)}
"""Evaluations whose answers are right or wrong: those of the leaderboard."""
LEADERBOARD = "select * from leaderboard"
SCORES = "select condition, metric, subgroup, value, ci_lo, ci_hi, n from metric where kind = 'score'"


def recipe_steps(
    recipe: str, overrides: Mapping[str, Any], lists: Mapping[str, str | Path] | None = None, weights: Mapping[str, str | Path] | None = None
) -> dict[str, Step]:
    """Every step of a recipe by name; lists and weights: files of the user's own, a list as FILE or FORMAT:FILE. Raises AnyloomError for an unknown recipe,
    override key or dataset."""
    from pipelines.dag.build import build
    from pipelines.recipes.own_data import format_and_file

    own_lists = {name: Path(format_and_file(str(given))[1]).absolute() for name, given in (lists or {}).items()}
    own_weights = {name: Path(path).absolute() for name, path in (weights or {}).items()}
    return build(made_recipe(recipe, overrides, lists), own_lists, own_weights)


def made_recipe(recipe: str, overrides: Mapping[str, Any] | None = None, lists: Mapping[str, str | Path] | None = None) -> Recipe:
    """The recipe itself, with the datasets that `lists` adds (FORMAT:FILE) and the overrides. Raises as recipe_steps does."""
    from pipelines.recipes import get_recipe
    from pipelines.recipes.own_data import format_and_file

    formats = {name: found for name, given in (lists or {}).items() if (found := format_and_file(str(given))[0])}
    return get_recipe(recipe, overrides, formats)


def select(steps: Mapping[str, Step], targets: Sequence[str] | None) -> list[Step]:
    """The steps called `targets` (all when None). A trailing * matches by prefix. Raises AnyloomError for a name there is none of, listing the names, and for
    files that they need and that are not given."""
    if targets is None:
        check_files(steps.values())
        return list(steps.values())
    chosen: list[Step] = []
    for target in targets:
        found = [step for name, step in steps.items() if name == target or (target.endswith("*") and name.startswith(target[:-1]))]
        if not found:
            raise AnyloomError(f"no step called {target}; the steps are: {', '.join(steps)}")
        chosen += found
    check_files(chosen)
    return chosen


def stage_targets(recipe: str, overrides: Mapping[str, Any] | None, stage: str, lists: Mapping[str, str | Path] | None = None) -> list[str]:
    """The steps of a training stage, with the export when it is the recipe's last stage. Raises AnyloomError for a recipe without the stage."""
    made = made_recipe(recipe, overrides, lists)
    entries = {} if made.two_tower is not None else made.entries
    found = [name for name, config in entries.items() if config.stage == stage]
    if not found:
        raise AnyloomError(f"recipe {made.name} has no {stage}; its stages are: {', '.join(entries) or 'two_tower'}")
    return [*found, *(["export"] if found[-1] == list(entries)[-1] else [])]


def make_place(settings: Settings) -> Place:
    """Local root plus the optional remote mirror."""
    root = settings.root.absolute()
    return Place(root=root, remote=Remote(settings.remote) if settings.remote else None)


def run_targets(
    recipe: str,
    settings: Settings,
    *,
    overrides: Mapping[str, Any] | None = None,
    targets: Sequence[str] | None = None,
    force: Sequence[str] = (),
    lists: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
    display: Display | None = None,
    finished: Callable[[GraphRun, list[PlanRow]], None] | None = None,
) -> dict[str, str]:
    """Materialize targets of a recipe. The rest as in run_steps."""
    steps = select(recipe_steps(recipe, overrides or {}, lists, weights), targets)
    return run_steps(steps, settings, force=force, display=display, finished=finished)


def run_steps(
    steps: list[Step],
    settings: Settings,
    *,
    force: Sequence[str] = (),
    display: Display | None = None,
    finished: Callable[[GraphRun, list[PlanRow]], None] | None = None,
) -> dict[str, str]:
    """Materialize steps, print the closing table, call `finished`. Returns step -> status. Raises the first step's error."""
    place = make_place(settings)
    offline_environment()
    quiet(place.root / "logs" / "run.log")
    display = display or Display()
    started = time.monotonic()
    with display:
        run = run_graph(steps, place, settings, display, force=frozenset(force))
    rows = close(display, run, place.root, time.monotonic() - started)
    if finished is not None:
        finished(run, rows)
    return {name: outcome.status for name, outcome in run.outcomes.items()}


def close(display: Display, run: GraphRun, root: Path, seconds: float) -> list[PlanRow]:
    """The closing table of a finished run. Returns the state of its steps."""
    rows = plan(topological(run.steps), root)
    by_name = {row.step.name: row for row in rows}
    closing_table(
        display,
        [(name, "done" if o.status == REUSED else o.status, o.seconds if o.status != REUSED else 0.0, by_name[name]) for name, o in run.outcomes.items()],
        root,
        seconds,
    )
    return rows


def closing_table(display: Display, rows: Sequence[tuple[str, str, float, PlanRow]], root: Path, seconds: float) -> None:
    """step, status, seconds, size; then what was left out and where the report is."""
    cells = [(name, status, f"{spent:.1f}", human_bytes(row.record.bytes) if row.record else "") for name, status, spent, row in rows]
    display.console.print(table("", ("step", "status", "seconds", "size"), cells))
    executed = sum(status not in ("done", "reused") for _, status, _, _ in rows)
    for name, _, _, row in rows:
        for thing in row.record.result.get("left_out", []) if row.record else []:
            display.say(f"left out ({name}): {thing}")
        if row.record and row.path:
            for line in rows_left_out(name, row.path, row.record.result):
                display.say(line)
    display.say(f"{executed} of {len(rows)} steps executed in {seconds:.0f} s; everything is below {root}")
    report = next((row.path for name, _, _, row in rows if name == "report"), None)
    if report is not None:
        command = Path(sys.argv[0]) if Path(sys.argv[0]).name == "anyloom" else Path("anyloom")
        display.say(f"report: {report / 'report.html'}")
        names = {name for name, *_ in rows}
        display.say(f'ask the history: {command} sql "{LEADERBOARD if names & ANSWERED else SCORES}" --root {root}')
        display.say(f'ask the model: {command} generate --model {root} --image FILE "{"what color is the shape?" if "lists" in names else "What is this?"}"')


def rows_left_out(name: str, path: Path, result: Mapping[str, Any]) -> list[str]:
    """What a step could not take in, for the user: of shards counts by reason and the first row; of those and of stages where all of them are."""
    count = result.get("quarantined", 0) + result.get("failed", 0)
    if not count:
        return [f"  all of them, with the reason: {path / 'ledger.parquet'}"] if result.get("left_out") and (path / "ledger.parquet").is_file() else []
    import pyarrow.parquet as pq

    ledger = pq.read_table(path / "ledger.parquet").to_pylist()
    first = next(line for line in ledger if line["status"] != "written")
    reasons = ", ".join(f"{reason} {n}" for reason, n in result["reasons"].items())
    return [
        f"left out ({name}): {count} of {result['rows']} rows ({reasons}), the first is {first['key']}: {first['detail']}",
        f"  all of them, with the reason: {path / 'ledger.parquet'}",
    ]
