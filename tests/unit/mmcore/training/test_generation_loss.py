"""The denoising loss in stage 2: every decoder family trains and then generates, gradients stay where they belong, draws depend on the place in the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_any import MODES, checksums
from toy_decoders import FAMILIES, decoder, directory
from toy_generation import STAGE2, OwnLatents, model_for, projector_for, stage2

from infra.step import AnyloomError
from mmcore.chat.special_tokens import MEDIA
from mmcore.decoders.denoising import denoising_loss
from mmcore.decoders.projected import check_projector, joined, streams_of
from mmcore.decoders.sampling import SamplingOptions, generate
from mmcore.decoders.texts import encode_texts
from mmcore.training.fit import draws
from mmcore.training.generation_loss import GenerationLoss, Places
from mmcore.training.stages import select_trainable
from mmcore.training.states import SignalData
from pipelines.training.loop import run_stage


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_of_each_family_trains_stage_2_and_then_generates_through_its_contract(name, tmp_path):
    side, data = stage2((name,))
    modality, frozen = decoder(name).contract.modality, checksums(decoder(name).denoiser)
    before = checksums(side)
    trained, log, _ = run_stage(data.config, side, data, tmp_path)
    changed = {key for key, value in checksums(side).items() if value != before[key]}
    assert changed == set(trained) == {key for key in before if key.startswith(f"output_projectors.{modality}.") and key in trained} | {"lm.new_head_rows"}
    assert {key for key, _ in side.named_parameters()} == set(trained)
    assert checksums(decoder(name).denoiser) == frozen
    assert all(torch.isfinite(value).all() for value in trained.values())
    column = log.columns.index("loss_denoising")
    assert all(0 < row[column] < 10 for row in log.rows)
    with torch.no_grad():
        conditioning = side.conditioning(modality, data.states.gather(list(data.states._found))[0][:2])
    media = generate(decoder(name), decoder(name).condition(*streams_of(decoder(name).contract, conditioning)), [0, 1], SamplingOptions(steps=2))
    assert [medium.modality for medium in media] == [modality] * 2


@pytest.mark.parametrize("mode", MODES)
def test_pictures_clips_and_sounds_together_change_their_output_projectors_and_the_head_rows_only(mode, tmp_path):
    names = ("tiny-sd2", "tiny-text-to-video", "tiny-audioldm")
    model, decoders = model_for(names, mode), [decoder(name).denoiser for name in names]
    frozen, whole = [checksums(denoiser) for denoiser in decoders], checksums(model)
    side, data = stage2(names, model=model)
    before = checksums(side)
    trained, log, _ = run_stage(data.config, side, data, tmp_path)
    after = checksums(side)
    projectors = {f"output_projectors.{m}.{name}" for m in MEDIA for name, _ in model.output_projectors[m].named_parameters()}
    assert {key for key in before if before[key] != after[key]} == set(trained) == projectors | {"lm.new_head_rows"}
    assert before.keys() - trained.keys() == {key for key, _ in side.named_buffers()}  # these, and what follows, to the bit
    assert checksums(model) == whole and [checksums(denoiser) for denoiser in decoders] == frozen
    assert all(0 < row[log.columns.index("gradient_norm")] < float("inf") for row in log.rows)
    for loss in data.losses(side, 0, 0, 1):
        loss.total.backward()
    assert all(value.grad is not None and bool(torch.isfinite(value.grad).all()) for value in trained.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_denoising_loss_alone_reaches_the_projector_and_nothing_else(name):
    side, data = stage2((name,), replace(STAGE2, token_loss=0.0, align_loss=0.0))
    trained = select_trainable(side, data.config)
    for loss in data.losses(side, 0, 0, 1):
        loss.total.backward()
    norms = {key: 0.0 if value.grad is None else float(value.grad.norm()) for key, value in trained.items()}
    assert norms.pop("lm.new_head_rows") == 0.0
    assert norms[f"output_projectors.{decoder(name).contract.modality}.out.weight"] > 0
    assert all(norm == norm and norm < float("inf") for norm in norms.values())
    assert all(parameter.grad is None for parameter in decoder(name).denoiser.parameters())


def test_the_loss_is_the_decoders_own_at_draws_of_the_samples_place():
    side, data = stage2(("tiny-sd2",))
    captions, places = ["a image 0", "a image 3"], Places(("image-0", "image-3"), 7, (2, 0))
    whole, without = data.loss(side, "image", captions, places=places), data.loss(side, "image", captions)
    conditioning = side.conditioning("image", data.states.gather(list(data.states._found))[0][[0, 3]])
    for row, (key, number) in enumerate(zip(places.keys, places.numbers, strict=True)):
        alone = denoising_loss(
            decoder("tiny-sd2"),
            OwnLatents("tiny-sd2").gather([key]),
            decoder("tiny-sd2").condition(conditioning[row : row + 1]),
            draws("denoising", data.config.seed, 7, number),
            5.0,
        )
        both = data.denoised["image"](conditioning, places)
        torch.testing.assert_close(both[row : row + 1], alone)
    torch.testing.assert_close(whole.total - without.total, both.sum(), rtol=1e-4, atol=1e-4)
    moved = data.denoised["image"](conditioning, replace(places, step=8))
    assert not torch.allclose(moved, both)


def test_without_weight_no_decoder_is_asked_and_nothing_is_logged():
    side, data = stage2(("tiny-sd15",), replace(STAGE2, denoise_loss=0.0))
    assert not data.denoised and "denoising" not in data.part_names
    parts = sum(loss.parts for loss in data.losses(side, 0, 0, 1))
    assert parts.shape == (4, 2) and (parts[:, 1] == 4).all()


def test_ranks_share_the_draws_and_every_loss_is_logged_per_modality():
    side, data = stage2(("tiny-sd15", "tiny-audioldm"), replace(STAGE2, batch=7))
    alone = sum(loss.parts for loss in data.losses(side, 2, 0, 1))
    ranks = sum(loss.parts for rank in range(3) for loss in data.losses(side, 2, rank, 3))
    torch.testing.assert_close(ranks, alone, rtol=1e-4, atol=1e-6)
    sums = dict(zip(data.part_names, alone.tolist(), strict=True))
    assert set(sums) == {
        f"{part}{of}" for part in ("signal_tokens", "negatives", "alignment", "mean_predictor", "denoising") for of in ("", "_image", "_audio")
    }
    for part in ("alignment", "denoising"):
        assert sums[part][1] == 7 and sums[f"{part}_image"][1] > 0 and sums[f"{part}_audio"][1] > 0
        assert [a + b for a, b in zip(sums[f"{part}_image"], sums[f"{part}_audio"], strict=True)] == pytest.approx(sums[part])


def test_resume_equals_uninterrupted_bit_for_bit_with_the_denoising_loss(tmp_path):
    names = ("tiny-sd2", "tiny-text-to-video")
    side, data = stage2(names)
    whole, whole_log, _ = run_stage(data.config, side, data, tmp_path / "whole")

    class Killed(Exception):
        pass

    def bomb(done, total, note=""):
        if done == 3:
            raise Killed

    side, data = stage2(names)
    with pytest.raises(Killed):
        run_stage(data.config, side, data, tmp_path / "killed", progress=bomb)
    torch.manual_seed(999)
    side, data = stage2(names)
    seen = []
    resumed, log, _ = run_stage(data.config, side, data, tmp_path / "killed", progress=lambda done, total, note="": seen.append(done))
    assert seen[:2] == [2, 3] and log.rows == whole_log.rows
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_what_does_not_fit_is_named():
    side, data = stage2(("tiny-sd15",))
    with pytest.raises(ValueError, match="denoising loss and captions for image, but no image decoder with latents"):
        SignalData(data.config, side, data.samples, data.modalities, data.states, data.targets)
    video = GenerationLoss(decoder("tiny-cogvideox"), OwnLatents("tiny-cogvideox"), data.config)
    with pytest.raises(AnyloomError, match=r"of video makes 12 tokens of width 32, but CogVideoXPipeline takes 16 tokens of width 24 \(16 of 'text'\)"):
        video(torch.zeros(1, 12, 32), Places(("image-0",), 0, (0,)))


@pytest.mark.parametrize(
    ("name", "queries", "width", "takes"),
    [
        ("tiny-sd15", 65, 32, "1 to 64 tokens of width 32"),
        ("tiny-sd15", 16, 24, "1 to 64 tokens of width 32"),
        ("tiny-audioldm", 8, 16, "1 tokens of width 16"),
        ("tiny-audioldm2", 8, 32, "9 to"),
        ("tiny-cogvideox", 15, 24, "16 tokens of width 24"),
    ],
)
def test_a_projector_that_cannot_drive_a_decoder_is_refused_with_both_numbers(name, queries, width, takes):
    with pytest.raises(AnyloomError, match=f"makes {queries} tokens of width {width}, but .* takes {takes}.*set queries and out of"):
        check_projector(decoder(name).contract, queries, width)


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_laid_out_for_a_projector_drive_the_decoder_as_its_texts_do(name):
    """From texts to a projector's tokens and back to streams: what the decoder was trained with, cut to the projector's tokens."""
    contract, spec = decoder(name).contract, projector_for(name)
    streams, masks = encode_texts(directory(name), ["a red circle", "a much longer caption"])
    rows = joined(contract, streams, masks, spec.queries, spec.out)
    for item, row in enumerate(rows):
        assert row.shape[1] == spec.out and len(row) <= spec.queries
        padded = torch.zeros(1, spec.queries, spec.out)
        padded[0, : len(row)] = row
        back = streams_of(contract, padded)
        for given, stream, mask in zip(back, streams, masks, strict=True):
            kept = stream[item] if mask is None else stream[item][mask[item].bool()]
            kept = kept[: given.shape[1]]
            assert torch.equal(given[0, : len(kept)], kept)
        decoder(name).condition(*back)
