"""Generation losses in stage 1: the block changes nothing of the caption, the losses are those of the frozen output side, only input projectors move."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_any import MODES, checksums, randomise
from toy_decoders import decoder
from toy_generation import OwnLatents, OwnTargets, samples, spec_for
from toy_model import Features

from infra.step import AnyloomError
from mmcore.chat.chat import Chat
from mmcore.chat.rows import RowBuilder
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import RowsStage
from mmcore.lm.language_model import LanguageModel
from mmcore.model.any_model import AnyModel
from mmcore.training.batching import collate
from mmcore.training.caption_generation import CaptionGeneration
from mmcore.training.generation_loss import GenerationLoss, Places
from mmcore.training.losses import alignment
from mmcore.training.rows import ChatData
from mmcore.training.stages import select_trainable
from mmcore.training.targets import fit_targets, padded_targets
from mmcore.types import IGNORE, Sample
from pipelines.dag.build import build
from pipelines.recipes import get_recipe
from pipelines.recipes.recipe import change_stage
from pipelines.toys.parts import tiny_llama
from pipelines.training.loop import run_stage

NAMES = ("tiny-sd2", "tiny-audioldm")
CONFIG = RowsStage(
    stage="stage1",
    steps=4,
    batch=6,
    lr=3e-3,
    warmup_steps=1,
    checkpoint_every=2,
    generation_loss=0.5,
    denoise_loss=0.25,
    mixture=(("audio", 1.0), ("image", 1.0), ("video", 1.0)),
)
PARTS = ("alignment", "mean_predictor", "denoising")


def stage1(config: RowsStage = CONFIG, mode: str = "shared", lora: bool = True) -> tuple[AnyModel, ChatData]:
    """(model, data) at the start of a stage 1 after a stage 2 of pictures and sounds; clips are read, and nothing makes them."""
    spec = spec_for(NAMES)
    spec = replace(spec, lora=replace(spec.lora, mode=mode))
    base, tokenizer = tiny_llama(0)
    lm = LanguageModel(base, spec.tokens, spec.seed)
    model = AnyModel(spec, lm, Chat(tokenizer, lm.table)).requires_grad_(False)
    if lora:
        model.add_lora()
        randomise(model.lm.base)
    rows = {modality: samples(modality) for modality in MEDIA}
    captions = {decoder(name).contract.modality: [text for sample in rows[decoder(name).contract.modality] for text in sample.texts] for name in NAMES}
    targets = {decoder(name).contract.modality: OwnTargets(name, captions[decoder(name).contract.modality]) for name in NAMES}
    generator = torch.Generator().manual_seed(1)
    for modality, projector in model.output_projectors.items():  # as if stage 2 had trained them
        mean_QC, std, _ = fit_targets(targets[modality], captions[modality], len(projector.mean_QC))
        projector.fit(mean_QC, std)
        projector.out.weight.data.normal_(std=0.2, generator=generator)
    denoised = {decoder(name).contract.modality: GenerationLoss(decoder(name), OwnLatents(name), config) for name in NAMES}
    generation = CaptionGeneration(config, model, captions, targets, denoised) if config.generation_loss else None
    data = ChatData(config, model.chat, rows, {modality: Features() for modality in MEDIA}, spec.input_projector, generation=generation)
    return model.requires_grad_(False), data


def means(data: ChatData, model: AnyModel, step: int = 0, world: int = 1) -> dict[str, list[float]]:
    """Sum and count of every logged part of a step."""
    parts = sum(loss.parts for rank in range(world) for loss in data.losses(model, step, rank, world))
    return dict(zip(data.part_names, parts.tolist(), strict=True))


def gradient(model: AnyModel, data: ChatData, world: int = 1) -> torch.Tensor:
    """Undivided gradient of step 0, flat."""
    trained = select_trainable(model, data.config)
    for rank in range(world):
        for loss in data.losses(model, 0, rank, world):
            loss.total.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained.values()])


@pytest.mark.parametrize("mode", MODES)
def test_input_projectors_change_and_nothing_else_and_every_loss_is_logged(mode, tmp_path):
    model, data = stage1(mode=mode)
    before, frozen = checksums(model), {name: checksums(decoder(name).denoiser) for name in NAMES}
    trained, log, _ = run_stage(CONFIG, model, data, tmp_path)
    after = checksums(model)
    projectors = {f"input_projectors.{modality}.proj.{part}" for modality in MEDIA for part in ("weight", "bias")}
    assert {name for name in before if before[name] != after[name]} == set(trained) == projectors
    assert {name: checksums(decoder(name).denoiser) for name in NAMES} == frozen
    assert all(bool(torch.isfinite(value).all()) for value in trained.values())
    assert set(log.columns[5:]) >= {f"loss_{part}{of}" for part in PARTS for of in ("", "_image", "_audio")} | {"loss_video"}
    columns = [log.columns.index(f"loss_{part}_{modality}") for part in PARTS for modality in ("image", "audio")]
    assert all(0 < row[i] < 100 for row in log.rows for i in columns if row[i] is not None)
    assert "loss_alignment_video" not in log.columns


def test_the_block_follows_the_caption_and_its_targets_stay_what_they_were():
    model, data = stage1()
    _, plain = stage1(replace(CONFIG, generation_loss=0.0))
    for modality in MEDIA:
        sample = data.samples[modality][0]
        with_block, without = data.row(sample, 0, 3), plain.row(sample, 0, 3)
        block = list(model.lm.table.block(modality)) if modality != "video" else [model.chat.end_id]
        end = len(without.ids) - 1
        assert without.ids[end] == model.chat.end_id and list(without.ids[:end]) == list(with_block.ids[:end])
        assert list(with_block.ids[end:]) == block
        assert list(with_block.targets[:end]) == list(without.targets[:end]) and with_block.targets[end - 1] == model.chat.end_id
        assert (with_block.targets[end:] == IGNORE).all() and with_block.weights.sum() == without.weights.sum()
        assert list(with_block.positions) == list(range(len(with_block.ids)))
    ours, theirs = means(data, model), means(plain, model)
    assert ours["image"] == pytest.approx(theirs["image"], rel=1e-5) and ours["video"] == pytest.approx(theirs["video"], rel=1e-5)
    assert set(theirs) == set(ours) - {f"{part}{of}" for part in PARTS for of in ("", "_image", "_audio")}


def test_the_losses_are_those_of_the_frozen_output_side_by_hand():
    """One caption: the block's hidden states through the projector, its distance in units of the mean predictor's, the decoder's error at this place."""
    model, data = stage1(replace(CONFIG, batch=1, mixture=(("image", 1.0),)))
    sample = data.samples["image"][data.schedule.slot(0).index]
    builder, chat = RowBuilder(), model.chat
    features, lengths = Features().gather([sample.key])
    builder.add([*chat.caption_prompt("image", int(lengths[0])), *chat.spoken(sample.texts[0]), *model.lm.table.block("image")], 0)
    hidden = model(collate([builder.row()], {"image": (torch.from_numpy(features), torch.from_numpy(lengths), [0])}))
    conditioning = model.conditioning("image", hidden[:, -3:])
    captions = [text for one in data.samples["image"] for text in one.texts]
    source = data.generation.targets["image"]
    projector = model.output_projectors["image"]
    cost = fit_targets(source, captions, len(projector.mean_QC))[2]
    distance = alignment(conditioning, padded_targets(source, sample.texts, len(projector.mean_QC)))[0] / cost
    error = data.generation.denoised["image"](conditioning, Places((sample.key,), 0, (0,)))[0]
    loss = next(data.losses(model, 0, 0, 1))
    sums = means(data, model)
    ours = {name: total / count for name, (total, count) in sums.items() if count}
    tokens = len(chat.spoken(sample.texts[0])) + 1
    assert float(loss.weight) == tokens == sums["image"][1] and ours["alignment"] == pytest.approx(float(distance), rel=1e-4)
    assert ours["denoising"] == pytest.approx(float(error), rel=1e-3)
    assert float(loss.total) == pytest.approx(sums["image"][0] + 0.5 * tokens * (ours["alignment"] + 0.25 * ours["denoising"]), rel=1e-4)


