"""Dropout of LoRA's inputs: only in training, the declared share, the same for a token whatever stands beside it, with the gradients of autograd."""

from dataclasses import replace

import pytest
import torch
from toy_any import MODES, STAGES, any_model, any_spec, chat_data, randomise
from toy_model import build

from mmcore.config import check_model
from mmcore.lm.lora_layers import _forward_any, _forward_plain, routed, routing_of
from mmcore.training.batching import collate
from mmcore.training.optimizer import FlatAdamW
from mmcore.training.stages import select_trainable


def dropping(mode: str = "shared", share: float = 0.3):
    model = any_model(mode, lora=False)
    model.spec = replace(any_spec(mode), lora=replace(any_spec(mode).lora, dropout=share))
    model.add_lora()
    randomise(model.lm.base)
    return model.requires_grad_(False)


def test_both_forwards_leave_out_the_same_inputs_and_their_gradients_are_those_of_autograd():
    model = dropping()
    layer, routing = model.lm.base.model.layers[1].mlp.up_proj, routing_of(model.lm.base)
    parameters = [layer.lora_A["default"].weight.requires_grad_(True), layer.lora_B["default"].weight.requires_grad_(True)]
    routing.draw = 7
    seeds = routing.token_seeds(torch.arange(12).reshape(2, 6))
    results = []
    for forward in (_forward_plain, _forward_any, None):
        x = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(4)).requires_grad_(True)
        with routed(model.lm.base, None, seeds):
            kept = routing.kept(layer.lora_place, 64)
            if forward is None:
                y = layer.base_layer(x) + (x * kept.view(x.shape)) @ parameters[0].T @ parameters[1].T * layer.scaling["default"]
            else:
                y = forward(layer, x)
        results.append([y, *torch.autograd.grad((y * torch.arange(y.shape[-1])).sum(), [x, *parameters])])
    for other in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-2) for a, b in zip(results[0], other, strict=True))
    assert routing.seeds_P is None and kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


def test_the_share_that_is_left_out_is_the_declared_one_and_differs_by_layer_draw_and_token():
    routing = routing_of(dropping(share=0.25).lm.base)
    ids = torch.randint(0, 200, (20, 30), generator=torch.Generator().manual_seed(0))
    masks = {}
    for draw in (1, 2):
        routing.draw = draw
        routing.seeds_P = routing.token_seeds(ids).reshape(-1)
        for place in (0, 5):
            masks[draw, place] = routing.kept(place, 64) > 0
    routing.seeds_P = None
    for mask in masks.values():
        assert abs(float((~mask).float().mean()) - 0.25) < 0.01 and float((~mask).float().mean(0).max()) < 0.36
    first = masks[1, 0]
    for other in (masks[2, 0], masks[1, 5], first.roll(1, 0)):
        assert 0.35 < float((first & other).float().mean()) / float(first.float().mean()) - 0.25 < 0.65


def test_a_tokens_dropout_does_not_depend_on_what_stands_behind_it_or_beside_its_row():
    routing = routing_of(dropping().lm.base)
    routing.draw = 3
    ids = torch.randint(0, 200, (4, 9), generator=torch.Generator().manual_seed(0))
    whole = routing.token_seeds(ids)
    assert torch.equal(whole[2:3, :5], routing.token_seeds(ids[2:3, :5], torch.tensor([2]))) and len(whole.unique()) == whole.numel()


def test_rows_of_equal_text_leave_out_different_inputs_wherever_they_are_computed():
    """Also where a sample has a number that is the place of another's token."""
    routing = routing_of(dropping().lm.base)
    routing.draw = 3
    ids = torch.full((64, 64), 7)
    whole = routing.token_seeds(ids, torch.arange(64))
    assert len(whole.unique()) == whole.numel()
    for some in ([5], [63, 0, 17]):
        assert torch.equal(routing.token_seeds(ids[some], torch.tensor(some)), whole[some])
    model = dropping(share=0.5)
    select_trainable(model, STAGES["stage3"])
    model.set_draw(5)
    row = model.chat.caption_row("image", 0, "a dot")
    other = model.chat.caption_row("image", 0, "a much longer text that makes padding")
    pair = model(collate([row, row], {}, [3, 9]))
    assert not torch.equal(pair[0], pair[1])
    moved = model(collate([other, row, row], {}, [0, 9, 3]))[:, : pair.shape[1]]
    assert torch.allclose(moved[1], pair[1], atol=1e-4) and torch.allclose(moved[2], pair[0], atol=1e-4)


def test_nothing_is_left_out_outside_of_training_or_where_adapters_are_frozen():
    model, plain = dropping(), dropping(share=0.0)
    rows = [model.chat.caption_row("image", 0, text) for text in ("a dot", "two dots")]
    batch = collate(rows, {})
    assert torch.equal(model(batch), plain(batch))
    model.set_draw(5)  # nothing of the adapters is trained
    assert torch.equal(model(batch), plain(batch))
    select_trainable(model, STAGES["stage3"])
    model.set_draw(5)
    first = model(batch)
    assert torch.equal(first, model(batch)) and not torch.equal(first, plain(batch))
    model.set_draw(6)
    assert not torch.equal(first, model(batch))
    model.set_draw(None)
    assert torch.equal(model(batch), plain(batch))


@pytest.mark.parametrize("mode", MODES)
def test_shares_of_ranks_add_up_to_the_whole_step(mode):
    gradients, config = [], STAGES["stage3"]
    for world in (1, 3):
        model = dropping(mode)
        data, optimizer = chat_data(config, model), FlatAdamW(select_trainable(model, config), config)
        for rank in range(world):
            for loss in data.losses(model, 0, rank, world):
                loss.total.backward()
        gradients.append(optimizer.gradient.clone())
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-4) and float(gradients[0].norm()) > 0


def test_a_share_that_is_none_is_named():
    spec = build().spec
    with pytest.raises(ValueError, match=r"lora.dropout is 1.0: it must be at least 0 and below 1"):
        check_model(replace(spec, lora=replace(spec.lora, dropout=1.0)))
