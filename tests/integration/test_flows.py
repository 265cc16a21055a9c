"""Prefect: the deployments of prefect.yaml load and name real flows; a flow run is recorded by a real server."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from infra.step import AnyloomError

pytestmark = pytest.mark.timeout(900)
PROJECT = Path(__file__).resolve().parents[2]


def deployments():
    return yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]


def test_every_flow_has_a_deployment_that_loads():
    names = set()
    for entry in deployments():
        path, function = entry["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
        accepted = set(inspect.signature(flow.fn).parameters)
        assert set(entry["parameters"]) <= accepted
        assert flow.name == entry["name"]  # the bare name works because both are one
        assert flow.on_failure_hooks and flow.on_crashed_hooks
        names.add(flow.name)
    assert names == {"prepare-data", "embed", "train-stage1", "train-stage2", "train-stage3", "evaluate", "nightly-eval", "end-to-end"}


def test_the_form_of_a_flow_shows_its_own_parameters_with_what_they_are():
    from prefect.utilities.callables import parameter_schema

    from flows.deployments import stages

    shared = ["recipe", "root", "overrides", "force", "lists", "weights", "threads"]
    for flow in (stages.prepare_data, stages.embed, stages.train_stage1, stages.train_stage2, stages.train_stage3, stages.evaluate, stages.end_to_end):
        form = parameter_schema(flow).properties
        assert list(form) == (shared if flow is not stages.end_to_end else [*shared[:4], "targets", *shared[4:], "use_ray"])
        assert "tiny" in form["recipe"]["anyOf"][0]["enum"] and all(one["description"] for one in form.values())


def test_flow_stages_name_real_steps():
    from flows.running.run import EMBED, EVALUATE, PREPARE_DATA, recipe_steps, select, stage_targets

    for recipe in ("tiny", "smol", "tiny_nextgpt"):
        steps = recipe_steps(recipe, {})
        for targets in (PREPARE_DATA, EMBED, *(stage_targets(recipe, None, stage) for stage in ("stage1", "stage2", "stage3")), EVALUATE):
            assert len(select(steps, targets)) >= len(targets)


def test_the_recipes_last_stage_is_exported():
    from flows.running.run import stage_targets

    assert stage_targets("tiny", {}, "stage2") == ["stage2"]
    assert stage_targets("tiny", {}, "stage3") == ["stage3", "export"]
    assert stage_targets("tiny", {"stages": ["stage1", "stage2", "stage3", "stage2"]}, "stage2") == ["stage2", "stage2_2", "export"]
    with pytest.raises(AnyloomError, match="recipe tiny_two_tower has no stage3"):
        stage_targets("tiny_two_tower", {"stages": ["stage1"]}, "stage3")


def test_the_run_is_recorded_by_prefect(tiny):
    import sqlite3

    with sqlite3.connect(tiny.root / "prefect" / "prefect.db") as db:
        flows = db.execute("select state_type from flow_run").fetchall()
        tasks = db.execute("select state_type from task_run").fetchall()
    assert flows and {state for (state,) in flows} == {"COMPLETED"}
    assert len(tasks) >= 32 and {state for (state,) in tasks} == {"COMPLETED"}


def test_an_export_of_the_recipe_is_judged_by_the_steps_that_evaluate_has(tiny):
    from flows.running.run import recipe_steps
    from infra.plan import DONE, plan
    from pipelines.dag.pinned import judged, newest_export

    steps = recipe_steps("tiny", {})
    _, record = newest_export(steps, tiny.root)
    assert {row.status for row in plan(judged(steps, tiny.root, record).values(), tiny.root)} == {DONE}
    changed = judged(recipe_steps("tiny", {"stage3.lr": 1e-4, "evaluation.seed": 7}), tiny.root, record)
    rows = {row.step.name: row for row in plan(changed.values(), tiny.root)}
    assert rows["export"].status == rows["stage3"].status == DONE and rows["export"].fingerprint == record.fingerprint
    assert rows["eval_vqa"].status != DONE and rows["history"].status != DONE
    assert {name for name, row in rows.items() if row.step.run.startswith("pipelines.training.train")} <= {"states"}
    with pytest.raises(AnyloomError, match="no export of this recipe's model below"):
        newest_export(recipe_steps("tiny_nextgpt", {}), tiny.root)
