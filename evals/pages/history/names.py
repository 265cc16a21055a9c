"""Names and order of conditions and scores on the history's page.

Owns which score stands for a task, and what a condition is called. Input: names of the history. Output: names, orders and colours.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST_CONDITIONS = ("helped", "plain_prompt", "as_given", "right")
"""Conditions in which a model is asked as it should be, the one that counts first."""
CONTROLS = ("blank", "shuffled")
NAMES = {"always_yes": "always “yes”"}
MAIN_METRICS = (
    "exact_match",
    "gpt_eval_score",
    "mmmu_acc",
    "seed_all",
    "pope_accuracy",
    "accuracy",
    "ours_circular",
    "ours_accuracy",
    "circular",
    "vanilla",
    "anls",
    "judged_right",
    "heard_right",
)
"""Which score of a task a small chart shows: the first of these that it has, else the first by name."""


def main_metric(names: Sequence[str]) -> str:
    """The one of a task's scores that stands for it."""
    return next((name for name in MAIN_METRICS if name in names), min(names))


def condition_order(name: str) -> tuple[int, str]:
    """Sorts conditions: as it should be asked, anything else, controls."""
    if name in FIRST_CONDITIONS:
        return FIRST_CONDITIONS.index(name), name
    return (len(FIRST_CONDITIONS) + (name in CONTROLS), name)


def asked_as(condition: str | None) -> str:
    """A condition in words."""
    return NAMES.get(condition or "", (condition or "").replace("_", " "))


def tone_of(condition: str, kind: str = "score") -> str:
    """The colour of a condition: model, control or floor."""
    return "floor" if kind == "floor" else "control" if condition in CONTROLS else "model"
