"""Seeded construction: the stream of torch.manual_seed, and touching nothing of what is drawn elsewhere."""

import torch
from torch import nn

from mmcore.runtime.seeding import seeded


def build(seed):
    with seeded(seed):
        layer = nn.Linear(64, 64)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        table = nn.Embedding(50, 8)
        extra = [
            torch.randn(5),
            torch.rand(3),
            torch.randint(0, 9, (4,)),
            torch.randperm(7),
            torch.randn_like(layer.bias),
            torch.bernoulli(torch.full((6,), 0.5)),
        ]
    return [layer.weight.detach(), layer.bias.detach(), table.weight.detach(), *extra]


def test_the_stream_is_that_of_manual_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        weight, table = nn.Linear(64, 64).weight.detach(), nn.Embedding(50, 8).weight.detach()
    with seeded(7):
        assert torch.equal(nn.Linear(64, 64).weight, weight) and torch.equal(nn.Embedding(50, 8).weight, table)


def test_the_callers_random_state_is_untouched():
    before = torch.get_rng_state()
    build(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_inside_another_draws_from_its_own_stream():
    with seeded(3):
        first, second = torch.randn(4), torch.randn(4)
    with seeded(3):
        before = torch.randn(4)
        inner = build(5)
        after = torch.randn(4)
    assert torch.equal(before, first) and torch.equal(after, second)
    assert all(torch.equal(x, y) for x, y in zip(inner, build(5), strict=True))
