"""The picture_judge step: trains the classifier that made images are judged with, and says how good it is on real ones.

Input: `shards_instruct`, whose test images no decoder learns from; a hash of each image's bytes puts it among those the judge learns from or
those it is tested on. Output: judge.safetensors, split.json. The judge sees real images only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.generation.config import JudgeConfig
from evals.statistics.intervals import wilson
from infra.step import AnyloomError, StepContext
from infra.storage import write_atomic
from mmcore.concepts.shape_judge import TENSORS, concepts_of, fit_judge, judged
from mmcore.concepts.shapes import asked_crops
from mmcore.stores.shards import ShardSet

if TYPE_CHECKING:
    from mmcore.concepts.shapes import Crops

SPLIT = "split.json"


def run(ctx: StepContext[JudgeConfig]) -> Mapping[str, Any]:
    """Step entry. Returns counts and the accuracies on real test images with their 95 % Wilson intervals."""
    import torch
    from safetensors.torch import save

    torch.set_num_threads(1)
    config = ctx.config
    crops = asked_crops(ShardSet(ctx.inputs["shards_instruct"].path, ctx.stores), config.source, config.side)
    learned, tested = split(crops, config.train_share)
    if not learned or not tested:
        raise AnyloomError(f"{ctx.name}: {len(learned)} images of {config.source} to learn from and {len(tested)} to test on: change train_share")
    judge = fit_judge(crops.where(learned), config.fit, ctx.work / "judge", ctx.progress)
    test = crops.where(tested)
    shapes, colours = judged(judge, torch.from_numpy(test.pixels).float() / 255)
    write_atomic(ctx.output / TENSORS, save(dict(judge.state_dict())))
    names = {"learned": [crops.keys[i] for i in learned], "tested": test.keys}
    write_atomic(ctx.output / SPLIT, json.dumps({"source": config.source, "side": config.side, **names}, indent=1, sort_keys=True) + "\n")
    scores = right(test.concepts, shapes, colours)
    return {"learned": len(learned), "tested": len(tested), **{name: _share(values) for name, values in scores.items()}}


def split(crops: Crops, share: float) -> tuple[list[int], list[int]]:
    """(rows to learn from, rows to test on), by a hash of each image's bytes: an image stays on its side when others are added."""
    learned = [i for i, sha256 in enumerate(crops.sha256) if int(sha256[:16], 16) / 2**64 < share]
    return learned, sorted(set(range(len(crops))) - set(learned))


def right(concepts: np.ndarray, shapes: np.ndarray, colours: np.ndarray) -> dict[str, np.ndarray]:
    """0/1 per image: is the shape right, the colour, both. concepts: what is true; shapes, colours: what was seen."""

    true_shapes, true_colours = concepts_of(concepts)
    shape, colour = shapes == true_shapes, colours == true_colours
    return {"shape": shape.astype(float), "colour": colour.astype(float), "both": (shape & colour).astype(float)}


def _share(values: np.ndarray) -> list[float]:
    """[share, lower, upper]."""
    low, high = wilson(float(values.sum()), len(values))
    return [round(float(values.mean()), 4), round(low, 4), round(high, 4)]
