"""Stages 1 and 3 with every kind of input projector: what changes, kill and resume, world size, media that are not there."""

import dataclasses
import re

import pytest
import torch
from safetensors.torch import save_file
from test_input_projectors import IDLE, TOY
from toy_model import SPEC, STAGE1, STAGE3, Features, asked, captioned, drawn

from mmcore.chat.chat import Chat
from mmcore.lm.language_model import LanguageModel
from mmcore.lm.lora import attach_lora
from mmcore.model.any_model import AnyModel, load_tensors
from mmcore.projectors.inputs import num_projected
from mmcore.training.rows import ChatData
from mmcore.training.stages import select_trainable
from pipelines.toys.parts import tiny_llama
from pipelines.training.loop import run_stage

FIRST = dataclasses.replace(STAGE1, steps=4)


def prepared(kind: str, config=FIRST):
    """(model, data) at the start of a stage."""
    base, tokenizer = tiny_llama(0)
    spec = dataclasses.replace(SPEC, input_projector=dataclasses.replace(TOY[kind], init_std=0.05))
    lm = LanguageModel(base.eval(), spec.tokens, spec.seed)
    model = AnyModel(spec, lm, Chat(tokenizer, lm.table)).requires_grad_(False)
    if config.stage == "stage3":
        attach_lora(model.lm.base, spec.lora, 0)
    samples = {"pictures": captioned(), "asked": asked(), "drawn": drawn()}
    return model, ChatData(config, model.chat, {name: samples[name] for name, _ in config.mixture}, {"image": Features()}, spec.input_projector)


@pytest.mark.parametrize("kind", ["mlp", "group"])
def test_stage_1_changes_the_projector_and_nothing_else_and_resumes_to_the_same_bytes(kind, tmp_path):
    model, data = prepared(kind)
    before = {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    whole, log, _ = run_stage(FIRST, model, data, tmp_path / "whole")
    changed = {name for name, value in [*model.named_parameters(), *model.named_buffers()] if not torch.equal(value, before[name])}
    assert changed <= set(whole) == {name for name, _ in model.named_parameters() if name.startswith("input_projectors.image.")}
    assert all(name.endswith(IDLE) for name in set(whole) - changed)

    class Killed(Exception):
        pass

    def bomb(done, total, note=""):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run_stage(FIRST, *prepared(kind), tmp_path / "killed", progress=bomb)
    torch.manual_seed(999)
    resumed, again, _ = run_stage(FIRST, *prepared(kind), tmp_path / "killed")
    assert again.rows == log.rows and all(torch.equal(resumed[name], whole[name]) for name in whole)


def gradient(model, data, config, step: int, world: int) -> torch.Tensor:
    """Sum over ranks of the undivided gradient of a step."""
    trained = select_trainable(model, config)
    for parameter in trained.values():
        parameter.grad = None
    for rank in range(world):
        for loss in data.losses(model, step, rank, world):
            loss.total.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained.values()])


def test_noise_of_the_groups_depends_on_the_step_and_not_on_the_ranks():
    model, data = prepared("group")
    alone = gradient(model, data, FIRST, 0, 1)
    assert torch.allclose(gradient(model, data, FIRST, 0, 3), alone, atol=1e-4 * float(alone.abs().max()))
    assert model.input_projectors["image"].draw is None  # nobody else gets noise
    sample = dataclasses.replace(FIRST, batch=11)  # an epoch in a step: the same samples, other noise
    model, data = prepared("group", sample)
    first, second = (gradient(model, data, sample, step, 1) for step in (0, 1))
    assert float((first - second).abs().max()) > 1e-3 * float(first.abs().max())


def test_frozen_groups_take_no_noise_and_samples_without_media_leave_them_alone():
    frozen = dataclasses.replace(STAGE3, train_projectors=False, caption_turn=False, balance_answers=False)
    model, data = prepared("group", frozen)
    select_trainable(model, frozen)
    seen = []
    model.input_projectors["image"].register_forward_hook(lambda module, args, output: seen.append(module.draw))
    for loss in data.losses(model, 0, 0, 1):
        assert bool(loss.total.isfinite())
    assert seen and set(seen) == {None}
    words = dataclasses.replace(STAGE3, mixture=(("drawn", 1.0),), caption_turn=False, balance_answers=False)
    model, data = prepared("group", words)  # no picture at all: no zeros of some width stand in for one
    sums = gradient(model, data, words, 0, 1)
    assert bool(sums.isfinite().all()) and float(sums.abs().max()) > 0
    assert all(parameter.grad is None for parameter in model.input_projectors.parameters())


def test_a_row_holds_as_many_placeholders_as_the_projector_makes_tokens():
    for kind, spec in TOY.items():
        model, data = prepared(kind)
        batch = next(data.batches(0))
        holes = (batch.ids_BT == model.lm.table.placeholder_id("image")).sum(1)
        assert holes.tolist() == [num_projected(spec, int(length)) for length in batch.media["image"].lengths_B]
        embeds = model.embed(batch.ids_BT, batch.media)
        projected, mask = model.input_projectors["image"](batch.media["image"].features_BNE, batch.media["image"].lengths_B)
        assert torch.equal(embeds[batch.ids_BT == model.lm.table.placeholder_id("image")], projected[mask])


@pytest.mark.parametrize(("kind", "match"), [("linear", "which this model does not have"), ("group", "the model wants")])
def test_tensors_of_another_kind_are_refused_by_name(kind, match, tmp_path):
    """The reference loads a file of one kind into another and ends in a list of every key."""
    model, _ = prepared("mlp")
    save_file(
        {name: value.clone() for name, value in sorted(model.named_parameters()) if name.startswith("input_projectors.")}, tmp_path / "tensors.safetensors"
    )
    with pytest.raises(ValueError, match=re.escape(match)) as caught:
        load_tensors(prepared(kind)[0], tmp_path / "tensors.safetensors")
    assert "\n" not in str(caught.value)
