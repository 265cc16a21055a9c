"""Drawn tokens: limits of what is drawn, seeds, and independence of the batch."""

import pytest
import torch
from toy_model import build

from mmcore.inference.generator import Generator
from mmcore.inference.next_token import LIKELIEST, Sampling, choose
from mmcore.types import Question

LOGITS = torch.tensor([0.5, 0.1, 0.3, 0.08, 0.02]).log()


def drawn(count=400, **settings):
    sampling = Sampling(**settings)
    generator = sampling.generator(0)
    return [choose(LOGITS[None], [generator], sampling)[0] for _ in range(count)]


def test_shares_are_those_of_the_softmax_at_the_temperature():
    shares = torch.bincount(torch.tensor(drawn(4000)), minlength=5) / 4000
    assert torch.allclose(shares, LOGITS.exp(), atol=0.03)
    cooler = torch.bincount(torch.tensor(drawn(4000, temperature=0.5)), minlength=5) / 4000
    assert torch.allclose(cooler, (2 * LOGITS).softmax(0), atol=0.03)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"top_k": 2}, {0, 2}), ({"top_p": 0.6}, {0, 2}), ({"top_p": 0.5}, {0}), ({"top_k": 1}, {0}), ({"top_k": 3, "top_p": 0.95}, {0, 1, 2})],
)
def test_only_the_likeliest_are_drawn(settings, allowed):
    assert set(drawn(**settings)) == allowed


def test_no_temperature_is_the_likeliest():
    assert LIKELIEST.generator(3) is None and choose(LOGITS[None], [None], LIKELIEST) == [0]


def test_by_default_every_token_can_be_drawn_at_its_share():
    assert Sampling() == Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=0) and Sampling(temperature=0.0) == LIKELIEST


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature -1"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, r"top_p 0\.0: it must be above 0 and at most 1"),
        ({"top_p": 10.0}, r"top_p 10\.0: it must be above 0 and at most 1"),  # the default of the public NExT-GPT code, which cuts nothing
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_an_answer_is_drawn_from_its_seed_and_number_not_from_its_batch():
    generator = Generator(build(lora=True), caption_turn=False)
    asked = [Question(text=text) for text in ("what is it?", "who is there?", "when?")]
    sampling = Sampling(temperature=3.0, seed=7)
    together = generator.answer(asked, max_new_tokens=8, sampling=sampling)
    assert [a.token_ids for a in together] == [a.token_ids for a in generator.answer(asked, max_new_tokens=8, sampling=sampling)]
    assert generator.answer(asked[:1], max_new_tokens=8, sampling=sampling)[0].token_ids == together[0].token_ids
    other = generator.answer(asked, max_new_tokens=8, sampling=Sampling(temperature=3.0, seed=8))
    likeliest = generator.answer(asked, max_new_tokens=8)
    assert len({tuple(a.token_ids for a in answers) for answers in (together, other, likeliest)}) == 3
