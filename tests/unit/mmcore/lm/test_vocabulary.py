"""Cross-entropy in chunks of the vocabulary: the values and gradients of the whole table."""

from __future__ import annotations

import pytest
import torch
from toy_model import build

import mmcore.lm.token_nll
from mmcore.lm.token_nll import token_nll


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [7, 64, 10**6])
def test_chunks_give_what_the_whole_table_gives(monkeypatch, chunk, bias):
    lm = build().lm
    base, signals = lm.table.base, lm.table.num_signals
    head = lm.base.get_output_embeddings()
    if bias:
        head.bias = torch.nn.Parameter(torch.randn(base, generator=torch.Generator().manual_seed(3)), requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(11, lm.width, generator=generator)
    targets = torch.cat([torch.randint(base, (8,), generator=generator), torch.tensor([base, base + signals - 1, 0])])
    weights = torch.rand(11, generator=generator)

    def found():
        hidden = states.clone().requires_grad_()
        lm.new_head_rows.requires_grad_().grad = None
        nll = token_nll(lm, hidden, targets)
        (nll * weights).sum().backward()
        return nll.detach(), hidden.grad, lm.new_head_rows.grad.clone()

    whole = found()
    monkeypatch.setattr(mmcore.lm.token_nll, "DIRECT", 0)
    monkeypatch.setattr(mmcore.lm.token_nll, "CHUNK", chunk)
    torch.testing.assert_close(found(), whole, atol=1e-5, rtol=1e-4)
    assert head.weight.grad is None


def test_only_one_chunk_of_logits_is_alive_at_a_time(monkeypatch):
    lm = build().lm
    monkeypatch.setattr(mmcore.lm.token_nll, "DIRECT", 0)
    monkeypatch.setattr(mmcore.lm.token_nll, "CHUNK", 16)
    widths, true_logits = [], mmcore.lm.token_nll._logits
    monkeypatch.setattr(mmcore.lm.token_nll, "_logits", lambda *args: widths.append((made := true_logits(*args)).shape[1]) or made)
    hidden = torch.randn(5, lm.width, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor):
        token_nll(lm, hidden, torch.arange(5)).sum().backward()
    assert max(widths) == 16 and sum(widths) == 2 * lm.table.base  # once forward, once backward
    assert not [shape for shape in saved if shape[:1] == (5,) and shape[-1] >= lm.table.base]
