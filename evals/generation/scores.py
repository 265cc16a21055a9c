"""What made media are worth: whether there are any, whether a judge finds in them what was asked for, CLIPScore, and distances to real media.

Input: the requests, their rows and files; output: rows of METRICS with a row of DETAILS each, and what was not scored and why.

Conditions: the suite (`held_out`, `concepts`), `…, forced`; controls `…, shuffled` (the same media against another request), `…, scrambled` (their pixels or
samples in a random order) and `real` (real media among themselves: what a perfect generator of that number would get).
A request without a medium counts as wrong for a judge; CLIPScore and distances are of the media there are, and say how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evals.generation.config import ASKED, GenerationEvalConfig
from evals.generation.distance_rows import Vectors, distance_rows
from evals.generation.extractors import FOLDERS, Extractor, SharedSpace, scrambled, shares_space
from evals.generation.picture_judge import right
from evals.generation.prompts import CONCEPTS_SUITE, Reference, Request, references_of
from evals.generation.speaking import right_words
from evals.statistics.intervals import derangement, mean_interval, paired_interval
from evals.tables import CLUSTERED, JACKKNIFE, detail, metric_row, set_digest
from infra.step import AnyloomError, StepContext
from infra.storage import digest_tree, read_json
from mmcore.concepts.shape_judge import judged, load_judge
from mmcore.concepts.shapes import COLOURS, CONCEPTS, SHAPES
from mmcore.concepts.speech_judge import SpeechJudge
from mmcore.config import model_spec_from_json
from mmcore.inference.generator import DESCRIPTION
from mmcore.media.decode import decode_image
from mmcore.runtime.devices import device_for

Rows = list[dict[str, Any]]


@dataclass(kw_only=True, slots=True)
class Scored:
    """samples: rows of GENERATED, scored; metrics and details: one for one; not_scored: what -> why."""

    samples: Rows
    metrics: Rows = field(default_factory=list)
    details: Rows = field(default_factory=list)
    not_scored: dict[str, str] = field(default_factory=dict)

    def add(self, metrics: Rows, definition: str, interval: str, **known: Any) -> None:
        """Rows of METRICS, and what stands behind all of them."""
        self.metrics += metrics
        self.details += [detail(metric, definition, interval, **known) for metric in metrics]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The requests of one suite, modality and way of making."""

    suite: str
    modality: str
    how: str
    requests: list[Request]
    rows: Rows

    @property
    def condition(self) -> str:
        """As metrics call it."""
        return self.suite if self.how == ASKED else f"{self.suite}, {self.how}"

    @property
    def made(self) -> Rows:
        """The rows that have a medium."""
        return [row for row in self.rows if row["file"]]


def scored(ctx: StepContext[GenerationEvalConfig], requests: Sequence[Request], samples: Rows) -> Scored:
    """Every score there can be. The files of the samples are in ctx.output."""

    found = Scored(samples=samples)
    encoders = dict(model_spec_from_json(read_json(ctx.inputs["export"].path / DESCRIPTION)["model"]).encoders)
    groups: dict[tuple[str, str, str], Group] = {}
    for request, row in zip(requests, samples, strict=True):
        key = (row["suite"], row["modality"], row["how"])
        group = groups.setdefault(key, Group(suite=key[0], modality=key[1], how=key[2], requests=[], rows=[]))
        group.requests.append(request)
        group.rows.append(row)
    for number, group in enumerate(groups.values()):
        ctx.progress(number, len(groups), f"scores of {group.modality}, {group.condition}")
        _emitted(ctx, found, group)
        _judged(ctx, found, group)
        _compared(ctx, found, group, encoders)
    return found


def _options(ctx: StepContext[GenerationEvalConfig]) -> dict[str, Any]:
    config = ctx.config
    return {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}


def _emitted(ctx: StepContext[GenerationEvalConfig], found: Scored, group: Group) -> None:
    """The share of the requests to which the model wrote a whole block by itself."""
    if group.how != ASKED:
        return
    interval = mean_interval([row["emitted"] for row in group.rows], [row["cluster"] for row in group.rows], proportion=True, **_options(ctx))
    row = metric_row(interval, condition=group.condition, metric="emits_block", subgroup=group.modality, kind="score")
    found.add([row], "share of the requests answered with a whole signal block, written by the model itself", CLUSTERED)


