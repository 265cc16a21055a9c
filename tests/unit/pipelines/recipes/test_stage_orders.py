"""Orders of the stages: names and inputs of a stage that comes again, which states it trains on, and the drift that stage 3 causes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from evals.captions.drift import drift_metrics
from evals.config import AlignmentEvalConfig, ReportConfig
from evals.pages.run.context import RunPage
from evals.pages.run.drift import drift_section
from evals.tables import METRICS, write_table
from infra.plan import topological
from infra.step import Artifact
from mmcore.config import InputProjectorSpec, ModelSpec, OutputProjectorSpec
from mmcore.model.any_model import load_tensors
from pipelines.dag.build import build
from pipelines.recipes import get_recipe

MODEL = ModelSpec(encoders=(), input_projector=InputProjectorSpec(), output_projector=OutputProjectorSpec())


def order(text: str) -> list[str]:
    return [f"stage{number}" for number in text.split("-")]


def test_a_stage_that_comes_again_has_a_step_of_its_own():
    entries = get_recipe("tiny", {"stages": order("1-2-3-2-3-2")}).entries
    assert [(name, config.stage) for name, config in entries.items()] == [
        ("stage1", "stage1"),
        ("stage2", "stage2"),
        ("stage3", "stage3"),
        ("stage2_2", "stage2"),
        ("stage3_2", "stage3"),
        ("stage2_3", "stage2"),
    ]


def test_the_second_stage_2_trains_on_states_made_after_stage_3():
    steps = build(get_recipe("tiny_mix", {"stages": order("1-2-3-2")}))
    assert {step.name for step in topological(steps.values())} == set(steps)
    assert "stage3" not in steps["states"].inputs and {"stage1", "stage2", "stage3"} <= set(steps["states_2"].inputs)
    again = steps["stage2_2"]
    assert again.inputs["states"] is steps["states_2"] and again.inputs["stage2"] is steps["stage2"] and again.config == steps["stage2"].config
    assert steps["export"].config.stages == ("stage1", "stage2", "stage3", "stage2_2") and set(steps["export"].config.stages) <= set(steps["export"].inputs)
    assert steps["eval_alignment"].inputs["stage2"] is again and steps["eval_alignment"].inputs["states"] is steps["states_2"]
    assert steps["history"].config.seeds == (("stage1", 0), ("stage2", 0), ("stage3", 0), ("stage2_2", 0))
    assert "stage2_2" in steps["report"].inputs


def test_a_stage_2_that_another_one_follows_may_be_shorter_and_ask_in_fewer_ways():
    twice = build(get_recipe("tiny_mix", {"stages": order("1-2-3-2"), "stage2.steps": 3, "stage2_2.requests": 8}))
    steps = get_recipe("tiny_mix").entries["stage2"].steps
    assert (twice["stage2"].config.stage.steps, twice["stage2_2"].config.stage.steps) == (3, steps) and steps != 3
    assert (twice["states"].config.requests, twice["states_2"].config.requests) == (2, 8)


def test_drift_is_measured_where_a_stage_3_follows_a_stage_2():
    assert "eval_drift" not in build(get_recipe("tiny", {"stages": order("1-3-2")}))
    once = build(get_recipe("tiny"))["eval_drift"]
    assert once.config.stages == ("stage1", "stage2", "stage3") and once.inputs["aligned"].name == "stage2" and once.inputs["states"].name == "states"
    twice = build(get_recipe("tiny", {"stages": order("1-2-3-2")}))["eval_drift"]
    assert twice.config.stages == once.config.stages and twice.inputs["aligned"].name == "stage2" and "stage2_2" not in twice.inputs
    more = build(get_recipe("tiny", {"stages": order("1-2-3-2-3")}))["eval_drift"]
    assert more.config.stages[-1] == "stage3_2" and more.inputs["aligned"].name == "stage2_2" and more.inputs["states"].name == "states_2"


def test_without_stage_2_nothing_of_it_is_evaluated():
    steps = build(get_recipe("tiny", {"stages": order("1-3"), "decoders": []}))
    assert not {"eval_alignment", "eval_drift", "eval_drawing", "states"} & set(steps) and {"eval_vqa", "export", "report"} <= set(steps)


def test_only_tensors_of_a_part_are_loaded(tmp_path):
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    save_file({**{name: value + 1 for name, value in before.items()}, "c.weight": torch.zeros(3)}, tmp_path / "tensors.safetensors")
    load_tensors(module, tmp_path / "tensors.safetensors", only="a.")
    assert torch.equal(module["a"].weight, before["a.weight"] + 1) and torch.equal(module["b"].weight, before["b.weight"])
    with pytest.raises(ValueError, match=r"holds c\.weight, which this model does not have"):
        load_tensors(module, tmp_path / "tensors.safetensors")


def test_drift_from_known_errors(tmp_path):
    samples = [
        {"key": f"image-{i}", "caption": str(i), "error_before": 1.0, "error_after": 1.2 + i / 10, "error_mean": 1.5, "nll_before": 0.1, "nll_after": 0.3}
        for i in range(4)
    ]
    metrics = drift_metrics(AlignmentEvalConfig(model=MODEL, bootstrap_draws=100), samples)
    at = {(m["metric"], m["condition"]): m for m in metrics}
    assert at["alignment_error", "after - before"]["value"] == pytest.approx(0.35) and at["signal_nll", "after - before"]["value"] == pytest.approx(0.2)
    assert at["alignment_error", "mean_predictor - before"]["value"] == pytest.approx(0.5)
    assert at["alignment_error", "mean_predictor - after"]["value"] == pytest.approx(0.15) and at["alignment_error", "mean_predictor"]["kind"] == "floor"
    assert drift_metrics(AlignmentEvalConfig(model=MODEL), []) == []
    artifact = Artifact(name="eval_drift", path=tmp_path, fingerprint="f" * 64, digest="d" * 64, result={})
    write_table(tmp_path / "metrics.parquet", [], METRICS)
    page = RunPage(config=ReportConfig(recipe="tiny"), inputs={})
    assert drift_section(page, artifact) == ""
    write_table(tmp_path / "metrics.parquet", metrics, METRICS)
    html = drift_section(page, artifact)
    assert "+0.350" in html and "+0.500" in html and "4 captions" in html
