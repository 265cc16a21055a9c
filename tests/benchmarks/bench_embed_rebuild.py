"""Building embeddings again: nothing new, 1 % new pictures, another data set that shares pictures. Single run; counts what the encoders were given.

Each build is the recipe's embed steps through infra.materialize: cold; the same again, forced, with everything in the store; with 1 % new pictures
appended to a list; with another list that shows stored pictures and a few new ones. ours: seconds of the second build, peer = cold, limit = what the
plan alone takes to see that the steps are done. `--root DIR` gives shards and weights (read only: new entries go to a store of its own that links the old
ones); without it they are made first, with the `--set` given (easyvqa_pictures=4000 for a cold build of some minutes).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from store_bench import PARTS, ensure_root, inputs_of, scratch

from flows.running.run import recipe_steps
from infra.artifact import find
from infra.materialize import Place, materialize
from infra.settings import offline_environment
from infra.step import Artifact, Resources, Step
from infra.storage import read_json
from mmcore.encoders import load_encoder

DATASET, OTHER = "stamps_train", "easyvqa_captions"
"""Picture lists: the one that grows, the one that is replaced by a list that shares pictures."""
SHARE = 0.01
SHARED = 50
"""Stored pictures in the other data set."""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry. Raises RuntimeError when an encoder was given anything but the new media."""
    from flows.cli.options import parse_overrides

    offline_environment()
    overrides = parse_overrides(options.overrides)
    steps = recipe_steps(options.recipe, overrides)
    with scratch() as box:
        root = ensure_root(options.root, options.recipe, box, [word for pair in options.overrides for word in ("--set", pair)])
        place = Place(root=box / "own")
        link_shards(root / "stores", place.root / "stores")
        inputs = {part: inputs_of(steps[f"embed_{part}"], root) for part in PARTS}
        for part in PARTS:  # libraries are loaded before the clock starts
            load_encoder(steps[f"embed_{part}"].config.spec, inputs[part]["weights"].path)
        cold = {part: build(steps[f"embed_{part}"], inputs[part], place, options.threads) for part in PARTS}
        media = {part: int(cold[part]["media"]) for part in PARTS}
        refuse("the cold build", {part: c["encoded"] for part, c in cold.items()}, media)
        second = {part: build(steps[f"embed_{part}"], inputs[part], place, options.threads, force=True) for part in PARTS}
        refuse("the second build", {part: s["encoded"] for part, s in second.items()}, dict.fromkeys(PARTS, 0))
        floor = [materialized(steps[f"embed_{part}"], inputs[part], place) for part in PARTS]
        rng = np.random.default_rng(options.seed)
        lists, _ = find(root, "lists")
        lines = (lists / "cc3m" / f"{DATASET}.tsv").read_text(encoding="utf-8").splitlines()
        new = max(1, round(SHARE * media["image"]))
        grown_list = write_list(box / "grown", DATASET, lists, lines, lines, new, rng)
        grown = with_list(options, overrides, DATASET, grown_list, root, place)
        refuse("1 % new pictures", {"image": grown["encoded"]}, {"image": new})
        shared = [lines[i] for i in sorted(rng.permutation(len(lines))[:SHARED].tolist())]
        other_list = write_list(box / "other", OTHER, lists, shared, lines, new, rng)
        other = with_list(options, overrides, OTHER, other_list, root, place)
        refuse("a data set that shares pictures", {"image": other["encoded"]}, {"image": new})
    return [entry(options, cold, second, floor, {"new": new, "grown": grown, "shared": len(shared), "other": other})]


