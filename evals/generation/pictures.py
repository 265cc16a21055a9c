"""The eval_pictures step: what the image decoder makes of words, judged on seeded draws, every draw counted and shown.

Input: `image_decoder` (a diffusers pipeline), `picture_judge`, and the shards both learned from. Output: metrics.parquet, samples.parquet, one
grid PNG for each condition and one of made images over their nearest training images.

Conditions: `new_wording` (prompts in wordings that no training prompt had, through the pipeline's own text encoder), `trained_wording`, `targets`
(the plain caption with zeros behind its last token, as output projectors learn it) and the control `unrelated` (a prompt that names no concept, judged
against each in turn). Floors: exact chance, 1/3, 1/8 and 1/24. Ceilings: the judge on real test images, as they are and through the autoencoder.
Intervals are over whole concepts, because images of one concept fail together. It is a world of 24 concepts in small crops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.generation.config import PicturesEvalConfig
from evals.generation.image_grid import grid_png
from evals.generation.picture_judge import SPLIT, right
from evals.statistics.intervals import Interval, mean_interval, paired_interval
from evals.tables import IMAGE_SAMPLES, METRICS, metric_row, rounded, write_table
from infra.step import AnyloomError, StepContext
from infra.storage import read_json, write_atomic
from mmcore.concepts.latent_diffusion import decode, encode, load_pipeline, prompt_states, sample
from mmcore.concepts.shape_judge import judged, load_judge
from mmcore.concepts.shapes import COLOURS, CONCEPTS, NEW_WORDINGS, SHAPES, WORDINGS, asked_crops, captioned_crops
from mmcore.stores.shards import ShardSet
from mmcore.training.fit import draws

if TYPE_CHECKING:
    import torch

    from mmcore.concepts.shapes import Crops

UNRELATED = "hello world"
CONDITIONS = ("new_wording", "trained_wording", "targets", "unrelated")
PARTS = ("shape", "colour", "both")
QUANTILE = 0.05
"""A made image counts as a copy when it is nearer to a training image than this share of real test images are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The images of one condition."""

    prompts: list[str]
    concepts: np.ndarray
    """int64 [N]: places in CONCEPTS that were asked for."""
    pixels: torch.Tensor
    """[N, 3, H, W] in [0, 1]."""


def run(ctx: StepContext[PicturesEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns the shares with their intervals, and the memorisation check."""
    import torch

    torch.set_num_threads(1)
    config = ctx.config
    pipeline, judge = load_pipeline(ctx.inputs["image_decoder"].path / "pipeline"), load_judge(ctx.inputs["picture_judge"].path)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    learned, about = read_json(ctx.inputs["image_decoder"].path / "learned.json"), read_json(ctx.inputs["picture_judge"].path / SPLIT)
    if side != about["side"]:
        raise AnyloomError(f"{ctx.name}: the decoder makes {side} pixels, the judge learned on {about['side']}: set picture_judge.side={side}")
    train = captioned_crops(ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores), learned["source"], side)
    real = asked_crops(ShardSet(ctx.inputs["shards_instruct"].path, ctx.stores), about["source"], side)
    tested = set(about["tested"])
    real = real.where(i for i, key in enumerate(real.keys) if key in tested)
    overlap = set(train.sha256) & set(real.sha256)
    if overlap:
        raise AnyloomError(f"{ctx.name}: {len(overlap)} images of {about['source']} are in {learned['source']} too: the decoder has seen them")
    drawn = {condition: _draw(ctx, pipeline, condition, number) for number, condition in enumerate(CONDITIONS)}
    shown = torch.from_numpy(real.pixels).float() / 255
    through = decode(pipeline.vae, encode(pipeline.vae, shown * 2 - 1)) / 2 + 0.5
    ceilings = {"real": shown, "real_through_vae": through}
    samples = {name: _samples(name, made, judged(judge, made.pixels), train) for name, made in drawn.items()}
    metrics = _metrics(config, samples)
    metrics += [row for name, pixels in ceilings.items() for row in _ceiling(config, name, real, judged(judge, pixels))]
    metrics += _memorised(config, samples, nearest(through, train)[1])
    write_table(ctx.output / "samples.parquet", [row for rows in samples.values() for row in rows], IMAGE_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    for name, made in drawn.items():
        write_atomic(ctx.output / f"{name}.png", _grid(made, samples[name], config.draws))
    write_atomic(ctx.output / "nearest.png", _nearest_grid(drawn["new_wording"], samples["new_wording"], train, config.seed))
    shares = {f"{row['condition']} {row['metric']} {row['subgroup']}": rounded(row) for row in metrics}
    return {"pictures": {name: len(rows) for name, rows in samples.items()}, "test_pictures": len(real), **shares}


# ---- drawing --------------------------------------------------------------------------------------------------------


def prompts_of(condition: str, draws: int, seed: int) -> tuple[list[str], np.ndarray]:
    """(prompts, the concepts they are judged against), `draws` of every concept; a wording is drawn for each prompt, evenly over the wordings."""

    numbers = np.repeat(np.arange(len(CONCEPTS)), draws)
    wordings = {"new_wording": NEW_WORDINGS, "trained_wording": WORDINGS, "targets": WORDINGS[:1], "unrelated": (UNRELATED,)}[condition]
    order = np.random.default_rng(seed).permutation(len(numbers)) % len(wordings)
    return [CONCEPTS[number].worded(wordings[which]) for number, which in zip(numbers, order, strict=True)], numbers


def _draw(ctx: StepContext[PicturesEvalConfig], pipeline: Any, condition: str, before: int) -> Drawn:
    """The images of one condition; image i starts from the same noise under every condition."""
    import torch

    config = ctx.config
    prompts, concepts = prompts_of(condition, config.draws, config.seed)
    states, mask = prompt_states(pipeline.tokenizer, pipeline.text_encoder, [*prompts, ""])
    if condition == "targets":
        states = states * mask[..., None]
    unet = pipeline.unet.config
    noise = torch.randn(len(prompts), unet.in_channels, unet.sample_size, unet.sample_size, generator=draws("pictures", config.seed))
    made = []
    for start in range(0, len(prompts), config.batch):
        rows = slice(start, min(start + config.batch, len(prompts)))
        made.append(sample(pipeline, states[:-1][rows], states[-1], noise[rows], config.steps, config.guidance))
        ctx.progress(before * len(prompts) + rows.stop, len(CONDITIONS) * len(prompts), f"images, {condition}")
    return Drawn(prompts=prompts, concepts=concepts, pixels=torch.cat(made))


# ---- judging --------------------------------------------------------------------------------------------------------


def _samples(name: str, drawn: Drawn, seen: tuple[np.ndarray, np.ndarray], train: Crops) -> list[dict[str, Any]]:
    """Rows of IMAGE_SAMPLES."""

    scores = right(drawn.concepts, *seen)
    rows_N, rmse_N = nearest(drawn.pixels, train)
    asked: dict[int, int] = {}
    rows = []
    for i, number in enumerate(drawn.concepts.tolist()):
        asked[number] = asked.get(number, -1) + 1
        rows.append(
            {
                "made_as": name,
                "prompt": drawn.prompts[i],
                "concept": CONCEPTS[number].caption,
                "draw": asked[number],
                "seen_shape": SHAPES[seen[0][i]],
                "seen_colour": COLOURS[seen[1][i]],
                **{part: float(scores[part][i]) for part in PARTS},
                "nearest_key": train.keys[rows_N[i] % len(train)],
                "nearest_rmse": float(rmse_N[i]),
            }
        )
    return rows


def nearest(pixels: torch.Tensor, train: Crops) -> tuple[np.ndarray, np.ndarray]:
    """For images [N, 3, H, W] in [0, 1]: (row of the nearest training image, or len(train) + row of it mirrored; root mean square difference)."""
    import torch

    known = torch.from_numpy(train.pixels).float() / 255
    known = torch.cat([known, known.flip(-1)]).flatten(1)
    shown = pixels.float().flatten(1)
    rows_N = torch.cat([torch.cdist(chunk, known).argmin(1) for chunk in shown.split(64)])
    rmse_N = (shown - known[rows_N]).square().mean(1).sqrt()  # anew: cdist rounds small distances up
    return rows_N.numpy(), rmse_N.numpy()


def _metrics(config: PicturesEvalConfig, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Shares of each condition, their paired difference to the control, and exact chance."""

    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    rows = []
    for part, kinds in zip(PARTS, (SHAPES, COLOURS, CONCEPTS), strict=True):
        named = {"metric": "judged_right", "subgroup": part}
        control = [row[part] for row in samples["unrelated"]]
        for name in CONDITIONS:
            values, clusters = [row[part] for row in samples[name]], [row["concept"] for row in samples[name]]
            kind = "floor" if name == "unrelated" else "score"
            rows.append(metric_row(mean_interval(values, clusters, proportion=True, **options), condition=name, kind=kind, **named))
            if name != "unrelated":
                interval = paired_interval(values, control, clusters, proportion=True, **options)
                rows.append(metric_row(interval, condition=f"{name} - unrelated", kind="difference", **named))
        chance = 1 / len(kinds)
        exact = Interval(value=chance, ci_lo=chance, ci_hi=chance, stderr=0.0, n=len(control), clusters=len(CONCEPTS))
        rows.append(metric_row(exact, condition="chance", kind="floor", **named))
    return rows


def _ceiling(config: PicturesEvalConfig, name: str, real: Crops, seen: tuple[np.ndarray, np.ndarray]) -> list[dict[str, Any]]:
    """What the judge says of real images: no decoder can be judged better than that."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed, "proportion": True}
    scores = right(real.concepts, *seen)
    return [
        metric_row(mean_interval(scores[part], real.sha256, **options), condition=name, metric="judged_right", subgroup=part, kind="score") for part in PARTS
    ]


def _memorised(config: PicturesEvalConfig, samples: Mapping[str, Sequence[Mapping[str, Any]]], real_rmse: np.ndarray) -> list[dict[str, Any]]:
    """How near made images are to their nearest training image, beside how near real test images are (both through the autoencoder, whose
    blur brings an image nearer to everything), and the share of made ones that are nearer than a QUANTILE of the real ones: QUANTILE if nothing is copied."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    limit = float(np.quantile(real_rmse, QUANTILE))
    single = [str(i) for i in range(len(real_rmse))]
    named = {"metric": "nearest_training_rmse", "subgroup": "all"}
    rows = [metric_row(mean_interval(real_rmse, single, **options), condition="real_through_vae", kind="floor", **named)]
    for name in CONDITIONS[:-1]:
        values, clusters = np.array([row["nearest_rmse"] for row in samples[name]]), [row["concept"] for row in samples[name]]
        rows.append(metric_row(mean_interval(values, clusters, **options), condition=name, kind="score", **named))
        near = mean_interval((values < limit).astype(float), clusters, proportion=True, **options)
        rows.append(metric_row(near, condition=name, metric="nearer_than_real", subgroup="all", kind="score"))
    exact = Interval(value=QUANTILE, ci_lo=QUANTILE, ci_hi=QUANTILE, stderr=0.0, n=len(real_rmse), clusters=len(real_rmse))
    return [*rows, metric_row(exact, condition="real_through_vae", metric="nearer_than_real", subgroup="all", kind="floor")]


# ---- grids ----------------------------------------------------------------------------------------------------------


def _bytes(pixels: torch.Tensor) -> np.ndarray:
    """uint8 of pixels in [0, 1]."""
    array: np.ndarray = (pixels * 255).round().clamp(0, 255).byte().numpy()
    return array


def _grid(drawn: Drawn, samples: Sequence[Mapping[str, Any]], draws: int) -> bytes:
    """A row for each colour, the draws of its three shapes side by side; the order of CONCEPTS."""

    labels = [(number * draws, shape) for number, shape in enumerate(SHAPES)]
    return grid_png(_bytes(drawn.pixels), [row["both"] == 1 for row in samples], len(SHAPES) * draws, COLOURS, labels)


def _nearest_grid(drawn: Drawn, samples: Sequence[Mapping[str, Any]], train: Crops, seed: int, columns: int = 12) -> bytes:
    """Two rows of seeded draws, each over the training images that are nearest (mirrored where that is nearer)."""
    chosen = np.random.default_rng(seed).permutation(len(samples))[: 2 * columns]
    chosen = chosen[: len(chosen) // columns * columns] if len(chosen) >= columns else chosen
    columns = min(columns, len(chosen))
    pixels = _bytes(drawn.pixels)
    rows_N, _ = nearest(drawn.pixels, train)
    known = [train.pixels[row % len(train)][..., :: -1 if row >= len(train) else 1] for row in rows_N.tolist()]
    shown, marks = [], []
    for start in range(0, len(chosen), columns):
        part = chosen[start : start + columns].tolist()
        shown += [pixels[i] for i in part] + [known[i] for i in part]
        marks += [samples[i]["both"] == 1 for i in part] + [None] * len(part)
    return grid_png(np.stack(shown), marks, columns, ["made", "nearest"] * (len(shown) // columns // 2))
