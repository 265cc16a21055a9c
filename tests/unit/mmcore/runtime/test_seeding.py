"""Seeded construction: the stream of torch.manual_seed, untouched by other threads, and touching nothing itself."""

import threading

import pytest
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


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


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


def test_other_threads_change_nothing():
    alone = {seed: build(seed) for seed in range(4)}
    stop, found = threading.Event(), {seed: [] for seed in range(4)}

    def disturb():
        while not stop.is_set():
            torch.manual_seed(0)
            torch.randn(100)

    noise = threading.Thread(target=disturb)
    noise.start()
    builders = [threading.Thread(target=lambda s=seed: found[s].extend(build(s) for _ in range(20))) for seed in range(4)]
    for thread in builders:
        thread.start()
    for thread in builders:
        thread.join()
    stop.set()
    noise.join()
    assert all(len(found[seed]) == 20 and all(equal(alone[seed], other) for other in found[seed]) for seed in range(4))


def test_what_cannot_be_seeded_privately_says_so():
    with seeded(0), pytest.raises(RuntimeError, match="cannot be seeded privately"):
        torch.native_dropout(torch.ones(4), 0.5, True)
