"""Any language model behind LanguageModelLike: a recurrent one, of no class of transformers, trains and answers through the same code."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from toy_any import STAGES, any_spec, chat_data, checksums

import mmcore.lm.token_nll
from mmcore.chat.chat import Chat
from mmcore.chat.special_tokens import MEDIA, TokenTable
from mmcore.config import SpecialTokens
from mmcore.inference.decoding import PackedCache, Stream, written
from mmcore.model.any_model import AnyModel
from mmcore.runtime.seeding import seeded
from mmcore.types import IGNORE
from pipelines.toys.parts import tiny_llama
from pipelines.training.loop import run_stage


class Recurrent(nn.Module):
    """A GRU over embeddings. It takes rows of one segment, of which every position may see all before it, and so looks at no mask."""

    def __init__(self, vocabulary: int, counts: SpecialTokens, width: int = 24):
        super().__init__()
        self.table, self.width, self.dtype, self.longest = TokenTable(vocabulary, counts), width, torch.float32, 0
        with seeded(0):
            parts = {"rows": nn.Embedding(vocabulary, width), "over": nn.GRU(width, width, batch_first=True), "head": nn.Linear(width, vocabulary)}
            parts["over"].bias_ih_l0.data[width : 2 * width] = 4.0  # of the update gate: what was read far back is remembered
            self.base = nn.ModuleDict(parts)
            self.new_input_rows = nn.Parameter(torch.randn(self.table.num_signals, width))
            self.new_head_rows = nn.Parameter(torch.randn(self.table.num_signals, width))

    @property
    def head(self):
        return self.base["head"]

    def embed(self, ids_BT):
        rows = torch.cat([self.base["rows"].weight, self.new_input_rows, self.base["rows"].weight[: len(MEDIA)]])
        return functional.embedding(ids_BT, rows)

    def hidden(self, embeds_BTD, mask_B1TL, positions_BT, cache=None, routes_BTA=None, seeds_BT=None, real_BT=None):
        read = {} if cache is None else cache
        hidden_BTD, read["state"] = self.base["over"](embeds_BTD, read.get("state"))
        return hidden_BTD

    def new_cache(self):
        return {}

    def base_logits(self, hidden_PD):
        return self.head(hidden_PD)

    def logits(self, hidden_PD):
        return torch.cat([self.base_logits(hidden_PD), hidden_PD @ self.new_head_rows.T], -1)


def recurrent() -> AnyModel:
    """A toy model of pictures, clips and sounds around a GRU."""
    spec, (_, tokenizer) = any_spec("shared"), tiny_llama(0)
    lm = Recurrent(len(tokenizer), spec.tokens)
    return AnyModel(spec, lm, Chat(tokenizer, lm.table)).requires_grad_(False)


@pytest.mark.parametrize("direct", [2**26, 0], ids=["all logits at once", "in chunks"])
def test_the_loss_is_that_of_its_own_logits_and_a_step_moves_the_input_projectors_alone(direct, monkeypatch, tmp_path):
    monkeypatch.setattr(mmcore.lm.token_nll, "DIRECT", direct)
    model, config = recurrent(), replace(STAGES["stage1"], steps=1)
    data = chat_data(config, model)
    (batch,), (loss,) = data.batches(0), data.losses(model, 0, 0, 1)
    logits, targets = model.supervised(batch)
    assert float(loss.total) == pytest.approx(float(functional.cross_entropy(logits, targets, reduction="sum")), rel=1e-5)
    assert float(loss.weight) == len(targets) == int((batch.targets_BT != IGNORE).sum())
    before = checksums(model)
    _, log, _ = run_stage(config, model, data, tmp_path)
    changed = {name for name, value in checksums(model).items() if value != before[name]}
    assert changed == {f"input_projectors.{m}.proj.{part}" for m in MEDIA for part in ("weight", "bias")}
    assert 0 < log.rows[0][log.columns.index("gradient_norm")] < float("inf")
    (after,) = data.losses(model, 0, 0, 1)
    assert float(after.total) < float(loss.total)


@torch.no_grad()
def test_what_it_writes_token_by_token_is_what_it_would_say_to_the_whole_text():
    model = recurrent()
    asked = model.chat.question_prompt("what?", opened=False)
    cache, stream = PackedCache(model, 1), Stream(row=0, segment=0, position=len(asked))
    last = cache.extend([[(0, 0, asked)]])[0, -1:]
    for _ in written(cache, [stream], last, model.chat.end_id, 6, complete_blocks=False):
        pass
    whole = PackedCache(model, 1).extend([[(0, 0, [*asked, *stream.tokens])]])[0]
    assert len(stream.tokens) > 1 and model.lm.logits(whole[len(asked) - 1 : -1]).argmax(-1).tolist() == stream.tokens
