"""Golden losses: 20 steps of every stage of the tiny recipe, equal to the file in tests/golden, and equal bytes when they run again."""

import importlib.util
import json
from pathlib import Path

import pytest

from infra.materialize import SAME_BYTES

pytestmark = pytest.mark.timeout(600)
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 2e-3
"""Relative. Rounding only: other machines multiply matrices in another order, and twenty updates carry that on. On one machine the bytes are equal."""


@pytest.fixture(scope="module")
def rewrite():
    """tests/golden/rewrite.py as a module."""
    spec = importlib.util.spec_from_file_location("rewrite", GOLDEN / "rewrite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_twenty_steps_of_every_stage_have_the_golden_losses_and_again_the_same_bytes(rewrite, tmp_path):
    outcomes = rewrite.train_tiny(tmp_path)
    found, golden = rewrite.losses(outcomes), json.loads(rewrite.LOSSES.read_text())
    assert found.keys() == golden.keys() == {"stage1", "stage2", "stage3"}
    for stage, columns in golden.items():
        assert found[stage].keys() == columns.keys(), "run `make golden` and review the diff"
        assert len(columns["loss"]) == rewrite.STEPS and all(0 < value < 100 for value in columns["loss"])
        for name, values in columns.items():
            ours = found[stage][name]
            assert [value is None for value in ours] == [value is None for value in values], (stage, name)
            pairs = [(a, b) for a, b in zip(ours, values, strict=True) if a is not None]
            assert all(a == pytest.approx(b, rel=TOLERANCE, abs=1e-6) for a, b in pairs), f"{stage} {name}: run `make golden` and review the diff"
    again = rewrite.train_tiny(tmp_path, force=True)
    assert {name: outcome.status for name, outcome in again.items()} == dict.fromkeys(rewrite.STAGES, SAME_BYTES)
