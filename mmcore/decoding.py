"""Decoding: greedy generation over packed rows with one key-value cache.

A row of the cache holds a prefix (segment 0) and any number of segments that each see the prefix and themselves only, exactly as in
training: questions about one medium share its prefix work, and the cache is never copied per question. Several streams (segments being
written) advance together, one token each per forward pass.
When a stream emits a signal token, the rest of the modality's block is forced in order and the hidden states become its conditioning.
Refuses to know prompts, encoders and text.

Shape letters: B rows, T new tokens of a row, L cached tokens, D LM width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mmcore.llm import packed_mask
from mmcore.model import AnyModel
from mmcore.types import PADDING, MediaBatch, SignalBlock


@dataclass(slots=True)
class Stream:
    """One segment being written."""

    row: int
    segment: int
    position: int
    """Position id of the next token."""
    tokens: list[int] = field(default_factory=list)
    """Generated so far."""
    blocks: list[SignalBlock] = field(default_factory=list)
    done: bool = False
    forced: list[int] = field(default_factory=list)
    """Rest of a signal block."""
    modality: str = ""
    """Of the signal block being written."""
    states: list[torch.Tensor] = field(default_factory=list)
    """Hidden states at its tokens."""


class PackedCache:
    """The growing cache of B packed rows."""

    def __init__(self, model: AnyModel, num_rows: int):
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache()
        self.segments_BL = torch.zeros(num_rows, 0, dtype=torch.int64)
        self.lengths = [0] * num_rows
        """Prefix tokens of each row."""

    def extend(self, pieces: Sequence[Sequence[tuple[int, int, Sequence[int]]]], media: Mapping[str, MediaBatch] | None = None) -> torch.Tensor:
        """Append to every row its pieces (segment, first position, ids); returns the hidden states [B, T, D] of the new tokens."""
        longest = max(sum(len(ids) for _, _, ids in row) for row in pieces)
        ids_BT = torch.zeros(len(pieces), longest, dtype=torch.int64)
        segments_BT, positions_BT = torch.full_like(ids_BT, PADDING), torch.zeros_like(ids_BT)
        for b, row in enumerate(pieces):
            at = 0
            for segment, position, ids in row:
                end = at + len(ids)
                ids_BT[b, at:end] = torch.tensor(ids, dtype=torch.int64)
                segments_BT[b, at:end] = segment
                positions_BT[b, at:end] = torch.arange(position, position + len(ids))
                if segment == 0:
                    self.lengths[b] += len(ids)
                at = end
        self.segments_BL = torch.cat([self.segments_BL, segments_BT], 1)
        mask = packed_mask(segments_BT, self.segments_BL, self.model.lm.dtype)
        return self.model.lm.hidden(self.model.embed(ids_BT, media or {}), mask, positions_BT, self.cache)


def greedy(
    cache: PackedCache,
    streams: Sequence[Stream],
    last_SD: torch.Tensor,
    end_id: int,
    max_new_tokens: int,
) -> Iterator[tuple[Stream, int | SignalBlock]]:
    """Advance all streams to their end token or limit; yields each token and each completed signal block as it comes.

    last_SD: hidden state that predicts each stream's first token. A block that has begun is completed beyond the limit.
    """
    active, hidden_SD = list(streams), last_SD
    while active:
        choices = _argmax(cache.model, hidden_SD)
        for stream, choice in zip(active, choices, strict=True):
            yield stream, _take(cache.model, stream, choice)
            limit = len(stream.tokens) >= max_new_tokens and not stream.modality
            stream.done = stream.tokens[-1] == end_id or limit
        active = [stream for stream in active if not stream.done]
        if not active:
            return
        hidden_SD = _feed(cache, active)
        for stream, state in zip(active, hidden_SD, strict=True):
            block = _collect(cache.model, stream, state)
            if block is not None:
                yield stream, block
                stream.done = len(stream.tokens) >= max_new_tokens
        keep = [i for i, stream in enumerate(active) if not stream.done]
        active, hidden_SD = [active[i] for i in keep], hidden_SD[keep]


def _argmax(model: AnyModel, hidden_SD: torch.Tensor) -> list[int]:
    """Best next token; rows of the embedding matrix beyond the tokenizer's vocabulary are never chosen."""
    logits = model.lm.logits(hidden_SD)
    logits[:, len(model.chat.tokenizer) : model.lm.table.base] = float("-inf")
    return [int(token) for token in logits.argmax(-1)]


def _take(model: AnyModel, stream: Stream, choice: int) -> int:
    """Append the next token: the forced one inside a block, else the choice (a signal token starts its block at the beginning)."""
    if not stream.forced:
        modality = model.lm.table.modality_of(choice)
        if modality is not None:
            stream.modality, stream.forced, stream.states = modality, list(model.lm.table.block(modality)), []
    token = stream.forced.pop(0) if stream.forced else choice
    stream.tokens.append(token)
    return token


def _feed(cache: PackedCache, active: Sequence[Stream]) -> torch.Tensor:
    """Run every active stream's last token; returns its hidden state, in the streams' order."""
    rows: list[list[tuple[int, int, Sequence[int]]]] = [[] for _ in cache.lengths]
    places = []
    for stream in active:
        places.append((stream.row, len(rows[stream.row])))
        rows[stream.row].append((stream.segment, stream.position, [stream.tokens[-1]]))
        stream.position += 1
    hidden_BTD = cache.extend(rows)
    return torch.stack([hidden_BTD[row, at] for row, at in places])


def _collect(model: AnyModel, stream: Stream, state_D: torch.Tensor) -> SignalBlock | None:
    """Keep the state of a signal token; the finished block when it was the last one."""
    if not stream.modality:
        return None
    stream.states.append(state_D)
    if stream.forced:
        return None
    conditioning_QC = model.conditioning(stream.modality, torch.stack(stream.states)[None])[0].float()
    block = SignalBlock(stream.modality, conditioning_QC)
    stream.blocks.append(block)
    stream.modality = ""
    return block
