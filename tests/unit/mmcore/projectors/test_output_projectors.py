"""Output projectors: any number of queries per modality, gradients, start values, files; which of them a stage trains."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmcore.config import InputProjectorSpec, ModelSpec, OutputProjectorSpec, SpecialTokens, StatesStage, output_spec
from mmcore.encoder_config import TimmImage
from mmcore.model.any_model import output_projectors
from mmcore.projectors.outputs import KINDS, build_output_projector
from mmcore.training.optimizer import FlatAdamW
from mmcore.training.stages import select_trainable

TOY = OutputProjectorSpec(width=16, layers=2, heads=2, ffn=32, queries=5, out=8)
D, S = 24, 4


def build(kind: str, seed: int = 0, **sizes):
    return build_output_projector(dataclasses.replace(TOY, kind=kind, **sizes), D, S, seed)


def inputs(num: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, S, D, generator=generator), torch.randn(S, D, generator=generator)


@pytest.mark.parametrize("queries", [1, S, 77])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_queries_and_no_two_start_alike(kind, queries):
    projector = build(kind, queries=queries)
    hidden, rows = inputs()
    out = projector(hidden, rows)
    assert out.shape == (3, queries, 8) and out.dtype == torch.float32
    assert torch.equal(out, projector(hidden + rows, torch.zeros(S, D)))  # hidden state + input row
    assert torch.allclose(projector(hidden[1:2], rows), out[1:2], atol=1e-6)  # a sample does not see the others
    if queries > 1:
        assert torch.pdist(out[0]).min() > 0  # zero queries without positions would give one vector, 77 times
    half = projector(hidden.half(), rows)
    assert half.dtype == torch.float32 and torch.allclose(half, out, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_is_the_mean_predictor(kind):
    projector = build(kind)
    mean = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    projector.fit(mean, 0.5)
    assert torch.allclose(projector(*inputs()), mean.expand(3, -1, -1), atol=0.15)
    with pytest.raises(ValueError, match="4 tokens, 3 hidden states"):
        projector(torch.zeros(1, 3, D), torch.zeros(4, D))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_reach_every_parameter(kind):
    projector = build(kind)
    hidden, rows = inputs()
    direction = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
    (projector(hidden.requires_grad_(), rows.requires_grad_()) * direction).sum().backward()
    width = TOY.width
    for name, parameter in projector.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and bool(gradient.isfinite().all()), name
        parts = gradient.split(width) if name.endswith("in_proj_bias") else (gradient,)  # a key's bias shifts all scores alike
        assert all(float(part.abs().max()) > 0 for i, part in enumerate(parts) if len(parts) == 1 or i != 1), name
    assert float(hidden.grad.abs().min()) > 0 and float(rows.grad.abs().min()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_signal_tokens_matters_with_positions_only(kind):
    projector = build(kind)
    hidden, _ = inputs()
    none, order = torch.zeros(S, D), [2, 0, 3, 1]
    same = torch.allclose(projector(hidden[:, order], none), projector(hidden, none), atol=1e-6)
    assert same == (kind == "nextgpt_legacy")  # the public checkpoint was trained without positions


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_projector_and_a_file_carries_it(kind, tmp_path):
    one, other = build(kind), build(kind, seed=1)
    torch.manual_seed(3)
    twin = build(kind)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), twin.state_dict().values(), strict=True))
    assert not torch.equal(one(*inputs()), other(*inputs()))
    one.fit(torch.randn(5, 8), 0.3)
    save_file({name: value.clone() for name, value in one.state_dict().items()}, tmp_path / "p.safetensors")
    other.load_state_dict(load_file(tmp_path / "p.safetensors"))
    assert torch.equal(one(*inputs()), other(*inputs()))


def test_nextgpt_kind_is_torchs_transformer_and_its_layers_start_different():
    projector = build("nextgpt_legacy")
    reference = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    reference.load_state_dict({name: value for name, value in projector.state_dict().items() if name.startswith(("encoder.", "decoder."))})
    hidden, rows = inputs()
    expected = projector.out(reference(projector.into(hidden + rows), projector.queries_QW.expand(3, -1, -1)))
    assert torch.allclose(projector(hidden, rows), expected, atol=1e-6)
    first, second = (layer.linear1.weight for layer in projector.encoder.layers)
    assert not torch.equal(first, second)
    assert 0.015 < float(build("nextgpt", queries=77).queries_QW.std()) < 0.025


SPEC = ModelSpec(
    encoders=(("image", TimmImage(arch="x", width=6, grid=1)),),
    input_projector=InputProjectorSpec(),
    output_projector=TOY,
    output_projectors=(("image", dataclasses.replace(TOY, kind="nextgpt", queries=77, out=12)), ("audio", dataclasses.replace(TOY, queries=1, out=7))),
    tokens=SpecialTokens(image=4, video=24, audio=8),
)


def test_each_modality_has_its_own_conditioning():
    projectors = output_projectors(SPEC, D)
    shapes = {
        modality: tuple(projector(torch.zeros(2, projector.num_signals, D), torch.zeros(projector.num_signals, D)).shape)
        for modality, projector in projectors.items()
    }
    assert shapes == {"image": (2, 77, 12), "video": (2, 5, 8), "audio": (2, 1, 7)}
    assert output_spec(SPEC, "video") == TOY and output_spec(SPEC, "audio").queries == 1
    seeds = dataclasses.replace(
        SPEC, output_projectors=tuple((m, dataclasses.replace(TOY, queries=q)) for m, q in (("image", 77), ("video", 24), ("audio", 8)))
    )
    assert [len(projector.mean_QC) for projector in output_projectors(seeds, D).values()] == [77, 24, 8]
    with pytest.raises(ValueError, match=r"describes video, which has no signal tokens: set tokens\.video"):
        output_projectors(dataclasses.replace(SPEC, tokens=SpecialTokens(video=0), output_projectors=(("video", TOY),)), D)
    with pytest.raises(ValueError, match="unknown; there are: linear, nextgpt, nextgpt_legacy, transformer"):
        build("qformer")


class Side(nn.Module):
    """What stage 2 trains."""

    def __init__(self):
        super().__init__()
        self.output_projectors = output_projectors(SPEC, D)
        self.lm = nn.Module()
        self.lm.new_head_rows, self.lm.new_input_rows = nn.Parameter(torch.randn(36, D)), nn.Parameter(torch.randn(36, D))


def test_stage_2_trains_the_projector_of_every_modality_at_its_own_rate():
    """The reference's script tunes audio only, and its trainer gives output projectors the input projectors' learning rate."""
    moved = {}
    for rate in (1e-3, 4e-3):
        side = Side()
        before = {name: value.clone() for name, value in side.state_dict().items()}
        config = StatesStage(stage="stage2", steps=1, batch=1, lr=rate, warmup_steps=0, clip=0.0, mixture=(("a", 1.0),))
        trained = select_trainable(side, config)
        optimizer = FlatAdamW(trained, config)
        for modality, projector in side.output_projectors.items():
            generator = torch.Generator().manual_seed(len(modality))
            states = torch.randn(2, projector.num_signals, D, generator=generator)
            out = projector(states, torch.zeros(projector.num_signals, D))
            (out * torch.randn(out.shape, generator=generator)).sum().backward()
        side.lm.new_head_rows.sum().backward()
        optimizer.step(rate, 1.0)
        changed = {name for name, value in side.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == set(trained) and {name.split(".")[1] for name in changed} == {"image", "video", "audio", "new_head_rows"}
        moved[rate] = float((side.output_projectors["image"].out.bias - before["output_projectors.image.out.bias"]).abs().max())
    assert moved[4e-3] == pytest.approx(4 * moved[1e-3], rel=1e-3) and moved[1e-3] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("kind", ["transformer", "nextgpt", "linear"])
def test_the_input_is_standardised_so_that_huge_constant_channels_do_not_hide_the_rest(kind):
    spec = OutputProjectorSpec(kind=kind, width=16, layers=1, heads=2, ffn=32, queries=5, out=8)
    projector, rows = build_output_projector(spec, D, 4, 0), torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    states = 0.1 * torch.randn(64, 4, D, generator=torch.Generator().manual_seed(2))
    shifted = states.clone()
    shifted[..., 0] = 40.0
    seen = []
    projector.network = lambda states_BSD: seen.append(states_BSD) or torch.zeros(len(states_BSD), 5, 8)
    projector.fit_input(shifted.split(10), rows)
    projector(shifted, rows)
    torch.testing.assert_close(seen[0][..., 1:].mean(0), torch.zeros(4, D - 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0][..., 1:].std(0, unbiased=False), torch.ones(4, D - 1), atol=1e-3, rtol=0)
    assert float(seen[0][..., 0].abs().max()) < 1e-3  # a channel that never varies stays nothing


def test_the_projector_of_the_public_checkpoint_takes_states_as_they_are():
    spec = OutputProjectorSpec(kind="nextgpt_legacy", width=16, layers=1, heads=2, ffn=32, queries=5, out=8)
    projector = build_output_projector(spec, D, 4, 0)
    projector.fit_input([torch.full((3, 4, D), 7.0)], torch.zeros(4, D))
    assert not bool(projector.in_mean_SD.any()) and bool((projector.in_std_SD == 1).all())
