"""Damaged and hostile lists of every format, and damaged media, through the steps manifest and shards: each class fixes its outcome beforehand.

The outcomes: the list is refused in one line that names its file; exactly the changed records are left out, with the one reason that is right and one line
about each; all are taken. Which one it is follows from what was changed. Everything else is a crash or a wrong reason.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hostile_files
import hostile_media
import hostile_rows
import pyarrow.parquet as pq
from mutations import Mutation, Wrong, fuzz
from sound_lists import JSON, Fixed, Given

from flows.running.cells import visible
from infra.logs import one_line
from infra.materialize import Place, materialize
from infra.step import AnyloomError, Resources, Step
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig

CLASSES = hostile_files.CLASSES | hostile_rows.CLASSES | hostile_media.CLASSES
LONGEST = 700
"""Characters of one line about a list or a row."""
SHARDS = ShardsConfig(samples_per_shard=3, max_media_bytes=200_000, max_lost=1.0, fetch_timeout_s=2.0, fetch_attempts=1)


def ledger_of(given: Given, root: Path) -> list[dict[str, Any]]:
    """The ledger of a list of the user's own, from the steps that pipelines.dag.data makes of it, in this process. Raises AnyloomError for one that is
    refused."""
    spec = DatasetSpec(
        name="own",
        format="instruct" if given.kind in JSON else given.kind,
        path="",
        split="train",
        licence="own",
        media_template="{youtube_id}" if given.kind == "audiocaps" else "",
    )
    own = {"own": given.path}
    manifest = Step(name="manifest_own", run="pipelines.shards.manifest:run", config=ManifestConfig(datasets=(spec,)), sources=own)
    shards = Step(name="shards_own", run="pipelines.shards.plan:run", config=SHARDS, inputs={"manifest": manifest}, sources=own)
    resources = Resources(use_ray=False)
    made = materialize(manifest, {}, Place(root=root), resources=resources).artifact
    done = materialize(shards, {"manifest": made}, Place(root=root), resources=resources).artifact
    return pq.read_table(done.path / "ledger.parquet").to_pylist()


def act(make: Callable[[random.Random, Path], Given], fixed: Fixed, rng: random.Random, box: Path) -> None:
    """Make a list, read it, and raise Wrong unless the outcome is the fixed one."""
    given = make(rng, box)
    right = given.fixed or fixed
    try:
        ledger = ledger_of(given, box / "root")
    except AnyloomError as error:
        said = visible(one_line(error))
        if not right.refused:
            raise Wrong(f"{given.kind}: not {right}, but refused: {said}") from error
        if visible(given.path.name)[:60] not in said or len(said) > LONGEST + len(str(given.path)):
            raise Wrong(f"{given.kind}: {len(said)} characters, or no name of the file: {said}") from error
        return
    lost = {int(line["key"].rpartition("-")[2]): line for line in ledger if line["status"] != "written"}
    if right.refused or set(lost) != (given.changed if right.left_out else set()):
        raise Wrong(f"{given.kind}: not {right}, but taken but for {lost}")
    for number, line in lost.items():
        if line["reason"] != right.left_out:
            raise Wrong(f"{given.kind}: row {number} is not {right}: {line}")
        if not line["detail"].isprintable() or len(line["detail"]) > LONGEST:
            raise Wrong(f"{given.kind}: row {number}: {len(line['detail'])} characters, or more than a line: {line}")
    if given.rows is not None and len(ledger) != given.rows:
        raise Wrong(f"{given.kind}: {len(ledger)} rows of {given.rows}")


def run(options: argparse.Namespace) -> list[dict]:
    """One entry over all classes."""
    return fuzz("lists", {name: Mutation(partial(act, make, fixed), str(fixed)) for name, (make, fixed) in CLASSES.items()}, options)
