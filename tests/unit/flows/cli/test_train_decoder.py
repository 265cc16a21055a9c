"""Around the picture decoder: what it depends on, its command, its schedule, its grids."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evals.generation.image_grid import FRAME, GAP, LABEL_HEIGHT, LABEL_WIDTH, RIGHT, UNMARKED, WRONG, grid_png
from evals.generation.picture_judge import right, split
from flows.cli.main import build_parser, main
from infra.plan import topological
from mmcore.concepts.shapes import CONCEPTS, Crops
from mmcore.config import FitConfig
from mmcore.training.fit import batch_rows, draws, ema_decay, fit_rate
from pipelines.dag.build import build
from pipelines.recipes import get_recipe

FIT = FitConfig(steps=100, batch=8, lr=1.0, warmup_steps=10, ema=0.9)


def test_it_depends_on_the_data_and_the_text_encoder_alone():
    steps = build(get_recipe("smol"))
    assert {step.name for step in topological([steps["image_decoder"]])} == {
        "assets",
        "lists",
        "manifest_cc3m",
        "shards_cc3m",
        "weights_text",
        "image_decoder",
    }
    assert "weights_text" not in {step.name for step in topological([steps["picture_judge"]])}
    assert {"eval_pictures"} <= set(steps["history"].inputs) & set(steps["report"].inputs)
    assert {"eval_drawing"} <= set(steps["history"].inputs) & set(steps["report"].inputs) and "decoder_image" in steps["export"].inputs
    assert not {"image_decoder", "picture_judge", "eval_pictures", "eval_drawing"} & set(build(get_recipe("tiny_nextgpt")))


def test_its_settings_are_recipe_values():
    longer = build(get_recipe("smol", {"image_decoder.unet.steps": 4000, "eval_pictures.draws": 16}))
    assert longer["image_decoder"].config.unet.steps == 4000 and longer["eval_pictures"].config.draws == 16
    assert longer["picture_judge"].config == build(get_recipe("smol"))["picture_judge"].config


@pytest.mark.parametrize(("recipe", "why"), [("tiny_nextgpt", "trains no image decoder"), ("clip_two_tower", "is for retrieval only")])
def test_a_recipe_without_a_decoder_is_one_clear_line(recipe, why, tmp_path, capsys):
    assert main(["train-decoder", "--recipe", recipe, "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"anyloom: train-decoder: recipe {recipe} {why}; use --recipe smol\n"


def test_help_teaches_what_it_makes_and_how_to_train_longer(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train-decoder", "--help"])
    text = capsys.readouterr().out
    assert "24 concepts" in text and "image_decoder.unet.steps=4000" in text and "StableDiffusionPipeline.from_pretrained" in text


def test_the_rate_rises_and_falls_to_nothing():
    rates = [fit_rate(FIT, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0, abs=1e-12)
    assert ema_decay(FIT, 0) == pytest.approx(0.1) and ema_decay(FIT, 99) == 0.9


def test_every_picture_comes_up_once_an_epoch_whatever_step_it_starts_from():
    rows = np.concatenate([batch_rows(12, FIT, step, "x") for step in range(6)])
    assert [sorted(rows[start : start + 12].tolist()) for start in range(0, 48, 12)] == [list(range(12))] * 4
    assert not np.array_equal(rows[:12], rows[12:24]) and np.array_equal(batch_rows(12, FIT, 4, "x"), rows[32:40])
    assert not np.array_equal(batch_rows(12, replace(FIT, seed=1), 0, "x"), rows[:8])
    assert draws("a", 1).initial_seed() == draws("a", 1).initial_seed() != draws("a", 2).initial_seed()


def test_the_judge_is_tested_on_pictures_it_did_not_learn_from_and_they_stay_where_they_are():
    def crops(count: int) -> Crops:
        hashes = [f"{(i * 0x9E3779B97F4A7C15) % 2**64:016x}" for i in range(count)]
        empty = np.zeros((count, 1, 1))
        return Crops(keys=hashes, sha256=hashes, pixels=empty, shape_mask=empty, concepts=np.zeros(count, np.int64))

    few, many = split(crops(50), 0.5), split(crops(100), 0.5)
    assert set(few[0]) <= set(many[0]) and set(few[1]) <= set(many[1]) and sorted(many[0] + many[1]) == list(range(100))
    assert 40 <= len(many[0]) <= 60


def test_right_is_counted_by_shape_by_colour_and_both():
    numbers = np.array([i for i, c in enumerate(CONCEPTS) if (c.colour, c.shape) in (("red", "circle"), ("teal", "triangle"))])
    scores = right(numbers, shapes=np.array([0, 0]), colours=np.array([5, 6]))
    assert {part: values.tolist() for part, values in scores.items()} == {"shape": [1, 0], "colour": [1, 1], "both": [1, 0]}


def test_the_grid_shows_every_picture_with_its_mark():
    pictures = np.stack([np.full((3, 4, 4), 10 * i, np.uint8) for i in range(3)])
    data = grid_png(pictures, [True, False, None], 2, ["row"], [(0, "column")])
    assert data == grid_png(pictures, [True, False, None], 2, ["row"], [(0, "column")])
    sheet, cell = Image.open(io.BytesIO(data)), 8 + 2 * (FRAME + GAP)
    corners = [(LABEL_WIDTH + i % 2 * cell + GAP, LABEL_HEIGHT + i // 2 * cell + GAP) for i in range(3)]
    assert [sheet.getpixel(corner) for corner in corners] == [RIGHT, WRONG, UNMARKED]
    assert [sheet.getpixel((x + FRAME, y + FRAME)) for x, y in corners] == [(10 * i,) * 3 for i in range(3)]
    with pytest.raises(ValueError, match="one mark for each image"):
        grid_png(pictures, [True], 2)