def test_the_gradient_reaches_the_input_projectors_of_what_is_made_and_ranks_add_up():
    model, data = stage1()
    whole = gradient(model, data)
    plain = gradient(*stage1(replace(CONFIG, generation_loss=0.0)))
    assert bool(torch.isfinite(whole).all()) and float((whole - plain).norm()) > 1e-3 * float(plain.norm())
    trained = select_trainable(model, CONFIG)
    offset = 0
    for name, parameter in trained.items():
        moved = float((whole - plain)[offset : offset + parameter.numel()].norm())
        assert (moved > 1e-6) == ("video" not in name), name
        offset += parameter.numel()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)
    model, data = stage1()
    assert torch.allclose(gradient(model, data, world=3), whole, atol=1e-4 * float(whole.abs().max()))
    alone, ranks = means(data, model), means(data, model, world=3)
    assert all(ranks[name] == pytest.approx(value, rel=1e-4) for name, value in alone.items())
    assert alone["alignment"][1] == alone["alignment_image"][1] + alone["alignment_audio"][1] > 0


def test_resume_equals_uninterrupted_bit_for_bit(tmp_path):
    whole, whole_log, _ = run_stage(CONFIG, *stage1(), tmp_path / "whole")

    class Killed(Exception):
        pass

    def bomb(done, total, note=""):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run_stage(CONFIG, *stage1(), tmp_path / "killed", progress=bomb)
    torch.manual_seed(999)
    resumed, log, _ = run_stage(CONFIG, *stage1(), tmp_path / "killed")
    assert log.rows == whole_log.rows and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_alignment_alone_opens_no_decoder_and_what_does_not_fit_is_named():
    config = replace(CONFIG, denoise_loss=0.0)
    model, data = stage1(config)
    assert not data.generation.denoised and not [name for name in data.part_names if "denoising" in name]
    captions, targets = {"image": ["a image 0"]}, {"image": data.generation.targets["image"]}
    with pytest.raises(ValueError, match="denoising loss and captions for image, but no image decoder with latents"):
        CaptionGeneration(CONFIG, model, captions, targets)
    with pytest.raises(ValueError, match=r"generation losses of video need signal tokens: set tokens\.video"):
        CaptionGeneration(config, model, {"video": ["a image 0"]}, {"video": targets["image"]})
    with pytest.raises(ValueError, match="the image targets have 16 channels, the output projector makes 32: set out"):
        CaptionGeneration(config, model, {"image": ["a audio 0"]}, {"image": data.generation.targets["audio"]})
    asked = Sample(key="q", source="image", modality="image", conversations=(("what?", "a dot"),))
    assert not (data.row(asked, 0, 3).ids >= model.lm.table.base).any() or model.lm.table.block("image")[0] not in data.row(asked, 0, 3).ids


