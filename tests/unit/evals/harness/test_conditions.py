"""Under which conditions an export is asked."""

from __future__ import annotations

import json

import pytest

from evals.config import CONDITIONS
from evals.harness.conditions import conditions_of
from infra.step import AnyloomError, Artifact, StepContext


@pytest.mark.parametrize(
    ("helped", "wanted", "asked"),
    [
        (True, CONDITIONS, ["helped", "plain_prompt", "blank", "shuffled"]),
        (False, CONDITIONS, ["plain_prompt", "blank", "shuffled"]),
        (False, ("shuffled", "helped"), ["plain_prompt", "shuffled"]),
        (True, ("shuffled", "helped"), ["helped", "shuffled"]),
    ],
)
def test_the_first_condition_shows_the_right_picture_as_the_export_is_used(helped, wanted, asked, tmp_path):
    (tmp_path / "anyloom.json").write_text(json.dumps({"caption_turn": helped}))
    export = Artifact(name="export", path=tmp_path, fingerprint="f", digest="d", result={})
    ctx = StepContext(name="eval_vqa", config=None, inputs={"export": export}, sources={}, output=tmp_path, work=tmp_path, stores=tmp_path)
    assert conditions_of(ctx, wanted) == asked
    with pytest.raises(AnyloomError, match="askew: use helped"):
        conditions_of(ctx, ("askew",))
    with pytest.raises(AnyloomError, match="nothing to ask"):
        conditions_of(ctx, ())
