"""Prefect: the deployments of prefect.yaml load and name real flows; a flow run is recorded by a real server."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

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
        names.add(flow.name)
    assert names == {"prepare-data", "train-stages", "evaluate", "end-to-end"}


def test_flow_stages_name_real_steps():
    from flows.run import EVALUATE, PREPARE_DATA, TRAIN_STAGES, recipe_steps, select

    for recipe in ("tiny", "smol"):
        steps = recipe_steps(recipe, {})
        for targets in (PREPARE_DATA, TRAIN_STAGES, EVALUATE):
            assert len(select(steps, targets)) >= len(targets)


def test_the_run_is_recorded_by_prefect(tiny):
    import sqlite3

    with sqlite3.connect(tiny.root / "prefect" / "prefect.db") as db:
        flows = db.execute("select state_type from flow_run").fetchall()
        tasks = db.execute("select state_type from task_run").fetchall()
    assert flows and {state for (state,) in flows} == {"COMPLETED"}
    assert len(tasks) >= 32 and {state for (state,) in tasks} == {"COMPLETED"}
