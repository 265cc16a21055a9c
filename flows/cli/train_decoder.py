"""anyloom train-decoder: trains the recipe's small image decoder, judges what it draws, and says how to use it.

Owns the command's options and its closing words.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from flows.running.answer import Answer
from infra.step import AnyloomError

TARGET = "eval_pictures"
ABOUT = """Train a small text-to-image model on the recipe's own images, and judge what it draws.

It learns easy-VQA's shapes, 3 shapes in 8 colours, in crops of 32 x 32 pixels: a world of 24 concepts, no more. The result is an ordinary diffusers
pipeline. The work is three cached steps: image_decoder (the training), picture_judge (a classifier of real images that the decoder has not seen) and
eval_pictures (seeded draws in wordings that were never trained on, judged, with every failure in the grids). They need the shards and the text encoder
of the recipe, which are made first where they are missing. Interrupted, the same command continues from the last checkpoint. One core is used."""
EXAMPLES = """examples:
  anyloom train-decoder                                           train and judge with the recipe's settings
  anyloom train-decoder --set image_decoder.unet.steps=4000       train longer; the autoencoder counts with it, so all of it runs again
  anyloom train-decoder --set eval_pictures.draws=16              only judge again, with more draws of each concept
  anyloom plan --recipe smol                                      what is done already
then, in Python:
  StableDiffusionPipeline.from_pretrained("...the directory printed at the end...")("a red circle", num_inference_steps=25, guidance_scale=2)"""


def add_train_decoder(commands: Any, how: argparse.ArgumentParser) -> None:
    """Add `train-decoder` to a subparsers action. how: parser with the options of `run`."""
    commands.add_parser(
        "train-decoder",
        parents=[how],
        help="train the recipe's small image decoder and judge its images",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(args: argparse.Namespace) -> Answer:
    """Run the steps, then print the scores and where everything is. Raises AnyloomError for a recipe without an image decoder."""
    from flows.cli.options import given_lists, given_weights, parse_overrides, settings_of
    from flows.cli.run import run_recipe
    from flows.running.run import made_recipe, recipe_steps
    from infra.plan import plan

    overrides, settings = parse_overrides(args.overrides), settings_of(args)
    lists, weights = given_lists(args), given_weights(args)
    steps = recipe_steps(args.recipe, overrides, lists=lists, weights=weights)
    if TARGET not in steps:
        why = "is for retrieval only" if made_recipe(args.recipe, overrides, lists).two_tower else "trains no image decoder"
        raise AnyloomError(f"train-decoder: recipe {args.recipe} {why}; use --recipe smol")
    run = run_recipe(args.recipe, settings=settings, overrides=overrides, targets=[TARGET], force=args.force, lists=lists, weights=weights)
    rows = {row.step.name: row for row in plan([steps[TARGET]], settings.root.absolute())}
    pipeline, grids = rows["image_decoder"].path, rows[TARGET].path
    return Answer(lambda: run.document() | {"pipeline": pipeline and pipeline / "pipeline", "grids": grids}, lambda: _say(rows))


def _say(rows: Mapping[str, Any]) -> None:
    """The scores beside their floors and ceilings, and the paths."""
    from flows.running.display import Display, table

    result, judge = rows[TARGET].record.result, rows["picture_judge"].record.result
    conditions = ("new_wording", "trained_wording", "targets", "unrelated", "chance", "real", "real_through_vae")
    cells = [(name, *(_interval(result[f"{name} judged_right {part}"]) for part in ("shape", "colour", "both"))) for name in conditions]
    display = Display()
    display.console.print(table("share judged right, 95 % interval", ("made as", "shape", "colour", "both"), cells))
    display.say(f"judge: {judge['both'][0]:.3f} of {judge['tested']} real test images right (learned from {judge['learned']} others)")
    display.say(f"copies: {_interval(result['new_wording nearer_than_real all'])} are nearer to a training image than 5 % of real ones are")
    display.say(f"grids, failures included: {rows[TARGET].path}")
    display.say(f"pipeline: {rows['image_decoder'].path / 'pipeline'}")


def _interval(values: list[float | None]) -> str:
    value, low, high = values
    limits = "no interval" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
    return f"{value:.3f}" if low == value == high else f"{value:.3f} {limits}"
