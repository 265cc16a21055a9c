"""What `anyloom plan` says, and what `anyloom run` and its relatives do: nothing when all is done, else the plain runner or the Prefect flow.

Output: Answers; that of a run is the state of its steps at the end, with what each gave. Raises what a step raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.running.answer import Answer
from flows.running.display import Display, table
from flows.running.interrupts import ending_begins, never_missed
from flows.running.run import closing_table, made_recipe, make_place, recipe_steps, run_targets, select
from infra.lock import exclusive
from infra.logs import quiet
from infra.plan import DONE, PlanRow, plan
from infra.remote import mirror
from infra.secrets import shown_values
from infra.settings import Settings, prefect_environment, prefect_url


def run_recipe(
    recipe: str,
    *,
    settings: Settings,
    overrides: Mapping[str, Any],
    targets: Sequence[str] | None,
    force: Sequence[str],
    lists: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Answer:
    """What `anyloom run` does: nothing at all when everything is done, else the Prefect flow or the plain runner."""
    steps = select(recipe_steps(recipe, overrides, lists, weights), targets)
    place = make_place(settings)
    started, begun = time.monotonic(), datetime.now(UTC).replace(microsecond=0)
    rows = plan(steps, place.root)
    if not force and all(row.status == DONE for row in rows):
        if place.remote is not None:
            mirror(place.remote, place.root, [row.path for row in rows if row.path is not None], say)
        closing_table(Display(), [(row.step.name, "done", 0.0, row) for row in rows], place.root, time.monotonic() - started)
        return Answer(lambda: _outcome(recipe, place.root, rows, rows, (), begun))
    servers = [name for name, used in (("Prefect", settings.use_prefect), ("Ray", settings.use_ray)) if used]
    if servers:
        say(f"starting {' and '.join(servers)}")
    with never_missed(), exclusive(place.root / "locks" / "run.lock", lambda who: say(f"another run uses {place.root}; waiting for {who}")):
        if settings.use_prefect:
            _run_in_prefect(recipe, settings, overrides, targets, force, lists, weights)
        else:
            run_targets(recipe, settings, overrides=overrides, targets=targets, force=force, lists=lists, weights=weights)
    return Answer(lambda: _outcome(recipe, place.root, rows, plan(steps, place.root), force, begun))


def _outcome(recipe: str, root: Path, before: Sequence[PlanRow], rows: Sequence[PlanRow], force: Sequence[str], begun: datetime) -> dict[str, Any]:
    """The steps as a run that began then has left them. executed: those that it did itself, not found done or fetched; a forced one that gave the same
    bytes keeps its first record."""
    found = {row.step.name: row.record for row in before}

    def executed(row: PlanRow) -> bool:
        new = row.record is not None and row.record != found[row.step.name] and datetime.fromisoformat(row.record.provenance.finished) >= begun
        return new or row.step.name in force

    made = [_state(row) | {"executed": executed(row)} for row in rows]
    report = next((row.path / "report.html" for row in rows if row.step.name == "report" and row.record and row.path), None)
    return {"recipe": recipe, "root": root, "executed": sum(one["executed"] for one in made), "steps": made, "report": report}


def _state(row: PlanRow) -> dict[str, Any]:
    """One step for programs."""
    known: dict[str, Any] = {"step": row.step.name, "state": row.status, "reason": row.reason, "artifact": row.path}
    known |= dict.fromkeys(("bytes", "seconds", "result"))
    if row.record is not None:
        known |= {"bytes": row.record.bytes, "seconds": row.record.provenance.seconds, "result": row.record.result}
    return known


def plan_recipe(recipe: str, root: Path, overrides: Mapping[str, Any], lists: Mapping[str, str], weights: Mapping[str, str]) -> Answer:
    """What `anyloom plan` says. Nothing is run or written."""
    from pipelines.dag.given import left_out

    rows = plan(recipe_steps(recipe, overrides, lists, weights).values(), root)
    done, lacking = sum(row.status == DONE for row in rows), left_out(made_recipe(recipe, overrides, lists))

    def show() -> None:
        Display().console.print(table("", ("step", "state", "reason"), [(row.step.name, row.status, row.reason) for row in rows]))
        print(*(f"left out: {line}" for line in lacking), f"{done} of {len(rows)} steps done below {root}", sep="\n")

    return Answer({"recipe": recipe, "root": root, "done": done, "steps": [_state(row) for row in rows], "left_out": lacking}, show)


def _run_in_prefect(
    recipe: str,
    settings: Settings,
    overrides: Mapping[str, Any],
    targets: Sequence[str] | None,
    force: Sequence[str],
    lists: Mapping[str, str] | None,
    weights: Mapping[str, str] | None,
) -> None:
    from flows.running.leftovers import end_orphaned_servers, watch
    from flows.running.prefect_server import check_given, own_server

    root = settings.root.absolute()
    prefect_environment(root)
    end_orphaned_servers(root / "prefect")
    watch()
    quiet(root / "logs" / "run.log")
    with nullcontext(check_given) if prefect_url() else own_server(root) as answers, ending_begins():
        from flows.deployments.stages import END_TO_END, build_flow  # loads Prefect, while the server starts

        answers()
        build_flow(END_TO_END, settings, overrides)(
            recipe=recipe,
            root=str(settings.root),
            overrides=shown_values(dict(overrides)),
            force=list(force),
            targets=list(targets) if targets else None,
            lists=dict(lists or {}),
            weights=dict(weights or {}),
            threads=settings.threads,
            use_ray=settings.use_ray,
        )
