"""What `anyloom run` and its relatives do: nothing when all is done, else the plain runner or the Prefect flow, with the settings as they were given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from flows.running.display import Display
from flows.running.interrupts import ending_begins, never_missed
from flows.running.run import closing_table, make_place, recipe_steps, run_targets, select
from infra.lock import exclusive
from infra.logs import quiet
from infra.plan import DONE, plan
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
) -> int:
    """What `anyloom run` does: nothing at all when everything is done, else the Prefect flow or the plain runner. Returns the exit code."""
    steps = select(recipe_steps(recipe, overrides, lists, weights), targets)
    place = make_place(settings)
    started = time.monotonic()
    rows = plan(steps, place.root)
    if not force and all(row.status == DONE for row in rows):
        if place.remote is not None:
            mirror(place.remote, place.root, [row.path for row in rows if row.path is not None], say)
        closing_table(Display(), [(row.step.name, "done", 0.0, row) for row in rows], place.root, time.monotonic() - started)
        return 0
    servers = [name for name, used in (("Prefect", settings.use_prefect), ("Ray", settings.use_ray)) if used]
    if servers:
        say(f"starting {' and '.join(servers)}")
    with never_missed(), exclusive(place.root / "locks" / "run.lock", lambda who: say(f"another run uses {place.root}; waiting for {who}")):
        if settings.use_prefect:
            _run_in_prefect(recipe, settings, overrides, targets, force, lists, weights)
        else:
            run_targets(recipe, settings, overrides=overrides, targets=targets, force=force, lists=lists, weights=weights)
    return 0


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