def entry(options: argparse.Namespace, cold: Mapping[str, dict], second: Mapping[str, dict], floor: Sequence[float], more: Mapping[str, Any]) -> dict:
    """The entry of a single run."""
    before, after = (sum(found["seconds"] for found in builds.values()) for builds in (cold, second))
    note = {
        "single run": True,
        "recipe": options.recipe,
        "threads": options.threads,
        "cold": cold,
        "second": second,
        "1 % new": {"new pictures": more["new"], **more["grown"]},
        "shares pictures": {"shared": more["shared"], "new": more["new"], **more["other"]},
    }
    return {
        "name": "embed_rebuild",
        "ours": round(after, 3),
        "peer": round(before, 2),
        "limit": round(sum(floor), 4),
        "unit": "s",
        "ratio_peer": round(before / after, 1),
        "ratio_limit": round(sum(floor) / after, 4),
        "runs": 1,
        "spread": [round(after, 3), round(after, 3)],
        "seed": options.seed,
        "note": note,
    }


def refuse(what: str, encoded: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raises RuntimeError when the encoders were not given exactly what is expected."""
    if dict(encoded) != dict(expected):
        raise RuntimeError(f"{what}: encoded {dict(encoded)}, expected {dict(expected)}")


def link_shards(given: Path, own: Path) -> None:
    """A store whose shard entries are links to those given; new ones go beside them."""
    for entry in sorted((given / "shards").glob("*/*")):
        link = own / "shards" / entry.parent.name / entry.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(entry)


def build(step: Step, inputs: Mapping[str, Artifact], place: Place, threads: int, force: bool = False) -> dict[str, Any]:
    """Materialize one embed step. Returns its timing (of this very run), media and the seconds it took."""
    found: dict[str, Any] = {}

    def call(step: Step, context: Any) -> Mapping[str, object]:
        values = step.load()(context)
        found.update(json.loads((context.output / "info" / "timing.json").read_text()), media=values["media"])
        return values

    started = time.perf_counter()
    materialize(step, inputs, place, resources=Resources(threads=threads, workers=threads, use_ray=False), force=force, call=call)
    return {**{name: found[name] for name in ("encoded", "reused", "media", "encoder_busy")}, "seconds": round(time.perf_counter() - started, 3)}


def materialized(step: Step, inputs: Mapping[str, Artifact], place: Place) -> float:
    """Seconds to see that the step is done."""
    started = time.perf_counter()
    materialize(step, inputs, place)
    return time.perf_counter() - started


def write_list(folder: Path, dataset: str, lists: Path, kept: Sequence[str], sources: Sequence[str], new: int, rng: np.random.Generator) -> Path:
    """A list file with the kept lines and `new` pictures that are nowhere else (a stored one with a corner of noise), and their media beside it."""
    for line in kept:
        target = folder / line.split("\t")[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lists / line.split("\t")[1], target)
    lines = list(kept)
    for number in range(new):
        caption, uri = sources[int(rng.integers(len(sources)))].split("\t")
        pixels = np.asarray(Image.open(lists / uri).convert("RGB")).copy()
        pixels[:8, :8] = rng.integers(0, 256, pixels[:8, :8].shape, np.uint8)
        name = f"media/new/{dataset}-{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        lines.append(f"{caption}\t{name}")
    (folder / f"{dataset}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{dataset}.tsv"


def with_list(options: argparse.Namespace, overrides: Mapping[str, Any], dataset: str, own_list: Path, root: Path, place: Place) -> dict[str, Any]:
    """embed_image after `dataset` got another list: manifest and shards are made, then the pictures are embedded."""
    steps = recipe_steps(options.recipe, overrides, {dataset: own_list})
    resources = Resources(threads=options.threads, workers=options.threads, use_ray=False)
    manifest = materialize(steps["manifest_cc3m"], inputs_of(steps["manifest_cc3m"], root), place, resources=resources).artifact
    shards_inputs = {"manifest": manifest, "lists": inputs_of(steps["manifest_cc3m"], root)["lists"]}
    shards = materialize(steps["shards_cc3m"], shards_inputs, place, resources=resources).artifact
    if shards.result.get("quarantined") or shards.result.get("failed"):
        raise RuntimeError(f"{own_list}: rows were left out: {read_json(shards.path / 'artifact.json')['result']}")
    return build(steps["embed_image"], inputs_of(steps["embed_image"], root) | {"shards_cc3m": shards}, place, options.threads)
