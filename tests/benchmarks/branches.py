"""Runs that branch off a root: a copy holds everything that is finished in it, mostly by hard links, and goes on from there with settings of its own.

Owns the copies, the command line of a run and the way to a finished artifact. Used by the benchmarks that compare variants of a recipe (bench_seeds,
bench_lora_modes, bench_stage_orders). The root itself is only read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from store_bench import anyloom

APPENDED = (".jsonl", ".lock")
"""Endings of files that are written in place; all others are replaced as a whole or never change."""


def branch(root: Path, name: str) -> Path:
    """A root of its own beside `root`, with hard links to what is complete and copies of what is appended to: one run at a time uses a root."""
    copy = root.parent / f"{root.name}.{name}"
    if copy.exists():  # of an earlier run, which this one continues
        return copy
    partial = root.parent / f"{root.name}.{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for folder in ("artifacts", "stores"):
        if (root / folder).is_dir():
            shutil.copytree(root / folder, partial / folder, copy_function=link_or_copy, symlinks=True)
    partial.rename(copy)
    return copy


def link_or_copy(source: str, target: str) -> None:
    """The same file under another name, or a copy of one that would be written through the link."""
    (shutil.copy2 if source.endswith(APPENDED) else os.link)(source, target)


def start(recipe: str, root: Path, settings: Mapping[str, Any], threads: int, goals: Sequence[str]) -> None:
    """Run a recipe up to the goals. Raises RuntimeError when it fails."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")]
    anyloom("run", "--recipe", recipe, "--root", str(root), "--no-prefect", "--no-ray", "--threads", str(threads), *goals, *words)


def artifacts(recipe: str, root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """step -> its infra.plan.PlanRow, of the recipe's steps that are done in a root."""
    from flows.running.run import recipe_steps
    from infra.plan import plan

    plain = {key: json.loads(json.dumps(value)) for key, value in settings.items()}
    return {row.step.name: row for row in plan(recipe_steps(recipe, plain).values(), root) if row.record is not None}


def rows_of(path: Path | None, table: str) -> list[dict[str, Any]]:
    """Rows of metrics.parquet or samples.parquet of an evaluation."""
    import pyarrow.parquet as pq

    if path is None:
        raise RuntimeError("the evaluation is not there: run the benchmark again")
    rows: list[dict[str, Any]] = pq.read_table(path / f"{table}.parquet").to_pylist()
    return rows


def shown(metric: Mapping[str, Any], scale: float = 100.0, digits: int = 1) -> str:
    """A value with its interval, by default in per cent."""
    value, low, high = (round(scale * metric[key], digits) for key in ("value", "ci_lo", "ci_hi"))
    return f"{value} [{low}, {high}]"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table on the terminal."""
    lines = [columns, ["---"] * len(columns), *rows]
    print("\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines), flush=True)
