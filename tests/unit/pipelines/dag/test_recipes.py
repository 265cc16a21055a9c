"""Recipes and their overrides: golden files, clear errors, and which steps a change reaches."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.fingerprint import to_plain
from infra.plan import topological
from infra.step import AnyloomError
from mmcore.config import RowsStage
from mmcore.encoder_config import HfImage, HfText, TimmImage, VaeAudio, WhisperAudio
from pipelines.dag.build import build
from pipelines.dag.given import needs_files
from pipelines.dag.parts import Evaluation, steps_of
from pipelines.recipes import RECIPES, get_recipe
from pipelines.recipes.overrides import described, keys

GOLDEN = Path(__file__).resolve().parents[3] / "golden"


def resolved():
    spec = importlib.util.spec_from_file_location("rewrite", GOLDEN / "rewrite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.resolved()


@pytest.mark.parametrize("name", list(RECIPES))
def test_resolved_recipe_is_the_golden_one(name):
    assert resolved()[name] == (GOLDEN / "recipes" / f"{name}.json").read_text(), "run `make golden` and review the diff"


def test_a_plain_name_is_for_official_data_and_no_evaluation_takes_anothers_place(tmp_path):
    record = tmp_path / "full.json"
    record.write_text("{}")
    steps = build(get_recipe("tiny"), {"full": record})
    assert steps["eval_pope"].run == "evals.suites.run:run" and steps["eval_objects_as_pope"].run == "evals.questions.objects_as_pope:run"
    assert {"eval_pope", "eval_objects_as_pope"} <= set(steps["history"].inputs)
    official, made = steps["eval_pope"], replace(steps["eval_objects_as_pope"], name="eval_pope")
    one, other = (Evaluation(evaluations={name: step}, history=None, report=None) for name, step in (("eval_pope", official), ("other", made)))
    assert steps_of(one, one) == {"eval_pope": official}
    with pytest.raises(AnyloomError, match=r"two steps are called eval_pope \(evals.suites.run:run and evals.questions.objects_as_pope:run\)"):
        steps_of(one, other)


def test_overrides_reach_the_field_and_only_it():
    before, after = to_plain(get_recipe("tiny")), to_plain(get_recipe("tiny", {"stage3.lr": 1e-4}))
    assert after["stages"][2].pop("lr") == 1e-4 and before["stages"][2].pop("lr") != 1e-4
    assert before == after


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage3.lrr", 1, r"stage3\.lrr: no such key; close ones: .*stage3\.lr"),
        ("stage3", 1, r"--set stage3: give a value of the stage \(stage3\.lr=1e-4\) or the whole stage as a JSON object"),
        ("stage3", {"steps": 1}, r"--set stage3: the whole stage needs batch, lr, mixture"),
        ("stage3", {"rows": 1}, r"--set stage3: rows is no setting of it; it has steps, batch"),
        ("stage2.dialogues", ["a"], r"stage2\.dialogues: no such key"),
        ("stage1.requests", 2, r"stage1\.requests: no such key"),
        ("nothing", 1, r"nothing: no such key"),
        ("stage3.lr.x", 1, r"no such key"),
        ("stage3.steps", "many", r"stage3\.steps=many: expected int like"),
        ("stage3.caption_turn", 1, r"expected bool"),
        ("stages", "stage1", r"--set stages=stage1: expected the names of stages in training order"),
        ("name", "x", r"a recipe's name is fixed"),
        ("image.pad", True, r"--set image\.pad: timm_image has no pad; it has kind, arch, width, .*image_size$"),
        ("audio.grid", 2, r"--set audio\.grid: whisper_audio has no grid; it has kind, arch, .*tokens, max_seconds$"),
        ("image.kind", "clip", r"--set image\.kind: unknown encoder kind 'clip': choose one of bert_text, "),
        ("image.kind", 3, r"--set image\.kind=3: expected str like 'timm_image'"),
        ("image.kind", "whisper_audio", r"--set image: whisper_audio needs tokens$"),
        ("image", 3, r"--set image: give a value of the encoder \(image\.batch=8\) or the whole encoder as a JSON object"),
        ("image", {"kind": "hf_image", "arch": "clip"}, r"--set image: hf_image needs width$"),
        ("image", {"kind": "hf_image", "arch": "clip", "width": 16, "frames": 2}, r"--set image: hf_image has no frames; it has arch, width"),
        ("image", {"kind": "hf_image", "arch": "clip", "width": "wide"}, r"--set image\.width=wide: expected int like"),
        ("latents", {"arch": "vae"}, r"--set latents: give a value of the encoder"),
    ],
)
def test_wrong_overrides_are_one_clear_line(key, value, message):
    with pytest.raises(AnyloomError, match=message) as caught:
        get_recipe("tiny", {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage3.schedule", "step", r"recipe tiny: stage3\.schedule 'step' is unknown: use linear or cosine"),
        ("stage3.too_long", "truncate", r"recipe tiny: stage3\.too_long 'truncate' is unknown: use cut or leave_out"),
        ("stage1.max_lost", 1.5, r"recipe tiny: stage1\.max_lost is 1\.5: it is a share, from 0 to 1"),
        ("max_lost", -0.5, r"recipe tiny: max_lost is -0\.5: it is a share, from 0 to 1"),
        ("video.sampling", "shots", r"tiny, encoder of video: timm_video does not support sampling=shots: use uniform or scenes"),
    ],
)
def test_values_that_nothing_can_follow_are_one_line_while_planning(key, value, message):
    with pytest.raises(AnyloomError, match=message):
        build(get_recipe("tiny", {key: value}))


def test_another_kind_of_encoder_keeps_what_both_kinds_have():
    image = get_recipe("tiny", {"image.kind": "hf_image"}).image
    assert image == HfImage(arch="test_efficientnet", width=256, grid=2, image_size=64, batch=8, part_rows=16)
    sounds = get_recipe("tiny", {"image.tokens": 3, "image.batch": 2, "image.kind": "whisper_audio"}).image
    assert sounds == WhisperAudio(arch="test_efficientnet", width=256, tokens=3, batch=2, part_rows=16)
    text = get_recipe("tiny_two_tower", {"two_tower.text.kind": "hf_text"}).two_tower.text
    assert text == HfText(arch="bert", width=32, batch=8, part_rows=64)


def test_a_whole_encoder_has_the_defaults_of_its_kind():
    whole = {"kind": "hf_image", "arch": "clip:mine", "width": 16}
    assert get_recipe("tiny", {"image": whole}).image == HfImage(arch="clip:mine", width=16)
    assert get_recipe("tiny", {"image": {"arch": "test_vit", "width": 64, "grid": 3}}).image == TimmImage(arch="test_vit", width=64, grid=3)
    audio = {"kind": "vae_audio", "arch": "x", "width": 8, "max_seconds": 3}
    assert get_recipe("tiny", {"latents_audio": audio}).latents_audio == VaeAudio(arch="x", width=8, max_seconds=3.0)


def test_what_is_shown_of_a_recipe_is_what_can_be_set():
    recipe = get_recipe("tiny_two_tower")
    shown = json.loads(json.dumps(described(recipe)))
    assert list(shown["two_tower"]["text"]) == ["kind", "arch", "width", "dtype", "compute", "batch", "part_rows", "revision", "tokens"]
    for key in keys(recipe):
        value = shown | to_plain(recipe.entries)
        for part in key.split("."):
            value = value[part]
    assert to_plain(get_recipe("tiny_two_tower", {"two_tower.text": shown["two_tower"]["text"], "image": shown["image"]})) == to_plain(recipe)


def test_unknown_recipe_names_those_there_are():
    with pytest.raises(AnyloomError, match="no recipe called smoll; there are: tiny, tiny_nextgpt, smol"):
        get_recipe("smoll")


def test_every_key_that_is_offered_is_accepted():
    recipe = get_recipe("tiny")
    for key in keys(recipe):
        value = json.loads(json.dumps(to_plain(recipe) | to_plain(recipe.entries)))
        for part in key.split("."):
            value = value[part]
        value = list(recipe.entries) if key == "stages" else value
        if key != "name" and not key.endswith(".stage"):
            assert to_plain(get_recipe("tiny", {key: value})) == to_plain(recipe)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny", {"image.tiles": 1}, "encoder of image: timm_image with tiles 1"),
        ("tiny", {"lora.mode": "each"}, r"recipe tiny: lora\.mode 'each' is unknown: use shared or per_modality"),
        ("tiny", {"quantize": "3bit"}, "recipe tiny: quantize '3bit' is unknown: use 4bit, 8bit or nothing"),
        ("tiny", {"chat": "alpaca"}, "recipe tiny: chat template 'alpaca' is unknown; there are: chatml, vicuna_v1"),
        ("tiny", {"tokens.audio": -1}, r"recipe tiny: tokens\.audio is -1"),
    ],
)
def test_an_encoder_that_cannot_do_it_is_named_before_anything_runs(name, change, message):
    with pytest.raises(AnyloomError, match=message):
        build(get_recipe(name, change))


def test_the_sound_of_clips_is_a_step_only_when_asked_for():
    assert "embed_video_audio" not in build(get_recipe("tiny"))
    steps = build(get_recipe("tiny", {"video_audio": True}))
    assert steps["embed_video_audio"].config == steps["embed_audio"].config
    assert set(steps["embed_video_audio"].inputs) == {"weights", "shards_webvid"}


@pytest.mark.parametrize("name", [name for name, make in RECIPES.items() if not needs_files(make())])
def test_the_graph_is_whole(name):
    steps = build(get_recipe(name))
    assert {step.name for step in topological(steps.values())} == set(steps)
    towers = {"embed_text", "two_tower", "eval_retrieval", "overlap", "targets"}
    stages = {"stage1", "stage2", "stage3", "export", "eval_vqa", "history", "report"}
    expected, absent = (towers, stages) if get_recipe(name).two_tower else (stages, towers - {"overlap", "targets"})
    assert expected <= set(steps) and not absent & set(steps)


def test_the_two_towers_stand_on_the_steps_of_smol():
    from infra.plan import identity

    smol, towers = build(get_recipe("smol")), build(get_recipe("clip_two_tower"))
    shared = set(smol) & set(towers)
    assert set(towers) - shared == {"embed_text", "two_tower", "eval_retrieval"} and {"embed_image", "embed_video", "embed_audio", "shards_cc3m"} <= shared
    for name in shared:
        digests = dict.fromkeys(smol[name].inputs, "d")
        assert identity(smol[name], digests) == identity(towers[name], digests)
        assert {key: step.name for key, step in smol[name].inputs.items()} == {key: step.name for key, step in towers[name].inputs.items()}


def test_a_stage_is_changed_by_the_name_of_its_entry_and_may_be_replaced_whole():
    twice = get_recipe("smol", {"stage2_2.lr": 5e-4, "stage2.steps": 7})
    assert [(name, config.steps, config.lr) for name, config in twice.entries.items() if config.stage == "stage2"] == [
        ("stage2", 7, 1e-3),
        ("stage2_2", 450, 5e-4),
    ]
    whole = get_recipe("tiny", {"stage3": {"steps": 5, "batch": 3, "lr": 0.1, "mixture": [["easyvqa_train", 1.0]]}}).entries["stage3"]
    assert whole == RowsStage(stage="stage3", steps=5, batch=3, lr=0.1, mixture=(("easyvqa_train", 1.0),))
    again = get_recipe("tiny", {"stages": ["stage1", "stage2", "stage2"], "stage2_2.steps": 2})
    assert [(name, config.steps) for name, config in again.entries.items()] == [("stage1", 8), ("stage2", 8), ("stage2_2", 2)]


def test_stage_order_is_the_recipes_list():
    one = build(get_recipe("tiny", {"stages": ["stage1", "stage3", "stage2"]}))
    assert {"stage1", "stage3"} <= set(one["stage2"].inputs) and "stage2" not in one["stage3"].inputs
    other = build(get_recipe("tiny"))
    assert "stage3" not in other["stage2"].inputs and {"stage1", "stage2"} <= set(other["stage3"].inputs)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("stages", ["stage1", "stage9"], "--set stages: there is no stage9; the recipe's stages are stage1, stage2, stage3"),
        ("stage3.lr", -1.0, "--set stage3.lr: -1.0 is not above 0"),
        ("stage1.steps", 0, "--set stage1.steps: 0 is not above 0"),
    ],
)
def test_a_stage_that_cannot_be_trained_is_refused_before_anything_runs(key, value, told):
    with pytest.raises(AnyloomError, match=told):
        get_recipe("tiny", {key: value})
