"""Signals: the cached language-model states that stage 2 trains on, without the language model.

Everything that the hidden states of a caption's signal block depend on is frozen in stage 2 (LM, LoRA, input rows), so they are computed
once: the hidden states at the predicting, signal and negative positions, and the log-sum-exp of the base vocabulary's logits there. With
them the loss and the gradient of stage 2 (output projectors, head rows) are those of the full model.
Owns the row layout, the computation, the files and their reader.

Layout of one caption's P = 1 + S + NEGATIVES positions: the position before the block; its S signal tokens; then positions of an exchange in words (a
question with its answer, or where there is none a reply to the same caption), where no signal token may come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.chat.asking import Asking, plain
from mmcore.chat.chat import Chat
from mmcore.chat.rows import RowBuilder
from mmcore.chat.special_tokens import TokenTable
from mmcore.config import ModelSpec, SpecialTokens
from mmcore.model.any_model import AnyModel, output_projectors, signal_rows
from mmcore.projectors.inputs import num_projected
from mmcore.projectors.outputs import OutputProjector
from mmcore.training.batching import collate
from mmcore.types import TokenRow

NEGATIVES = 4
"""Negative positions per caption, evenly spread over the answer in words; the first is the one before its first token."""
INDEX, ROWS = "states.json", "rows.safetensors"


def caption_key(modality: str, caption: str, variant: int = 0) -> str:
    """Key of a caption's states under one of its requests."""
    return f"{modality}:{hashlib.sha256(caption.encode()).hexdigest()}" + (f":{variant}" if variant else "")


def target_key(caption: str) -> str:
    """Key of a caption's text-encoder states in the targets artifact."""
    return f"text:{hashlib.sha256(caption.encode()).hexdigest()}"


def signal_row(chat: Chat, modality: str, caption: str, asking: Asking | None = None, num_tokens: int = 0, replied: bool = True) -> tuple[TokenRow, list[int]]:
    """The packed row of a caption (drawing it; the caption replied to by itself) and its P positions.

    asking: how it is asked for; None: in the plainest way. num_tokens: projected tokens of the medium that the conversation is about. Without `replied` the
    second half and its positions are left out: it does not depend on the request.
    """
    block = chat.table.block(modality)
    builder = RowBuilder()
    way = asking or plain(modality, caption)
    asked = chat.dialogue_prompt(way.modality, num_tokens, way.before, way.text, way.caption, way.system)
    asked += chat.spoken(way.said) if way.said else []
    builder.add([*asked, *block], 1)
    signals = [*range(len(asked) - 1, len(asked) + len(block))]
    if not replied:
        return builder.row(), signals
    words, negatives = _in_words(chat, caption, caption, open_end=bool(way.said))
    builder.add(words, 2)
    return builder.row(), signals + [len(asked) + len(block) + place for place in negatives]


def exchange_row(chat: Chat, question: str, answer: str) -> tuple[TokenRow, list[int]]:
    """The row of an exchange in words and its negative positions, the end of the answer among them."""
    builder = RowBuilder()
    words, negatives = _in_words(chat, question, answer)
    builder.add(words, 1)
    return builder.row(), negatives


def _in_words(chat: Chat, question: str, answer: str, open_end: bool = False) -> tuple[list[int], list[int]]:
    """(tokens of an exchange, its negative positions). open_end: what may follow the answer is a signal: its end is no negative."""
    talk, reply = chat.question_prompt(question), chat.spoken(answer)
    places = np.linspace(len(talk) - 1, len(talk) - 1 + len(reply) - open_end, NEGATIVES)
    return [*talk, *reply], places.round().astype(int).tolist()


Media = Mapping[str, tuple[torch.Tensor, torch.Tensor, list[int]]]
"""modality -> (features_BNE, lengths_B, rows that they belong to), as mmcore.training.batching.collate takes it."""
Replies = tuple[torch.Tensor, torch.Tensor]
"""(states_END in the LM's dtype, base_lse_EN float32) at the N = NEGATIVES positions of E exchanges in words."""


@torch.no_grad()
def compute_exchanges(model: AnyModel, exchanges: Sequence[tuple[str, str]], batch: int) -> Replies:
    """The states of exchanges (question, answer) in their order, `batch` in a forward pass. Every caption that takes one of them has these: they depend on
    nothing else. Raises ValueError without exchanges."""
    if not exchanges:
        raise ValueError("there are no exchanges in words to compute states of")
    states, lse = [], []
    for start in range(0, len(exchanges), batch):
        rows = [exchange_row(model.chat, *exchange) for exchange in exchanges[start : start + batch]]
        hidden_BTD = model(collate([row for row, _ in rows], {}).to(model.device))
        found_BND = torch.stack([hidden_TD[negatives] for hidden_TD, (_, negatives) in zip(hidden_BTD, rows, strict=True)])
        states.append(found_BND)
        lse.append(_base_lse(model, found_BND))
    return torch.cat(states), torch.cat(lse)


def _base_lse(model: AnyModel, states_BPD: torch.Tensor) -> torch.Tensor:
    """[B, P] log-sum-exp of the base vocabulary's logits."""
    return torch.stack([model.lm.base_logits(states_PD).logsumexp(-1) for states_PD in states_BPD])