# ---- judges ---------------------------------------------------------------------------------------------------------


def _judged(ctx: StepContext[GenerationEvalConfig], found: Scored, group: Group) -> None:
    """judged_right of concepts, by the recipe's classifier of images or of spoken words."""
    name = {"image": "picture_judge", "audio": "speech_judge"}.get(group.modality, "")
    if group.suite != CONCEPTS_SUITE:
        return
    if name not in ctx.inputs:
        found.not_scored[f"{group.condition} judged_right {group.modality}"] = "the recipe has no judge of this modality"
        return

    judge = _images_right if group.modality == "image" else _audio_right
    order = derangement([(str(request.concept),) for request in group.requests], ctx.config.seed)
    others = [group.requests[place].concept for place in order]
    judge(ctx, group, others)
    for row in group.rows:
        row["right"], row["right_of_other"] = (0.0, 0.0) if not row["file"] else (row["right"], row["right_of_other"])
    clusters = [CONCEPTS[request.concept].caption for request in group.requests]
    own, other = ([row[column] for row in group.rows] for column in ("right", "right_of_other"))
    named = {"metric": "judged_right", "subgroup": group.modality}
    rows = [
        metric_row(mean_interval(own, clusters, proportion=True, **_options(ctx)), condition=group.condition, kind="score", **named),
        metric_row(mean_interval(other, clusters, proportion=True, **_options(ctx)), condition=f"{group.condition}, shuffled", kind="floor", **named),
        metric_row(
            paired_interval(own, other, clusters, proportion=True, **_options(ctx)), condition=f"{group.condition} - shuffled", kind="difference", **named
        ),
    ]
    meant = "shape and colour are those asked for; a request without a medium counts as wrong"
    found.add(rows, meant, CLUSTERED, extractor=name, extractor_sha256=ctx.inputs[name].digest)


def _images_right(ctx: StepContext[GenerationEvalConfig], group: Group, others: Sequence[int]) -> None:
    """Fill in seen, right and right_of_other of the made images."""
    import torch

    places = [place for place, row in enumerate(group.rows) if row["file"]]
    if not places:
        return
    pixels = np.stack([np.asarray(decode_image((ctx.output / group.rows[place]["file"]).read_bytes())) for place in places])
    seen = judged(load_judge(ctx.inputs["picture_judge"].path), torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255)
    own = right(np.array([group.requests[place].concept for place in places]), *seen)["both"]
    other = right(np.array([others[place] for place in places]), *seen)["both"]
    for number, place in enumerate(places):
        text = f"{COLOURS[seen[1][number]]} {SHAPES[seen[0][number]]}"
        group.rows[place] |= {"seen": text, "right": float(own[number]), "right_of_other": float(other[number])}


def _audio_right(ctx: StepContext[GenerationEvalConfig], group: Group, others: Sequence[int]) -> None:
    """The same of the made audio clips, from what is heard in them."""

    config = ctx.config
    places = [place for place, row in enumerate(group.rows) if row["file"]]
    judge = SpeechJudge(ctx.inputs["speech_judge"].path, config.heard_s) if places else None
    for start in range(0, len(places), config.chunk):
        batch = places[start : start + config.chunk]
        assert judge is not None
        for place, heard in zip(batch, judge.hear([(ctx.output / group.rows[p]["file"]).read_bytes() for p in batch]), strict=True):
            scores = [right_words(heard, concept)["both"] for concept in (group.requests[place].concept, others[place])]
            group.rows[place] |= {"seen": heard, "right": scores[0], "right_of_other": scores[1]}


# ---- encoders -------------------------------------------------------------------------------------------------------


