"""Recipes on the user's own files: one line for what is missing, the plan with what is given, the values that the references have; and their tables."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data_steps import png, run_step
from published_decoders import write_settings

from flows.cli import catalogues
from flows.running.run import select
from infra.plan import WAITING, plan
from infra.step import AnyloomError
from mmcore.config import output_spec
from mmcore.decoders.catalogue import CATALOGUE
from mmcore.decoders.catalogue import known as known_decoder
from mmcore.decoders.contract import read_contract
from mmcore.decoders.projected import check_projector
from pipelines.dag import given
from pipelines.dag.build import build
from pipelines.embed.config import LATENTS, TARGETS
from pipelines.recipes import RECIPES, get_recipe
from pipelines.recipes.nextgpt import NEXTGPT_DECODERS
from pipelines.recipes.nextgpt_legacy import LEGACY_DECODERS
from pipelines.recipes.overrides import with_overrides
from pipelines.recipes.recipe import Dataset, model_spec

FULL = ("nextgpt_7b", "nextgpt_7b_legacy", "llava15_7b")


def files(folder: Path, recipe) -> tuple[dict[str, Path], dict[str, Path]]:
    """Lists and weights as the planner sees them: the right names, contents of one line."""
    folder.mkdir(exist_ok=True)
    lists = {name: folder / f"{name}.list" for name in given.wanted_lists(recipe)}
    weights = {}
    for name, what in given.wanted_weights(recipe).items():
        weights[name] = folder / name
        if name.startswith("decoder_"):
            write_settings(dict(recipe.decoders)[name.removeprefix("decoder_")], weights[name])
        elif what.startswith("DIR"):
            weights[name].mkdir(exist_ok=True)
            for part in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
                (weights[name] / part).write_text("{}")
        else:
            weights[name].write_text("{}")
    for path in lists.values():
        path.write_text("[]")
    return lists, weights


@pytest.mark.parametrize("name", FULL)
def test_without_files_one_line_names_every_one_of_them(name):
    recipe = get_recipe(name)
    wanted = {*given.wanted_weights(recipe), *given.wanted_lists(recipe)}
    with pytest.raises(AnyloomError, match="this takes files of your own and downloads none; it lacks --") as caught:
        select(build(recipe), None)
    assert "\n" not in str(caught.value) and all(f" {one}=" in str(caught.value) for one in wanted)
    with pytest.raises(AnyloomError, match="it lacks --weights lm=DIR"):
        select(build(get_recipe(name, {"lists": "tiny"})), None)


@pytest.mark.parametrize("name", FULL)
def test_with_its_files_it_is_planned_and_nothing_is_fetched(name, tmp_path):
    recipe = get_recipe(name)
    lists, weights = files(tmp_path, recipe)
    steps = build(recipe, lists, weights)
    assert {"weights_lm", "weights_image", "embed_image", "stage1", "stage3", "export"} <= set(steps) and not {"assets", "lists", "weights_text"} & set(steps)
    sources = {name for step in steps.values() for name in step.sources}
    assert set(lists) <= sources and {"config.json", "model.safetensors", "tokenizer.json"} <= set(steps["weights_lm"].sources)
    assert steps["stage3"].inputs.keys() >= {"weights_lm", "stage1", "embed_image", "shards_instruct"}
    if name == "llava15_7b":
        assert not [step for step in steps if "video" in step or "audio" in step or "cc3m" in step]
        assert "shards_instruct" in steps["stage1"].inputs and steps["embed_image"].config.spec.layer == -2
    else:
        assert {"embed_video", "embed_audio"} <= set(steps) and "shards_instruct" not in steps["stage1"].inputs
        assert set(steps["embed_audio"].inputs) == {"weights", "shards_audiocaps", "shards_instruct"}
        assert steps["weights_image"].sources == {"imagebind": weights["imagebind"]} and steps["weights_image"].config.kind == "pretrained"
    missing = dict(list(lists.items())[1:])
    with pytest.raises(AnyloomError, match=f"it lacks --list {next(iter(lists))}=FILE [(][^()]*[)]$"):
        select(build(recipe, missing, weights), None)


@pytest.mark.parametrize("name", FULL)
def test_every_step_asks_only_for_the_files_that_it_needs(name, tmp_path):
    recipe = get_recipe(name)
    lists, weights = files(tmp_path, recipe)
    assert [step.name for step in select(build(recipe, lists), ("manifest_*", "shards_*", "overlap"))]
    with pytest.raises(AnyloomError, match=r"it lacks --weights (image|imagebind)=[^=]*$"):
        select(build(recipe, lists), ("embed_image",))
    steps = build(recipe, {}, weights)
    assert select(steps, ("weights_*",))
    group = next(iter({dataset.format for dataset in recipe.datasets if dataset.name in lists}))
    with pytest.raises(AnyloomError, match="it lacks --list") as caught:
        select(steps, (f"shards_{group}",))
    assert {f" {dataset.name}=" in str(caught.value) for dataset in recipe.datasets if dataset.format == group} == {True}
    rows = {row.step.name: row for row in plan(build(recipe).values(), tmp_path / "root")}
    assert rows["weights_lm"].reason.startswith("needs --weights lm=DIR") and rows["stage1"].status == rows["weights_lm"].status == WAITING


def test_what_no_stage_trains_on_need_not_be_given(tmp_path):
    pictures = [["cc3m", 1.0]]
    recipe = get_recipe("nextgpt_7b", {"stage1.mixture": pictures, "stage2.mixture": pictures, "stage3.mixture": [["llava_150k", 1.0]]})
    lists, weights = files(tmp_path, recipe)
    assert set(given.wanted_lists(with_overrides(recipe, {"stages": ["stage1", "stage3"]}))) == {"cc3m", "llava_150k"}
    steps = build(recipe, {name: lists[name] for name in ("cc3m", "llava_150k")}, weights)
    assert "shards_webvid" not in steps and set(steps["embed_video"].inputs) == {"weights", "shards_instruct"}
    assert not {"targets_video", "targets_audio", "embed_latents_video", "embed_latents_audio"} & set(steps)  # nothing to align with, nothing to make again
    assert steps["stage2"].inputs.keys() >= {"targets", "embed_latents", "decoder_image"} and "decoder_video" not in steps["stage2"].inputs
    assert "decoder_video" in steps["export"].inputs
    with pytest.raises(AnyloomError, match=r"stage3\.mixture names coco, which is none of its datasets: cc3m, webvid"):
        build(get_recipe("nextgpt_7b", {"stage3.mixture": [["coco", 1.0]]}), lists, weights)


def test_stage_2_waits_for_decoders(tmp_path):
    recipe = replace(get_recipe("nextgpt_7b"), decoders=(), latents=None, latents_video=None, latents_audio=None)
    steps = build(recipe, *files(tmp_path, recipe))
    assert "stage2" not in steps and "states" not in steps and steps["export"].config.stages == ("stage1", "stage3")
    assert [line.split(",")[0] for line in given.left_out(recipe)] == ["stage2"] and given.left_out(get_recipe("smol")) == []
    drawing = get_recipe("nextgpt_7b")
    assert given.stages(drawing) == drawing.stages and given.left_out(drawing) == []
    wanted = given.wanted_weights(drawing)
    assert wanted["decoder_image"].startswith("DIR (stabilityai/stable-diffusion-2,") and {"decoder_video", "decoder_audio"} <= set(wanted)
    published = {entry.published: entry.modality for entry in CATALOGUE}
    assert all(published[name] == modality for modality, name in (*NEXTGPT_DECODERS, *LEGACY_DECODERS))


def test_stage_2_takes_the_modalities_that_have_decoders(tmp_path):
    """Sounds alone need no targets of pictures; pictures without a decoder of pictures are one line."""
    only = {"decoders": [["audio", "cvssp/audioldm-l-full"]]}
    recipe = get_recipe("nextgpt_7b_legacy", {**only, "stage2.mixture": [["audiocaps", 1.0]]})
    steps = build(recipe, *files(tmp_path, recipe))
    assert set(TARGETS.values()) & set(steps["stage2"].inputs) == {"targets_audio"} and "targets" not in steps
    assert {name for name in steps["states"].inputs if name.startswith("shards")} == {"shards_audiocaps"}
    for changes in (only, {**only, "stage2.mixture": [["cc3m", 1.0]]}):
        recipe = get_recipe("nextgpt_7b_legacy", changes)
        with pytest.raises(AnyloomError, match=r"stage2\.mixture has cc3m, but nothing makes targets of image: name a decoder for image in decoders") as caught:
            build(recipe, *files(tmp_path, recipe))
        assert "\n" not in str(caught.value)


def test_the_reference_is_planned_with_its_decoders_from_their_weights_to_the_denoising_loss(tmp_path):
    recipe = get_recipe("nextgpt_7b")
    steps = build(recipe, *files(tmp_path, recipe))
    for modality, name in NEXTGPT_DECODERS:
        step = steps[f"weights_decoder_{modality}"]
        assert (step.config.kind, step.config.name) == ("given", name) and "unet/diffusion_pytorch_model.safetensors" in step.sources
        assert steps[TARGETS[modality]].inputs["weights"] is steps[LATENTS[modality]].inputs["weights"] is step
        assert steps["stage2"].inputs.keys() >= {f"decoder_{modality}", TARGETS[modality], LATENTS[modality]}
        target, projector = steps[TARGETS[modality]].config.spec, output_spec(model_spec(recipe), modality)
        assert (target.tokens, target.width) == (projector.queries, projector.out) == ((1, 512) if modality == "audio" else (77, 1024))
        assert steps["export"].inputs[f"decoder_{modality}"] is step
    assert [name for name in steps if name.startswith("stage")] == ["stage1", "stage3", "stage2"] == list(steps["export"].config.stages)
    assert set(steps["states"].inputs) == {"weights_lm", "stage1", "stage3", "shards_cc3m", "shards_webvid", "shards_audiocaps"}
    assert steps["stage2"].config.stage.denoise_loss == 1.0
    assert [steps[LATENTS[m]].config.spec.width for m in ("image", "video", "audio")] == [4, 4, 8]
    lists, weights = files(tmp_path / "other", recipe)
    with pytest.raises(AnyloomError, match="of image makes 77 tokens of width 1024, but StableDiffusionPipeline takes 1 to 77 tokens of width 768"):
        build(recipe, lists, {**weights, "decoder_image": write_settings("runwayml/stable-diffusion-v1-5", tmp_path / "sd15")})
    with pytest.raises(AnyloomError, match=r"it lacks --weights decoder_video=DIR [(]cerspense/zeroscope_v2_576w, a diffusers directory[)]$"):
        select(build(recipe, lists, {name: path for name, path in weights.items() if name != "decoder_video"}), None)


def test_the_legacy_recipe_aligns_and_denoises_nothing_as_the_old_code(tmp_path):
    recipe = get_recipe("nextgpt_7b_legacy")
    steps = build(recipe, *files(tmp_path, recipe))
    assert {modality: steps[f"weights_decoder_{modality}"].config.name for modality, _ in LEGACY_DECODERS} == dict(LEGACY_DECODERS)
    assert steps["targets"].config.spec.width == 768 and not any("latents" in name for name in steps)
    assert set(steps["stage2"].inputs) & {"decoder_image", "targets", "targets_video", "targets_audio"} == set(TARGETS.values())
    assert steps["export"].inputs.keys() >= {"decoder_image", "decoder_video", "decoder_audio"}


def test_the_published_settings_give_the_conditioning_that_the_projectors_make(tmp_path):
    for recipe in ("nextgpt_7b", "nextgpt_7b_legacy"):
        spec = model_spec(get_recipe(recipe))
        for modality, name in get_recipe(recipe).decoders:
            contract, projector = read_contract(write_settings(name, tmp_path / recipe / modality)), output_spec(spec, modality)
            check_projector(contract, projector.queries, projector.out)
            entry = known_decoder(name)
            assert (contract.family, contract.modality, contract.prediction_type) == (entry.family, entry.modality, entry.predicts)
    assert read_contract(tmp_path / "nextgpt_7b" / "audio").sized(seconds=10.4) == (8, 260, 16)
    assert read_contract(tmp_path / "nextgpt_7b" / "image").sized(height=224, width=224) == (4, 28, 28)
    assert read_contract(tmp_path / "nextgpt_7b" / "video").sized(height=320, width=320, frames=16) == (4, 16, 40, 40)


def test_the_legacy_recipe_is_the_layout_of_the_public_checkpoint():
    from mmcore.model.legacy_checkpoint import legacy_spec

    ours, theirs = model_spec(get_recipe("nextgpt_7b_legacy")), legacy_spec()
    encoders = tuple((modality, replace(spec, batch=16, part_rows=256)) for modality, spec in ours.encoders)
    assert replace(ours, encoders=encoders, chat=theirs.chat, input_projector=theirs.input_projector) == theirs
    assert ours.input_projector.kind == "linear" and get_recipe("nextgpt_7b_legacy").weights.lm == "vicuna-7b-v0"


def test_the_command_names_what_is_missing_and_plans_what_is_given(tmp_path):
    command = [sys.executable, "-m", "flows.cli.main", "plan", "--recipe", "llava15_7b", "--root", str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "needs --weights lm=DIR" in done.stdout and "mix_665k=FILE" in done.stdout, "what is missing stands beside its step"
    done = subprocess.run([*command[:3], "run", *command[4:]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1 and "--list mix_665k=FILE" in done.stderr
    lists, weights = files(tmp_path / "given", get_recipe("llava15_7b"))
    given = [part for option, pairs in (("--list", lists), ("--weights", weights)) for name, path in pairs.items() for part in (option, f"{name}={path}")]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "export" in done.stdout and "0 of 9 steps done" in done.stdout and not (tmp_path / "root").exists()


def test_lists_of_the_users_alone_become_shards(tmp_path):
    """Manifest and shards without a lists artifact: media paths start beside the list."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(png(0))
    record = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "noise"}]}
    (tmp_path / "mine" / "list.json").write_text(json.dumps([record]))
    recipe = get_recipe("llava15_7b")
    lists, weights = files(tmp_path / "given", recipe)
    steps = build(recipe, dict.fromkeys(lists, tmp_path / "mine" / "list.json"), weights)
    manifest, shards = steps["manifest_instruct"], steps["shards_instruct"]
    run_step(tmp_path, "manifest", manifest.run, manifest.config, {}, dict(manifest.sources))
    result = run_step(tmp_path, "shards", shards.run, shards.config, {"manifest": "manifest"}, dict(shards.sources))
    assert result["written"] == result["rows"] == len(recipe.datasets)


