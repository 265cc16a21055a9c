"""What a stage declares is what it does: its kind of batch, the losses it weighs and logs, the buffers it fits before its first step."""

from __future__ import annotations

from dataclasses import fields, replace
from fnmatch import fnmatchcase

import pytest
import torch
import toy_any
import toy_model
from test_caption_generation import CONFIG, stage1
from test_two_tower import SPEC, prepared
from test_two_tower import STAGE as TWO_TOWER
from toy_any import MIXTURE, any_model, checksums
from toy_generation import STAGE2, spec_for, stage2

from mmcore.chat.special_tokens import MEDIA
from mmcore.config import PairsStage, RowsStage, StatesStage
from mmcore.training.rows import ChatData
from mmcore.training.signals import SignalSide
from mmcore.training.stages import STAGES, stage_spec
from mmcore.training.states import SignalData
from mmcore.two_tower.model import TwoTower
from mmcore.two_tower.pairs import TwoTowerData
from pipelines.training.train import _fit_input_projectors

FAMILIES = ("tiny-sd2", "tiny-text-to-video", "tiny-audioldm")
"""Decoders of pictures, clips and sounds."""
KINDS = {RowsStage: ChatData, StatesStage: SignalData, PairsStage: TwoTowerData}
LOGGED = {
    "generation_loss": ("alignment", "mean_predictor", "denoising"),
    "token_loss": ("signal_tokens", "negatives"),
    "align_loss": ("alignment", "mean_predictor"),
    "denoise_loss": ("denoising",),
}
"""Weight of a loss -> the parts that it is logged as."""


def made(stage: str, **changes: float):
    """(model, data) at the start of a stage; every loss that it can have is on."""
    if stage == "stage1":
        return stage1(replace(CONFIG, **changes))
    if stage == "stage2":
        return stage2(FAMILIES[:1], replace(STAGE2, **changes))
    if stage == "stage3":
        model = any_model("shared")
        return model, toy_any.chat_data(replace(toy_any.STAGES[stage], **changes), model)
    return prepared(replace(TWO_TOWER, **changes))


def total(stage: str, **changes: float) -> float:
    """Loss of the first step, undivided."""
    model, data = made(stage, **changes)
    return sum(float(loss.total) for loss in data.losses(model, 0, 0, 1))


def test_every_stage_names_a_kind_of_batch_and_weights_of_its_config():
    assert set(KINDS) == {spec.config for spec in STAGES.values()}
    assert {weight for spec in STAGES.values() for weight in spec.losses} == set(LOGGED)
    for spec in STAGES.values():
        assert set(spec.losses) <= {field.name for field in fields(spec.config)}


@pytest.mark.parametrize("stage", STAGES)
def test_the_declared_losses_and_no_others_make_the_loss_and_are_logged(stage):
    spec, plain = stage_spec(stage), total(stage)
    assert {weight for weight in LOGGED if hasattr(spec.config, weight) and total(stage, **{weight: 3.0}) != plain} == set(spec.losses)
    _, data = made(stage)
    assert type(data) is KINDS[spec.config]
    declared = {part for weight in spec.losses for part in LOGGED[weight]}
    assert {part for parts in LOGGED.values() for part in parts if part in data.part_names} == declared
    assert ("tokens" in data.part_names) == (spec.config is RowsStage)


def fitted(model: torch.nn.Module, stage: str) -> set[str]:
    """Names of the buffers that a stage saves."""
    return {name for name, _ in model.named_buffers() if any(fnmatchcase(name, pattern) for pattern in stage_spec(stage).saves)}


def changed_by(model: torch.nn.Module, fit) -> set[str]:
    """Names of the tensors, of all the model has, that a call changes."""
    before = checksums(model)
    fit()
    after = checksums(model)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("mode", toy_any.MODES)
def test_stage_1_fits_the_buffers_that_it_saves_and_nothing_else(mode):
    model = any_model(mode)
    data = toy_any.chat_data(toy_any.STAGES["stage1"], model)
    changed = changed_by(model, lambda: _fit_input_projectors(model, data, list(MEDIA)))
    assert changed == fitted(model, "stage1") == {f"input_projectors.{m}.{name}" for m in MEDIA for name in ("mean_E", "std_E")}


def test_stage_2_fits_the_buffers_that_it_saves_and_nothing_else():
    _, made_before = stage2(FAMILIES)
    side = SignalSide(spec_for(FAMILIES), made_before.states)
    given = (made_before.samples, made_before.modalities, made_before.states, made_before.targets, made_before.denoised)
    changed = changed_by(side, lambda: SignalData(made_before.config, side, *given))
    buffers = ("mean_QC", "scale", "in_mean_SD", "in_std_SD")
    assert changed == fitted(side, "stage2") == {f"output_projectors.{m}.{name}" for m in MEDIA for name in buffers}


def test_two_towers_fit_the_buffers_that_they_save_and_nothing_else():
    _, data = prepared()
    model = TwoTower(SPEC)
    changed = changed_by(model, lambda: data.fit(model))
    assert changed == fitted(model, "two_tower") == {f"{tower}.{name}" for tower in ("media.image", "media.audio", "text") for name in ("mean_E", "std_E")}


def test_tokens_are_logged_by_the_medium_that_their_row_reads():
    model, data = made("stage3")
    parts = sum(loss.parts for loss in data.losses(model, 0, 0, 1))
    ranks = sum(loss.parts for rank in range(3) for loss in data.losses(model, 0, rank, 3))
    torch.testing.assert_close(ranks, parts, rtol=1e-4, atol=1e-6)
    sums = dict(zip(data.part_names, parts, strict=True))
    of_datasets = {name: sums.pop(name) + sums.pop(f"{name}_yes_no") for name, _ in MIXTURE}
    assert not sums.pop("caption_turn").any() and set(sums) == {"tokens", *(f"tokens_{m}" for m in ("text", *MEDIA))}
    expected = {"text": ("drawn",), "image": ("pictures", "asked"), "video": ("clips",), "audio": ("sounds",)}
    for modality, names in expected.items():
        torch.testing.assert_close(sums[f"tokens_{modality}"], sum(of_datasets[name] for name in names))
        assert sums[f"tokens_{modality}"][1] > 0
    torch.testing.assert_close(sums["tokens"], sum(of_datasets.values()))


def test_where_one_medium_is_read_its_tokens_are_all():
    data = toy_model.chat_data(toy_model.STAGE1, toy_model.build())
    assert [name for name in data.part_names if name.startswith("tokens")] == ["tokens"]