@torch.no_grad()
def compute_states(
    model: AnyModel,
    modality: str,
    captions: Sequence[str],
    askings: Sequence[Asking] | None = None,
    media: Media | None = None,
    replies: Replies | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(states_BPD in the LM's dtype, base_lse_BP float32) of captions, in one forward pass.

    askings: how each is asked for; None: in the plainest way. media: what their conversations are about. replies: of exchanges in words, of which a caption
    takes the one that a hash of it says; None: each caption is replied to by itself.
    """
    ways = [plain(modality, caption) for caption in captions] if askings is None else askings
    first = {caption: row for row, caption in reversed(list(enumerate(captions)))}  # one reply to each caption
    lengths = {row: int(length) for _, all_lengths, rows_of in (media or {}).values() for row, length in zip(rows_of, all_lengths.tolist(), strict=True)}
    tokens = [num_projected(model.spec.input_projector, lengths[row]) if row in lengths else 0 for row in range(len(captions))]
    rows = [
        signal_row(model.chat, modality, caption, ways[row], tokens[row], replied=replies is None and first[caption] == row)
        for row, caption in enumerate(captions)
    ]
    hidden_BTD = model(collate([row for row, _ in rows], media or {}).to(model.device))
    signals = 1 + len(model.chat.table.block(modality))
    at_BP = [positions[:signals] for _, positions in rows]
    from_BP = [[row] * signals for row in range(len(captions))]
    if replies is None:
        at_BP = [[*at, *rows[first[caption]][1][signals:]] for at, caption in zip(at_BP, captions, strict=True)]
        from_BP = [[*of, *[first[caption]] * NEGATIVES] for of, caption in zip(from_BP, captions, strict=True)]
    states_BPD = hidden_BTD[torch.tensor(from_BP, device=model.device), torch.tensor(at_BP, device=model.device)]
    lse_BP = _base_lse(model, states_BPD)
    if replies is None:
        return states_BPD.contiguous(), lse_BP
    taken_B = [int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16) % len(replies[0]) for caption in captions]
    return torch.cat([states_BPD, replies[0][taken_B]], 1), torch.cat([lse_BP, replies[1][taken_B]], 1)


class StateSet:
    """Reader of a `states` artifact: parts `part-<n>.safetensors` with `states` and `lse`, and states.json."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._index = read_json(directory / INDEX)
        self._at = {key: (part["file"], i) for part in self._index["parts"] for i, key in enumerate(part["keys"])}
        self._open: dict[str, Any] = {}

    def keys(self) -> list[str]:
        """All caption keys, sorted."""
        return sorted(self._at)

    def gather(self, keys: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(states_BPD, base_lse_BP) in the order of the keys. Raises AnyloomError for a caption without states."""
        states, lse = [], []
        for key in keys:
            if key not in self._at:
                raise AnyloomError(f"the states artifact has no {key}: its captions changed, run the states step again")
            name, row = self._at[key]
            if name not in self._open:
                self._open[name] = safe_open(self._directory / name, framework="pt")
            states.append(self._open[name].get_slice("states")[row : row + 1])
            lse.append(self._open[name].get_slice("lse")[row : row + 1])
        return torch.cat(states), torch.cat(lse)

    def rows(self) -> dict[str, torch.Tensor]:
        """`new_input_rows` and `new_head_rows` as they stood when the states were made."""
        with safe_open(self._directory / ROWS, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}

    def __contains__(self, key: object) -> bool:
        return key in self._at

    def requests(self, modality: str, caption: str) -> int:
        """Ways in which a caption was worded, at least 1; their variants count from 0."""
        ways = 1
        while caption_key(modality, caption, ways) in self._at:
            ways += 1
        return ways

    @property
    def table(self) -> TokenTable:
        """Token table of the model the states come from."""
        return TokenTable(int(self._index["vocabulary"]), SpecialTokens(**self._index["signals"]))


class _Rows(nn.Module):
    """The part of LanguageModelLike that stage 2 needs, under the same names."""

    new_input_rows: torch.Tensor

    def __init__(self, table: TokenTable, rows: dict[str, torch.Tensor]):
        super().__init__()
        self.table = table
        self.register_buffer("new_input_rows", rows["new_input_rows"])
        self.new_head_rows = nn.Parameter(rows["new_head_rows"])


class SignalSide(nn.Module):
    """Output projectors and signal-token rows: the trained side of stage 2, without the language model. Names as in AnyModel."""

    def __init__(self, spec: ModelSpec, states: StateSet):
        super().__init__()
        rows = states.rows()
        if states.table.counts != spec.tokens:
            raise AnyloomError("the cached states were made with other signal-token counts: run the states step again")
        self.lm = _Rows(states.table, rows)
        self.output_projectors = output_projectors(spec, rows["new_input_rows"].shape[1])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.lm.new_head_rows.device

    def block(self, modality: str) -> range:
        """Columns of a modality's signal tokens among the head rows."""
        ids = self.lm.table.block(modality)
        return range(ids[0] - self.lm.table.base, ids[-1] + 1 - self.lm.table.base)

    def projector(self, modality: str) -> OutputProjector:
        """A modality's output projector."""
        found = self.output_projectors[modality]
        assert isinstance(found, OutputProjector)
        return found

    def conditioning(self, modality: str, states_BPD: torch.Tensor) -> torch.Tensor:
        """Cached states of captions -> conditioning_BQC."""
        size = self.lm.table.count(modality)
        conditioning_BQC: torch.Tensor = self.projector(modality)(states_BPD[:, 1 : 1 + size], signal_rows(self.lm, modality))
        return conditioning_BQC
