"""The contract between steps and their functions: a StepContext says which config it carries, and travels between processes."""

import dataclasses
import importlib
import inspect
import pickle
import typing
from pathlib import Path

import pytest

from infra.step import StepContext
from pipelines.dag.build import build
from pipelines.recipes import RECIPES


def context(folder: Path, config: object) -> StepContext[object]:
    return StepContext(name="step", config=config, inputs={}, sources={}, output=folder, work=folder, stores=folder)


def test_a_context_with_a_named_config_is_frozen_slotted_and_travels(tmp_path):
    made = context(tmp_path, (1, 2))
    assert pickle.loads(pickle.dumps(made)) == made and not hasattr(made, "__dict__")  # noqa: S301 (its own bytes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.config = None


@pytest.mark.parametrize("recipe", ["tiny", "smol"])
def test_every_run_function_names_the_config_of_its_step(recipe):
    for step in build(RECIPES[recipe]()).values():
        run = step.load()
        (annotation,) = [parameter.annotation for parameter in inspect.signature(run).parameters.values()]
        names = {**vars(importlib.import_module(step.run.partition(":")[0]))}
        assert typing.get_args(eval(annotation, names)) == (type(step.config),), (step.name, annotation)
