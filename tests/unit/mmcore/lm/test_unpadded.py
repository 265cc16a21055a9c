"""Rows of unequal length: linear layers see the real tokens only, and what comes out is what padded rows give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_any import STAGES, any_model, chat_data
from toy_lms import FAMILIES, VOCABULARY, family

from mmcore.config import SpecialTokens
from mmcore.inference.decoding import PackedCache, Stream, written
from mmcore.lm.language_model import LanguageModel, packed_mask
from mmcore.lm.lora import lora_parameters
from mmcore.lm.unpadded import NAME, Places
from mmcore.types import PADDING

LENGTHS = (7, 3, 1, 7)
ATOL = 1e-4


def language_model(name: str, attention: str = "eager") -> LanguageModel:
    base = family(name)
    base.set_attn_implementation(attention)
    return LanguageModel(base, SpecialTokens(image=4, video=0, audio=2))


def rows():
    ids_BT = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    real_BT = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    return ids_BT, torch.where(real_BT, 0, PADDING), torch.where(real_BT, torch.arange(max(LENGTHS)), 0), real_BT


def seen_by_linear_layers(lm: LanguageModel) -> list[int]:
    """Grows by the tokens of every call of a layer that is no attention and holds a matrix."""
    seen: list[int] = []
    kinds = ("Linear", "Conv1D")
    for module in lm.base.base_model.modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(lambda _, given, __: seen.append(given[0].flatten(0, -2).shape[0]))
    return seen


@pytest.mark.parametrize("name", list(FAMILIES))
def test_states_and_gradients_are_those_of_padded_rows(name):
    lm = language_model(name)
    ids, segments, positions, real = rows()
    mask, found = packed_mask(segments, segments, torch.float32), []
    seen = seen_by_linear_layers(lm)
    for given in (None, real):
        seen.clear()
        embeds = lm.embed(ids).detach().requires_grad_()
        hidden = lm.hidden(embeds, mask, positions, real_BT=given)
        (hidden[real] * torch.linspace(-1, 1, lm.width)).sum().backward()
        found.append((hidden.detach(), embeds.grad, set(seen)))
    (padded, padded_gradient, all_tokens), (states, gradient, tokens) = found
    assert torch.allclose(states[real], padded[real], atol=ATOL) and not states[~real].any()
    assert torch.allclose(gradient[real], padded_gradient[real], atol=ATOL) and not gradient[~real].any()
    assert tokens == {sum(LENGTHS)} and all_tokens == {real.numel()}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_cache_holds_rows_as_they_stand(name):
    lm = language_model(name)
    ids, segments, positions, real = rows()
    cache, parts = lm.new_cache(), []
    seen = seen_by_linear_layers(lm)
    with torch.no_grad():
        whole = lm.hidden(lm.embed(ids), packed_mask(segments, segments, torch.float32), positions)
        seen.clear()
        for start, end in ((0, 2), (2, 7)):
            mask = packed_mask(segments[:, start:end], segments[:, :end], torch.float32)
            parts.append(lm.hidden(lm.embed(ids[:, start:end]), mask, positions[:, start:end], cache, real_BT=real[:, start:end]))
    assert torch.allclose(torch.cat(parts, 1)[real], whole[real], atol=ATOL)
    assert set(seen) == {int(real[:, :2].sum()), int(real[:, 2:].sum())}
    assert cache.get_seq_length() == max(LENGTHS)


@pytest.mark.parametrize("mode", ("shared", "per_modality"))
def test_adapters_their_routes_and_their_dropout_go_with_the_tokens(mode):
    found = []
    for attention in ("sdpa", "eager"):
        model = any_model(mode)
        model.lm.base.set_attn_implementation(attention)
        model.lm = LanguageModel(model.lm.base, model.spec.tokens, model.spec.seed)
        for parameter in lora_parameters(model.lm.base).values():
            parameter.requires_grad_()
        data = chat_data(replace(STAGES["stage3"], batch=10), model)
        (loss,) = data.losses(model, 0, 0, 1)
        loss.total.backward()
        found.append((loss.total.detach(), {name: parameter.grad for name, parameter in lora_parameters(model.lm.base).items()}))
        assert (model.lm.base.config._attn_implementation == NAME) == (attention == "eager")
    (padded, padded_gradients), (total, gradients) = found
    assert torch.allclose(total, padded, rtol=1e-5) and gradients.keys() == padded_gradients.keys()
    assert all(torch.allclose(gradients[name], padded_gradients[name], atol=1e-4) for name in gradients)


def test_streams_that_end_at_different_times_are_written_as_alone():
    model = any_model("shared")
    model.lm.base.set_attn_implementation("eager")
    model.lm = LanguageModel(model.lm.base, model.spec.tokens, model.spec.seed)
    prompts = [[5, 9, 33, 7], [60], [44, 45]]

    def answers(chosen: list[list[int]], end: int) -> list[list[int]]:
        cache = PackedCache(model, len(chosen))
        hidden = cache.extend([[(1, 0, prompt)] for prompt in chosen])
        last = torch.stack([hidden[row, len(prompt) - 1] for row, prompt in enumerate(chosen)])
        streams = [Stream(row=row, segment=1, position=len(prompt)) for row, prompt in enumerate(chosen)]
        for _ in written(cache, streams, last, end, 6):
            pass
        return [stream.tokens for stream in streams]

    with torch.no_grad():
        end = answers(prompts[:1], -1)[0][2]  # the first stream ends here, long before the others
        alone = [answers([prompt], end)[0] for prompt in prompts]
        assert answers(prompts, end) == alone and len(alone[0]) <= 3 < max(map(len, alone))


def test_another_attention_computes_padding_and_all_real_tokens_need_nothing():
    lm = language_model("llama", "sdpa")
    ids, segments, positions, real = rows()
    mask, seen = packed_mask(segments, segments, torch.float32), seen_by_linear_layers(lm)
    with torch.no_grad():
        states = lm.hidden(lm.embed(ids), mask, positions, real_BT=real)
        assert set(seen) == {real.numel()} and torch.equal(states, lm.hidden(lm.embed(ids), mask, positions))
    assert Places.of(torch.ones(2, 3, dtype=torch.bool)) is None
