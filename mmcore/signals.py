"""Signals: the cached language-model states that stage 2 trains on, without the language model.

Everything that the hidden states of a caption's signal block depend on is frozen in stage 2 (LM, LoRA, input rows), so they are computed
once: the hidden states at the predicting, signal and negative positions, and the log-sum-exp of the base vocabulary's logits there. With
them the loss and the gradient of stage 2 (output projectors, head rows) are those of the full model.
Owns the row layout, the computation, the files and their reader. Refuses to know the loss and how captions are chosen.

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
from mmcore.asking import Asking, plain
from mmcore.config import ModelSpec, SpecialTokens
from mmcore.data.batching import collate
from mmcore.data.chat import Chat, RowBuilder
from mmcore.input_projectors import num_projected
from mmcore.model import AnyModel, output_projectors, signal_rows
from mmcore.output_projectors import OutputProjector
from mmcore.special_tokens import TokenTable
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


def signal_row(
    chat: Chat,
    modality: str,
    caption: str,
    asking: Asking | None = None,
    num_tokens: int = 0,
    replied: bool = True,
    exchange: tuple[str, str] | None = None,
) -> tuple[TokenRow, list[int]]:
    """The packed row of a caption (drawing it; an answer in words) and its P positions.

    asking: how it is asked for; None: in the plainest way. num_tokens: projected tokens of the medium that the conversation is about. exchange: a question and
    its answer in words; None: the caption, replied to by itself. Without `replied` the second half and its positions are left out: it does not depend on the
    request.
    """
    block = chat.table.block(modality)
    builder = RowBuilder()
    way = asking or plain(modality, caption)
    asked = chat.dialogue_prompt(way.modality, num_tokens, way.before, way.text, way.caption, literal=True)
    asked += chat.spoken(way.said) if way.said else []
    builder.add([*asked, *block], 1)
    signals = [*range(len(asked) - 1, len(asked) + len(block))]
    if not replied:
        return builder.row(), signals
    question, answer = exchange or (caption, caption)
    talk, reply = chat.question_prompt(question, opened=False, literal=True), chat.spoken(answer)
    builder.add([*talk, *reply], 2)
    before = len(asked) + len(block) + len(talk) - 1
    last = before + len(reply) - bool(way.said and exchange is None)  # behind a caption that is said for a medium the signal comes: no negative there
    negatives = np.linspace(before, last, NEGATIVES).round().astype(int).tolist()
    return builder.row(), signals + negatives


Media = Mapping[str, tuple[torch.Tensor, torch.Tensor, list[int]]]
"""modality -> (features_BNE, lengths_B, rows that they belong to), as mmcore.data.batching.collate takes it."""


@torch.no_grad()
def compute_states(
    model: AnyModel,
    modality: str,
    captions: Sequence[str],
    askings: Sequence[Asking] | None = None,
    media: Media | None = None,
    exchanges: Sequence[tuple[str, str]] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(states_BPD in the LM's dtype, base_lse_BP float32) of captions, in one forward pass.

    askings: how each is asked for; None: in the plainest way. media: what their conversations are about. exchanges: questions and answers in words, of which
    a caption takes the one that a hash of it says.
    """
    ways = [plain(modality, caption) for caption in captions] if askings is None else askings
    first = {caption: row for row, caption in reversed(list(enumerate(captions)))}  # one reply to each caption
    lengths = {row: int(length) for _, all_lengths, rows_of in (media or {}).values() for row, length in zip(rows_of, all_lengths.tolist(), strict=True)}
    tokens = [num_projected(model.spec.input_projector, lengths[row]) if row in lengths else 0 for row in range(len(captions))]
    words = [exchanges[int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16) % len(exchanges)] if exchanges else None for caption in captions]
    rows = [signal_row(model.chat, modality, caption, ways[row], tokens[row], first[caption] == row, words[row]) for row, caption in enumerate(captions)]
    hidden_BTD = model(collate([row for row, _ in rows], media or {}).to(model.device))
    signals = len(rows[0][1]) - NEGATIVES
    from_BP = torch.tensor([[row] * signals + [first[caption]] * NEGATIVES for row, caption in enumerate(captions)])
    at_BP = torch.tensor([positions[:signals] + rows[first[caption]][1][signals:] for caption, (_, positions) in zip(captions, rows, strict=True)])
    states_BPD = hidden_BTD[from_BP.to(model.device), at_BP.to(model.device)]
    lse_BP = torch.stack([model.lm.base_logits(states_PD).logsumexp(-1) for states_PD in states_BPD])
    return states_BPD.contiguous(), lse_BP


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