FIRST = {"stages": ["stage2", "stage1", "stage3"], "stage1.generation_loss": 0.5}


def test_the_steps_of_stage_1_read_the_output_side_after_stage_2():
    recipe = get_recipe("tiny_nextgpt", {**FIRST, "stage1.denoise_loss": 1.0})
    stage = build(recipe)["stage1"]
    outside = {f"decoder_{m}" for m in MEDIA} | {"targets", "targets_video", "targets_audio"} | {"embed_latents", "embed_latents_video", "embed_latents_audio"}
    assert set(stage.inputs) >= outside | {"stage2", "embed_image"} and "stage1" not in build(recipe)["states"].inputs
    aligned = build(get_recipe("tiny_nextgpt", FIRST))["stage1"]
    assert set(stage.inputs) - set(aligned.inputs) == {name for name in outside if not name.startswith("targets")}
    assert not outside & set(build(get_recipe("tiny_nextgpt"))["stage1"].inputs)
    pictures = build(get_recipe("tiny_nextgpt", {**FIRST, "stage2.mixture": [["stamps_train", 1.0]]}))["stage1"]
    assert {name for name in pictures.inputs if name.startswith("targets")} == {"targets"}  # only what stage 2 trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["stage1", "stage2", "stage3"]}, "goes through the output projectors that a stage on states trains: put stage2 before it in stages"),
        ({"stages": ["stage1", "stage3"]}, "put stage2 before it in stages"),
        ({"stage1.align_loss": 0.0}, r"stage1\.generation_loss weighs align_loss and denoise_loss, and both are 0"),
        (
            {"stage1.denoise_loss": 1.0, "latents_audio": None},
            r"stage1\.denoise_loss needs a decoder and latents for sounds_train: set decoders and latents_audio",
        ),
        ({"stage1.mixture": [["sounds_train", 1.0]], "stage2.mixture": [["stamps_train", 1.0]]}, r"stage1\.mixture has no captions of what stage2 trains"),
        ({"stage3.generation_loss": 1.0}, r"stage3\.generation_loss is not 0, but only a stage without LoRA has generation losses"),
    ],
)
def test_a_switch_that_cannot_work_is_one_line_while_planning(changes, message):
    latents = {"latents_audio": changes.pop("latents_audio")} if "latents_audio" in changes else {}
    recipe = get_recipe("tiny_nextgpt", {**FIRST, **changes})
    recipe = replace(change_stage(recipe, "stage2", denoise_loss=0.0), **latents) if latents else recipe
    with pytest.raises(AnyloomError, match=message) as caught:
        build(recipe)
    assert "\n" not in str(caught.value)
