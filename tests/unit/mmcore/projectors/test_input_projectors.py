"""Input projectors: counts of tokens and parameters, padding, gradients, noise, files; grouping against an independent implementation."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.fingerprint import to_plain
from mmcore.config import InputProjectorSpec, OutputProjectorSpec, model_spec_from_json
from mmcore.projectors.group import assignment
from mmcore.projectors.gumbel import gumbel_noise, item_seeds
from mmcore.projectors.inputs import KINDS, build_input_projector, num_projected

TOY = {
    "linear": InputProjectorSpec(kind="linear", init_std=0.1),
    "mlp": InputProjectorSpec(kind="mlp", init_std=0.1),
    "group": InputProjectorSpec(kind="group", init_std=0.1, width=32, heads=4, depths=(2, 1, 1), groups=(6, 3)),
}
WIDTH, OUT = 12, 20
IDLE = ("look.key.bias", "assign.query.bias")
"""Biases that shift all the scores of one softmax alike: their gradient is rounding."""


def build(kind: str, seed: int = 0):
    return build_input_projector(TOY[kind], WIDTH, OUT, seed)


def features(*lengths: int, seed: int = 0, padding: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of the given lengths; item i's tokens depend on (seed, i) only; what lies beyond them is `padding`."""
    table = torch.full((len(lengths), max(lengths), WIDTH), padding)
    for i, length in enumerate(lengths):
        table[i, :length] = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(100 * seed + i))
    return table, torch.tensor(lengths)


def test_every_registered_kind_is_tested_here():
    assert set(TOY) == set(KINDS)


@pytest.mark.parametrize("kind", TOY)
def test_the_number_of_tokens_is_the_announced_one(kind):
    items, lengths = features(7, 1, 4)
    embeds, mask = build(kind)(items, lengths)
    assert embeds.dtype == torch.float32 and embeds.shape[:2] == mask.shape and embeds.shape[2] == OUT and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [num_projected(TOY[kind], length) for length in (7, 1, 4)]
    assert all(row.tolist() == sorted(row.tolist(), reverse=True) for row in mask)  # real tokens first: they are laid out in order
    assert num_projected(TOY[kind], 0) == 0


@pytest.mark.parametrize("draw", [None, 5])
@pytest.mark.parametrize("kind", TOY)
def test_padding_never_changes_a_real_token(kind, draw):
    projector = build(kind)
    projector.draw = draw
    items, lengths = features(7, 1, 4)
    embeds, mask = projector(items, lengths)
    garbage, _ = features(7, 1, 4, padding=1e30)
    again, _ = projector(garbage, lengths)
    assert torch.equal(embeds[mask], again[mask])  # what the padding holds
    for i, length in enumerate((7, 1, 4)):  # how much of it there is, and who else is in the batch
        alone, real = projector(items[i : i + 1, :length], lengths[i : i + 1])
        assert torch.allclose(alone[real], embeds[i][mask[i]], atol=1e-5)


def test_an_item_without_tokens_gives_none_and_no_nan():
    projector = build("group")
    items, _ = features(3, 2)
    embeds, mask = projector(items, torch.tensor([3, 0]))
    assert mask.tolist() == [[True] * 3, [False] * 3] and bool(embeds.isfinite().all())
    embeds[mask].square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in projector.parameters())


@pytest.mark.parametrize("kind", TOY)
def test_gradients_are_finite_and_reach_every_parameter(kind):
    projector = build(kind)
    projector.draw = 1
    items, lengths = features(9, 5, 6)
    embeds, mask = projector(items, lengths)
    (embeds[mask] * torch.randn(int(mask.sum()), OUT, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert name.endswith(IDLE) or float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("kind", TOY)
def test_the_order_of_the_tokens(kind):
    projector = build(kind)
    items, lengths = features(8)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    embeds, _ = projector(items, lengths)
    shuffled, _ = projector(items[:, order], lengths)
    expected = embeds if kind == "group" else embeds[:, order]  # groups do not depend on it; the others keep it
    assert torch.allclose(shuffled, expected, atol=1e-5)


@pytest.mark.parametrize("kind", TOY)
def test_features_of_any_stored_type(kind):
    projector = build(kind)
    items, lengths = features(6, 3)
    half, _ = projector(items.half(), lengths)
    full, mask = projector(items.half().float(), lengths)
    assert half.dtype == torch.float32 and torch.equal(half[mask], full[mask])
    with pytest.raises(ValueError, match="7 channels, the input projector takes 12"):
        projector(torch.zeros(1, 2, 7), torch.tensor([2]))


@pytest.mark.parametrize("kind", TOY)
def test_the_same_seed_gives_the_same_projector_and_a_file_carries_it(kind, tmp_path):
    items, lengths = features(6, 3)
    one, other = build(kind), build(kind, seed=1)
    torch.manual_seed(99)
    twin = build(kind)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), twin.state_dict().values(), strict=True))
    assert not torch.equal(one(items, lengths)[0], other(items, lengths)[0])
    one.fit([np.random.default_rng(0).normal(2.0, 3.0, (50, WIDTH))])
    save_file({name: value.clone() for name, value in one.state_dict().items()}, tmp_path / "p.safetensors")
    other.load_state_dict(load_file(tmp_path / "p.safetensors"))
    assert torch.equal(one(items, lengths)[0], other(items, lengths)[0])


