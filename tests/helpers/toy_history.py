"""Runs of a history with everything in them, small enough to count by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa

from evals.history import database as history
from evals.history.tables import rows_table

FIRST_NIGHT = datetime(2026, 11, 1, 2)
TASK = "easyvqa_as_vqav2"


def rows(
    run_id: str, scores: Sequence[float], *, night: int = 0, recipe: str = "smol", fingerprint: str = "aaaa", task: str = TASK, condition: str = "helped"
) -> dict[str, pa.Table]:
    """Tables of one run: a sample per score, their mean as the metric with two floors, three steps of training."""
    same = {"run_id": run_id, "task": task, "history_fingerprint": fingerprint}
    value, n = sum(scores) / len(scores), len(scores)
    score = {"condition": condition, "metric": "exact_match", "subgroup": "all", "value": value, "kind": "score", "stderr": 0.1, "higher_is_better": True}
    floors = [{"condition": name, "metric": "exact_match", "subgroup": "all", "value": floor, "kind": "floor"} for name, floor in FLOORS.items()]
    return {
        "run": rows_table(
            "run",
            [{"run_id": run_id, "recipe": recipe, "seeds": "stage3=0", "model_id": f"m-{run_id}", "evaluated": FIRST_NIGHT + timedelta(days=night)}],
        ),
        "model": rows_table("model", [{"model_id": f"m-{run_id}", "name": recipe}]),
        "task": rows_table("task", [{"history_fingerprint": fingerprint, "task": task, "harness": "lmms-eval 0.7.3"}]),
        "metric": rows_table("metric", [same | row | {"n": n, "clusters": n, "ci_lo": value - 0.2, "ci_hi": value + 0.2} for row in [score, *floors]]),
        "sample": rows_table("sample", [same | sample(i, s, condition) for i, s in enumerate(scores)]),
        "train_metrics": rows_table(
            "train_metrics",
            [{"run_id": run_id, "stage": "stage3", "step": i, "loss": 2.0 - i, "lr": 1e-3, "parts": f'{{"tokens_image": {2.0 - i}}}'} for i in range(3)],
        ),
    }


FLOORS = {"always_yes": 0.25, "blind_majority": 0.5}


def sample(i: int, score: float, condition: str) -> dict[str, object]:
    """Question i, about picture i // 2."""
    words = {"doc_key": str(i), "image": f"{i // 2}.png", "cluster": f"{i // 2}.png", "question": f"question {i}?", "target": "yes"}
    return words | {"condition": condition, "answer_type": "yes/no", "prediction": "yes" if score else "no", "score": score, "num_tokens": 2}


def append(stores: Path, *runs: dict[str, pa.Table]) -> Path:
    """Append runs, build the database and return its path."""
    for run in runs:
        history.append(stores, run["run"]["run_id"][0].as_py(), run)
    history.rebuild(stores, history.database_path(stores))
    return history.database_path(stores)