def test_the_table_of_recipes_says_what_they_are():
    rows = {name: dict(zip(catalogues.RECIPE_HEADER, catalogues.recipe_row(make()), strict=True)) for name, make in RECIPES.items()}
    nextgpt, llava, smol = rows["nextgpt_7b"], rows["llava15_7b"], rows["smol"]
    assert nextgpt["commercial use"] == "no: imagebind_huge, ZeroScope v2, 576 px, AudioLDM" and nextgpt["language model"] == "Vicuna 7B v1.5, 6.74B"
    assert "LoRA 319.8M" in nextgpt["trains"] and "input projectors 159.4M" in nextgpt["trains"] and "stage2:\n  output projectors 96.0M" in nextgpt["trains"]
    assert nextgpt["decoders"].splitlines() == ["image: Stable Diffusion 2, 768 px", "video: ZeroScope v2, 576 px", "audio: AudioLDM"]
    assert llava["decoders"] == "none: writes text"
    assert llava["commercial use"].startswith("Vicuna 7B v1.5: yes, up to 700 million") and "stage2" not in llava["trains"]
    assert rows["nextgpt_7b_legacy"]["commercial use"].startswith("no: Vicuna 7B v0, imagebind_huge, ZeroScope") and rows["tiny"]["commercial use"] == "yes"
    assert "image: trained here" in smol["decoders"] and "all-MiniLM-L6-v2: Apache-2.0" in smol["licences"]
    assert "ZeroScope v2, 576 px: CC-BY-NC-4.0" in nextgpt["licences"]
    silent = replace(get_recipe("nextgpt_7b"), decoders=())
    row = dict(zip(catalogues.RECIPE_HEADER, catalogues.recipe_row(silent), strict=True))
    assert "audio: 1 x 512" in row["decoders"] and "stage2, once it has decoders:" in row["trains"] and row["commercial use"] == "no: imagebind_huge"
    with pytest.raises(AnyloomError, match="the language model mine is in no catalogue"):
        catalogues.recipe_row(get_recipe("tiny", {"weights.lm": "mine"}))