@pytest.mark.parametrize("kind", TOY)
def test_fitting_takes_size_and_offset_of_the_features_away(kind):
    data = np.random.default_rng(0).normal(3.0, 7.0, (4000, WIDTH)).astype(np.float32)
    spec = dataclasses.replace(TOY[kind], width=64)
    projector = build_input_projector(spec, WIDTH, 400, 0)
    projector.fit([data[:1000], data[1000:]])
    items = torch.from_numpy(data[:400]).reshape(20, 20, WIDTH)
    embeds, _ = projector(items, torch.full((20,), 20))
    assert float(embeds.std()) == pytest.approx(0.1, rel=0.25)
    rescaled = build_input_projector(spec, WIDTH, 400, 0)
    rescaled.fit([data / 100 - 5])
    assert torch.allclose(rescaled(items / 100 - 5, torch.full((20,), 20))[0], embeds, atol=2e-3)


def test_assignment_is_hard_with_the_gradient_of_the_softmax():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = assignment(logits)
    assert torch.allclose(weights.sum(1), torch.ones(2, 5)) and torch.allclose(weights.max(1).values, torch.ones(2, 5))
    assert torch.equal(weights.argmax(1), logits.argmax(1))
    direction = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((weights * direction).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(1) * direction).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_noise_belongs_to_the_item_and_the_draw():
    projector = build("group")
    items, lengths = features(40, 40, 40)
    quiet, _ = projector(items, lengths)
    projector.draw = 7
    noisy, _ = projector(items, lengths)
    turned, _ = projector(items.flip(0), lengths)
    torch.manual_seed(5)
    assert torch.equal(projector(items, lengths)[0], noisy)  # no generator is read
    assert torch.allclose(turned.flip(0), noisy, atol=1e-5)  # nor does the place in the batch matter
    projector.draw = 8
    assert not torch.allclose(projector(items, lengths)[0], noisy, atol=1e-4) and not torch.allclose(quiet, noisy, atol=1e-4)


def test_noise_is_gumbel():
    mask = torch.ones(4, 3, dtype=torch.bool)
    seeds = item_seeds(torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)), mask, 3)
    assert len(set(seeds.tolist())) == 4
    noise = gumbel_noise(seeds, 0, 64, 500)
    assert bool(noise.isfinite().all()) and noise.shape == (4, 64, 500)
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.02) and float(noise.std()) == pytest.approx(1.28255, abs=0.02)
    assert torch.equal(gumbel_noise(seeds, 0, 64, 20), noise[..., :20]) and not torch.equal(gumbel_noise(seeds, 1, 64, 500), noise)
    assert abs(float(torch.corrcoef(noise[:2].flatten(1))[0, 1])) < 0.03
    winners = torch.bincount(noise.argmax(1).flatten(), minlength=64)  # equal logits: every group equally often
    assert winners.min() > 10 and winners.max() < 60


def test_a_spec_that_does_not_fit_is_refused():
    for change, match in (
        ({"depths": (1, 1)}, "one stage more than groups"),
        ({"groups": ()}, "one stage more"),
        ({"width": 30}, "30 is not a multiple of its 4"),
    ):
        with pytest.raises(ValueError, match=match):
            build_input_projector(dataclasses.replace(TOY["group"], **change), 4, 4, 0)
    with pytest.raises(ValueError, match="'qformer' is unknown; there are: group, linear, mlp"):
        num_projected(InputProjectorSpec(kind="qformer"), 3)