def _compared(ctx: StepContext[GenerationEvalConfig], found: Scored, group: Group, encoders: Mapping[str, Any]) -> None:
    """CLIPScore and distances of the made media, against real ones."""

    config, made, what = ctx.config, group.made, f"{group.condition} %s {group.modality}"
    if not made:
        found.not_scored[what % "distances, clipscore"] = "no medium was made"
        return
    media, device = [(ctx.output / row["file"]).read_bytes() for row in made], device_for(ctx.resources.gpus)
    try:
        dataset, real = references_of(ctx, group.suite, group.modality, _side(media[0]) if group.modality == "image" else 0)
    except AnyloomError as error:
        found.not_scored[what % "distances"] = str(error)
        return
    weights = ctx.inputs["export"].path / "encoders" / FOLDERS[group.modality]
    _clipscored(ctx, found, group, media, real, encoders.get(group.modality), weights, device)
    spec = encoders.get("image" if group.modality == "video" else group.modality)
    if spec is None:
        found.not_scored[what % "distances"] = f"the model has no encoder of {group.modality}"
        return
    extractor = Extractor(spec, weights, group.modality, config.frames, device)
    mine = Vectors.of(extractor, media, [row["cluster"] for row in made])
    theirs = Vectors.of(extractor, [reference.data for reference in real], [reference.sha256 for reference in real])
    mixed = [scrambled(group.modality, data, row["seed"], config.frames) for data, row in zip(media, made, strict=True)]
    if group.modality == "video":
        frames = Extractor(spec, weights, "image", 1, device)
        flat = [frame for video in mixed for frame in video]
        noise = Vectors.of(frames, flat, [row["cluster"] for row in made for _ in range(config.frames)])
    else:
        noise = Vectors.of(extractor, mixed, [row["cluster"] for row in made])
    rows, refused = distance_rows(group.condition, group.modality, mine, theirs, noise, config.jackknife_groups, config.seed)
    found.not_scored |= {what % name: why for name, why in refused.items()}
    known = {"reference": dataset, "reference_sha256": set_digest(reference.sha256 for reference in real), "n_reference": len(real)}
    for row, definition in rows:
        found.add([row], definition, JACKKNIFE, extractor=extractor.name, extractor_sha256=extractor.sha256, **known)


def _side(image: bytes) -> int:

    return min(decode_image(image).size)


def _clipscored(
    ctx: StepContext[GenerationEvalConfig],
    found: Scored,
    group: Group,
    media: Sequence[bytes],
    real: Sequence[Reference],
    spec: Any,
    weights: Path,
    device: str,
) -> None:
    """CLIPScore of made media with their own captions, with another request's, and of real media with theirs."""
    config = ctx.config
    refusal = shares_space(config.query, spec)
    if refusal:
        found.not_scored[f"{group.condition} clipscore {group.modality}"] = refusal
        return
    made, query = group.made, ctx.inputs["weights_query"].path
    assert config.query is not None
    space = SharedSpace(config.query, query, spec, weights, device)
    try:
        order = derangement([(row["cluster"],) for row in made], config.seed)
    except ValueError as error:
        found.not_scored[f"{group.condition} clipscore {group.modality}"] = str(error)
        return
    own, other = space.clipscore(media, [row["caption"] for row in made]), space.clipscore(media, [made[place]["caption"] for place in order])
    for row, score, wrong in zip(made, own, other, strict=True):
        row["clipscore"], row["clipscore_of_other"] = float(score), float(wrong)
    truth = space.clipscore([reference.data for reference in real], [reference.caption for reference in real])
    clusters, named = [row["cluster"] for row in made], {"metric": "clipscore", "subgroup": group.modality}
    rows = [
        metric_row(mean_interval(own, clusters, **_options(ctx)), condition=group.condition, kind="score", **named),
        metric_row(mean_interval(other, clusters, **_options(ctx)), condition=f"{group.condition}, shuffled", kind="floor", **named),
        metric_row(paired_interval(own, other, clusters, **_options(ctx)), condition=f"{group.condition} - shuffled", kind="difference", **named),
        metric_row(
            mean_interval(truth, [reference.sha256 for reference in real], **_options(ctx)), condition=f"{group.condition}, real", kind="score", **named
        ),
    ]
    digest = set_digest([digest_tree(query), digest_tree(weights)])
    name = f"{spec.kind} and {config.query.kind} {spec.arch}"
    found.add(rows, "2.5 max(cos, 0) of medium and caption, of the media that were made", CLUSTERED, extractor=name, extractor_sha256=digest)