def test_both_tables_are_printed_without_loading_a_model_library():
    probe = "import sys; from flows.cli.main import main; code = main({!r}); sys.exit(code or 'torch' in sys.modules)"
    for command, words in ((["recipes"], RECIPES), (["recipes", "smol"], ["GB a GPU"]), (["decoders"], [e.published for e in CATALOGUE])):
        done = subprocess.run([sys.executable, "-c", probe.format(command)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words)


@pytest.mark.parametrize("name", FULL)
def test_a_prepared_suite_is_planned_with_its_history_and_report(name, tmp_path):
    recipe = get_recipe(name)
    lists, weights = files(tmp_path / "given", recipe)
    (tmp_path / "core.json").write_text("{}")
    tasks = {"eval_vqav2_val", "eval_textvqa_val", "eval_mmbench_en_dev_static"}
    plain, judged = build(recipe, lists, weights), build(recipe, {**lists, "core": tmp_path / "core.json"}, weights)
    assert set(judged) - set(plain) == tasks | {"history", "report"}
    assert all(judged[task].inputs == {"export": judged["export"]} and judged[task].sources == {"suite": tmp_path / "core.json"} for task in tasks)
    assert set(judged["history"].inputs) == {*tasks, "export", *judged["export"].config.stages} and tasks <= set(judged["report"].inputs)


def test_a_held_out_list_of_captions_brings_its_evaluations(tmp_path):
    """What a recipe is asked comes from its datasets' splits, not from where the lists come from."""
    recipe = get_recipe("nextgpt_7b")
    heldout = Dataset(name="my_photos", format="cc3m", split="heldout", licence="mine")
    lists, weights = files(tmp_path / "given", recipe)
    (tmp_path / "mine.tsv").write_text("")
    steps = build(replace(recipe, datasets=(*recipe.datasets, heldout)), {**lists, "my_photos": tmp_path / "mine.tsv"}, weights)
    assert steps["eval_captions"].config.datasets == (("image", "my_photos"),) and "eval_vqa" not in steps
    assert steps["eval_alignment"].config.heldout_datasets == ("my_photos",) and {"history", "report"} <= set(steps)
