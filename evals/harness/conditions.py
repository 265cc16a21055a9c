"""Conditions: under which an export is asked, and what each shows the model.

Owns the meaning of a condition: the image it shows and whether a caption turn comes first. Input: the export of a step's context. Output: the
conditions that apply, in their order. Raises AnyloomError for an unknown one, or when none is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from evals.config import CONDITIONS
from infra.step import AnyloomError, StepContext
from infra.storage import read_json

SHOWN = {"helped": "right", "plain_prompt": "right", "blank": "blank", "shuffled": "shuffled"}
"""run condition -> what the model is shown."""

CAPTION_TURN = {"helped": True, "plain_prompt": False, "blank": None, "shuffled": None}
"""run condition -> caption turn first; None: as the export says."""


def conditions_of(ctx: StepContext[object], wanted: Sequence[str]) -> list[str]:
    """The wanted ones of CONDITIONS that the export can be asked under, in their order; plain_prompt in the place of helped for an export without a caption
    turn. Raises AnyloomError when there is none, or one is unknown."""
    unknown = sorted(set(wanted) - set(CONDITIONS))
    if unknown:
        raise AnyloomError(f"eval conditions has {', '.join(unknown)}: use {', '.join(CONDITIONS)}")
    helped = bool(read_json(ctx.inputs["export"].path / "anyloom.json").get("caption_turn"))
    asked = set(wanted) if helped else {"plain_prompt" if name == "helped" else name for name in wanted}
    chosen = [name for name in CONDITIONS if name in asked]
    if not chosen:
        raise AnyloomError("eval conditions leaves nothing to ask: add plain_prompt")
    return chosen


def without_shuffled(chosen: Sequence[str], why: str) -> tuple[list[str], list[str]]:
    """(the conditions that do not shuffle, a line about the one that does). why: what keeps the media from being shuffled. Raises AnyloomError when no other is
    left."""
    kept = [name for name in chosen if SHOWN[name] != "shuffled"]
    if not kept:
        raise AnyloomError(f"eval conditions leaves nothing to ask: {why}")
    return kept, [f"condition {name}: {why}" for name in chosen if name not in kept]