def test_sizes_survive_json():
    from mmcore.config import ModelSpec

    spec = ModelSpec(
        encoders=(), input_projector=TOY["group"], output_projector=OutputProjectorSpec(), output_projectors=(("audio", OutputProjectorSpec(queries=1)),)
    )
    plain = json.loads(json.dumps(to_plain(spec)))
    assert model_spec_from_json(plain) == spec
    del plain["output_projectors"], plain["input_projector"]["groups"]  # written before these fields were there
    assert model_spec_from_json(plain).output_projectors == () and model_spec_from_json(plain).input_projector.groups == (64, 8)


def _theirs(projector, config) -> torch.nn.Module:
    """transformers' GroupViT encoder (Apache-2.0) with the weights of ours."""
    from transformers.models.groupvit.modeling_groupvit import GroupViTVisionEncoder

    encoder = GroupViTVisionEncoder(config).eval()
    state, taken = encoder.state_dict(), {}

    def put(theirs: str, module: torch.nn.Module) -> None:
        taken.update({f"{theirs}.{name}": value for name, value in module.state_dict().items()})

    for i, stage in enumerate(projector.stages):
        for j, layer in enumerate(stage.layers):
            into = f"stages.{i}.layers.{j}"
            for name, rows in zip("qkv", layer.qkv.weight.chunk(3), strict=True):
                taken[f"{into}.self_attn.{name}_proj.weight"], taken[f"{into}.self_attn.{name}_proj.bias"] = rows, torch.zeros(len(rows))
            for theirs, module in (("self_attn.out_proj", layer.out), ("layer_norm1", layer.norm), ("layer_norm2", layer.norm_mlp)):
                put(f"{into}.{theirs}", module)
            put(f"{into}.mlp.fc1", layer.mlp[0]), put(f"{into}.mlp.fc2", layer.mlp[2])
        if stage.groups_GW is None:
            continue
        taken[f"stages.{i}.group_token"] = stage.groups_GW[None]
        if stage.handed is not None:
            put(f"stages.{i}.group_projector.0", stage.handed[0])
            put(f"stages.{i}.group_projector.1.fc1", stage.handed[1].mlp[0]), put(f"stages.{i}.group_projector.1.fc2", stage.handed[1].mlp[2])
        block, into = stage.grouping, f"stages.{i}.downsample"
        for theirs, module in (
            ("norm_tokens", block.norm_groups), ("norm_x", block.norm_segments), ("norm_post_tokens", block.norm_mixed),
            ("mlp_inter.fc1", block.mixer.mlp[0]), ("mlp_inter.fc2", block.mixer.mlp[2]),
            ("pre_assign_attn.norm2", block.norm_look), ("pre_assign_attn.norm_post", block.norm_looked),
            ("pre_assign_attn.mlp.fc1", block.mlp_look[0]), ("pre_assign_attn.mlp.fc2", block.mlp_look[2]),
            ("norm_new_x", block.norm_new), ("mlp_channels.fc1", block.mlp_new[0]), ("mlp_channels.fc2", block.mlp_new[2]),
        ):  # fmt: skip
            put(f"{into}.{theirs}", module)
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
            put(f"{into}.pre_assign_attn.attn.{theirs}", block.look[ours])
            put(f"{into}.assign.{theirs.removeprefix('out_')}", block.assign[ours])
    assert taken.keys() == state.keys()  # ours has a place for each of their tensors
    encoder.load_state_dict(taken)
    return encoder


def test_grouping_equals_the_groupvit_of_transformers():
    from transformers import GroupViTVisionConfig

    config = GroupViTVisionConfig(
        hidden_size=32, intermediate_size=128, depths=[2, 1, 1], num_attention_heads=4, num_group_tokens=[6, 3, 0], num_output_groups=[6, 3, 0],
        hidden_act="gelu", layer_norm_eps=1e-5, assign_eps=1e-6,
    )  # fmt: skip
    projector = build("group")
    for parameter in projector.parameters():  # every part must matter
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    encoder = _theirs(projector, config)
    items, lengths = features(23, 23)
    with torch.no_grad():
        ours, _ = projector(items, lengths)
        found = encoder(projector.into(items))
        found = found.last_hidden_state if hasattr(found, "last_hidden_state") else found[0]
        theirs = projector.out(projector.norm(found))
    assert torch.allclose(ours, theirs, atol=1e-4), float((ours - theirs).abs().max())
    assert float(theirs.std()) > 0.05
