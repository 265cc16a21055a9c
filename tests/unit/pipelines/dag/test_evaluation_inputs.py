"""What evaluations read: the shards that the user's lists became, never the recipe's own lists beside them."""

from __future__ import annotations

import pytest

from pipelines.dag.build import build
from pipelines.recipes import RECIPES, get_recipe
from pipelines.recipes.recipe import OWN


@pytest.mark.parametrize("name", [name for name, make in RECIPES.items() if make().lists != OWN])
def test_no_evaluation_and_no_report_reads_a_recipe_s_lists(name):
    steps = build(get_recipe(name))
    readers = {step for step, made in steps.items() if "lists" in made.inputs}
    assert readers and all(reader.startswith(("manifest_", "shards_")) for reader in readers)


@pytest.mark.parametrize("dataset", ["easyvqa_test", "easyvqa_train", "stamps_heldout", "clips_questions_heldout", "sounds_heldout"])
def test_a_list_of_the_user_s_reaches_every_evaluation_that_reads_it(dataset, tmp_path):
    own = tmp_path / "mine"
    own.write_text("[]")
    recipe = get_recipe("tiny_mix", {"suites": ["stand_in"]})
    plain, mine = build(recipe), build(recipe, {dataset: own})
    group = next(found.format for found in recipe.datasets if found.name == dataset)
    shards = mine[f"shards_{group}"]
    assert shards.sources == {dataset: own} and mine["lists"] == plain["lists"]
    readers = {name for name, step in mine.items() if shards in step.inputs.values() and name.startswith("eval_")}
    wanted = {
        "easyvqa_test": {"eval_vqa", "eval_media_questions", "eval_drawing", "eval_captioning", "eval_objects_as_pope", "eval_generation"},
        "stamps_heldout": {"eval_stamps_as_mmbench", "eval_words_as_textvqa", "eval_captions", "eval_alignment", "eval_captioning", "eval_objects_as_pope"},
        "sounds_heldout": {"eval_captions", "eval_captioning"},
    }
    assert readers >= wanted.get(dataset, {"eval_vqa", "eval_media_questions"})
    asked = mine["report"].config.questions_are
    assert asked == ("your own (--list easyvqa_test)" if dataset == "easyvqa_test" else recipe.questions_are)


def test_a_recipe_without_the_test_list_has_no_such_evaluation(tmp_path):
    own = tmp_path / "mine"
    own.write_text("[]")
    recipe = get_recipe("tiny")
    assert "eval_vqa" in build(recipe)
    from dataclasses import replace

    without = replace(recipe, datasets=tuple(one for one in recipe.datasets if one.name not in ("easyvqa_test", "stamps_heldout")), suites=("stand_in",))
    steps = build(replace(without, eval_generation=without.eval_generation, generation=False))
    assert not {"eval_vqa", "eval_stamps_as_mmbench", "eval_words_as_textvqa"} & set(steps)
