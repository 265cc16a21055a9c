"""nightly-eval: the newest export and the pinned baselines evaluated, compared, and an alert where scores are worse.

What the history has already is not evaluated again: an export's evaluation is the same steps every night, and the records decide. The comparison is
evals.nightly's; what is worse than it may be, and was not told before, goes to flows.deployments.alerts. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client

from evals.history.database import database_path, rebuild
from evals.history.records import append_change_points, append_comparisons, append_night
from evals.nightly.review import review
from flows.deployments.alerts import alert, hooks
from flows.deployments.deployed import deployed_settings, run_and_publish
from flows.deployments.parameters import Files, Overrides, RecipeName, described
from flows.running.run import made_recipe, recipe_steps
from infra.artifact import ArtifactRecord, find
from infra.plan import DONE, plan
from infra.settings import Settings
from infra.step import AnyloomError, Step
from pipelines.dag.pinned import judged, newest_export, of_this_model

EVALUATED, KNOWN = "evaluated", "in the history already"


@flow(name="nightly-eval", flow_run_name="nightly-eval {recipe}", **hooks())
@described
def nightly_eval(
    recipe: RecipeName = "smol",
    root: str | None = None,
    baselines: list[str] | None = None,
    overrides: Overrides = None,
    lists: Files = None,
    weights: Files = None,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, str]:
    """Evaluate the newest export and the baselines unless the history has them, compare, alert. Nothing is trained."""
    settings = deployed_settings(recipe, root=root or None, threads=threads)
    stores = settings.root.absolute() / "stores"
    steps, recipe = recipe_steps(recipe, overrides or {}, lists, weights), made_recipe(recipe, overrides, lists).name
    night = exports_of_tonight(steps, settings.root.absolute(), baselines or [])
    runs, statuses = {}, {}
    for name, record in night.items():
        runs[name], statuses[name] = _evaluate(recipe, steps, settings, record)
        _note(stores, runs[name], statuses[name])
    rows: list[dict[str, Any]] = [{"export": name, "status": status, "run": runs[name]} for name, status in statuses.items()]
    create_table_artifact(rows, key="nightly-exports", description=f"exports of {recipe}, the newest first")
    newest, *pinned = runs.values()
    _review(settings, newest, pinned, recipe, seed)
    return statuses


def exports_of_tonight(steps: dict[str, Step], root: Path, baselines: Sequence[str]) -> dict[str, ArtifactRecord]:
    """`export/fingerprint` -> record: the newest export of the recipe, then the baselines.

    Raises AnyloomError when there is no export yet, or a baseline does not exist or has another model.
    """
    chosen = [newest_export(steps, root)[1]]
    for name in baselines:
        path, record = find(root, name)
        if record.name != "export" or not of_this_model(steps, record):
            raise AnyloomError(f"baseline {name} is {path}, no export of this recipe's model; name one of `anyloom artifacts list export`")
        chosen.append(record)
    return {f"{record.name}/{record.fingerprint[:12]}": record for record in chosen}


def _evaluate(recipe: str, steps: dict[str, Step], settings: Settings, record: ArtifactRecord) -> tuple[str, str]:
    """(id of the export's run in the history, EVALUATED or KNOWN)."""
    root = settings.root.absolute()
    wanted = judged(steps, root, record)
    before = plan(wanted.values(), root)
    status = KNOWN if next(row for row in before if row.step.name == "history").status == DONE else EVALUATED
    if not all(row.status == DONE for row in before):
        run_and_publish(recipe, list(wanted.values()), settings)
    history = next(row for row in plan([wanted["history"]], root) if row.step.name == "history")
    assert history.record is not None
    return str(history.record.result["run_id"]), status


def _note(stores: Path, run_id: str, status: str) -> None:
    """Keep in the history which flow run evaluated a run, or met it."""
    scheduled_for = runtime.flow_run.scheduled_start_time.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    append_night(stores, run_id, str(runtime.flow_run.id), scheduled_for, status)


def _review(settings: Settings, run_id: str, baselines: Sequence[str], recipe: str, seed: int) -> None:
    """Compare the newest run with the nights before it and with the baselines, show the review, send its alerts, and keep it in the history.

    Kept last: what was not told because the process died is told when the export is looked at again, and what is in the history is not told again.
    """
    stores = settings.root.absolute() / "stores"
    found = review(stores, run_id, baselines, recipe, seed)
    create_markdown_artifact(found.markdown, key="nightly-review", description=f"review of run {run_id}")
    worse = [one.text for one in found.alerts if one.severity == "alert"]
    if worse:
        with get_client(sync_client=True) as client:
            title, text = f"{recipe}: {len(worse)} scores are worse", "\n".join(f"- {text}" for text in worse)
            alert(client.read_flow_run(runtime.flow_run.id), title, text, settings)
    append_comparisons(stores, found.comparisons)
    append_change_points(stores, found.change_points)
    rebuild(stores, database_path(stores))
