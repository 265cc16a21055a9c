"""Decoding: generation over packed rows with one key-value cache.

A row of the cache holds a prefix (segment 0) and any number of segments that each see the prefix and themselves only, exactly as in
training: questions about one medium share its prefix work, and the cache is never copied per question. Several streams (segments being
written) advance together, one token each per forward pass.
With LoRA adapters per modality, everything in a row goes through the adapters of the media known so far. When new tokens bring a modality
that the row did not have, its route changes, and the keys and values of all rows are computed again: the result is that of a fresh run.
When a stream emits a signal token, the rest of the modality's block is forced in order (or, when blocks are not to be completed, must follow
by itself: a block that does not is reported as broken), and the hidden states become its conditioning.

Shape letters: B rows, T new tokens of a row, L cached tokens, D LM width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from mmcore.inference.next_token import LIKELIEST, Sampling, choose
from mmcore.lm.language_model import check_length, packed_mask
from mmcore.model.any_model import AnyModel
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
    """Rest of the signal block being written."""
    modality: str = ""
    """Of the signal block being written."""
    states: list[torch.Tensor] = field(default_factory=list)
    """Hidden states at its tokens."""
    broken: list[str] = field(default_factory=list)
    """What was wrong with signal tokens that made no whole block, one line each."""
    generator: torch.Generator | None = None
    """Draws its tokens; None: the likeliest."""
    stop: tuple[str, ...] = ()
    """Its text ends before the first of these."""
    finish: str = ""
    """Why it is done: `end`, `length` or `stop` (mmcore.types.Answer)."""
    strict: bool = False
    """A block that no trained output projector takes is an error; otherwise it is noted in `broken`, and the streams beside this one go on."""


class PackedCache:
    """The growing cache of B packed rows."""

    def __init__(self, model: AnyModel, num_rows: int):
        self.model = model
        self.segments_BL = torch.zeros(num_rows, 0, dtype=torch.int64, device=model.device)
        self.lengths = [0] * num_rows
        """Prefix tokens of each row."""
        self.recomputed = 0
        """How often a new modality made the keys and values be computed again."""
        self._ids_BL, self._positions_BL = self.segments_BL, self.segments_BL
        self._media: dict[str, MediaBatch] = {}
        self._routes_BLA = model.routes(self._ids_BL, self.segments_BL)
        self._empty()

    def _empty(self) -> None:
        self.cache = self.model.lm.new_cache()

    def extend(self, pieces: Sequence[Sequence[tuple[int, int, Sequence[int]]]], media: Mapping[str, MediaBatch] | None = None) -> torch.Tensor:
        """Append to every row its pieces (segment, first position, ids); returns the hidden states [B, T, D] of the new tokens.

        Raises ValueError for rows that the model does not take (too long, media that do not fit); the cache is then as it was. Lengths are checked before
        anything of that size is made.
        """
        check_length(max((position + len(ids) for row in pieces for _, position, ids in row), default=0), self.model.lm.longest)
        before = {**vars(self), "lengths": list(self.lengths)}
        try:
            return self._extend(pieces, media or {})
        except ValueError:  # the model refuses rows before it reads any of them
            vars(self).update(before)
            raise

    def _extend(self, pieces: Sequence[Sequence[tuple[int, int, Sequence[int]]]], media: Mapping[str, MediaBatch]) -> torch.Tensor:
        """`extend`, which may stop half way."""
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
        device = self.model.device
        ids_BT, segments_BT, positions_BT = ids_BT.to(device), segments_BT.to(device), positions_BT.to(device)
        media = {modality: part.to(device) for modality, part in media.items()}
        self.segments_BL = torch.cat([self.segments_BL, segments_BT], 1)
        if self._routes_BLA is None:
            return self._run(ids_BT, positions_BT, media)
        return self._extend_routed(ids_BT, positions_BT, media)

    def _extend_routed(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, media: Mapping[str, MediaBatch]) -> torch.Tensor:
        """`extend` with adapters per modality: keeps what the rows have read, and reads all of it again when their route has changed."""
        known, before_BLA = self._ids_BL.shape[1], self._routes_BLA
        self._ids_BL = torch.cat([self._ids_BL, ids_BT], 1)
        self._positions_BL = torch.cat([self._positions_BL, positions_BT], 1)
        self._media = merged_media(self._media, media)
        routes_BLA = self.model.routes(self._ids_BL, self.segments_BL)
        assert routes_BLA is not None and before_BLA is not None
        self._routes_BLA = routes_BLA
        real_BL = self.segments_BL[:, :known] != PADDING
        if torch.equal(routes_BLA[:, :known][real_BL], before_BLA[real_BL]):
            return self._run(ids_BT, positions_BT, media)
        self._empty()
        self.recomputed += 1
        return self._run(self._ids_BL, self._positions_BL, self._media)[:, known:]

    def _run(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, media: Mapping[str, MediaBatch]) -> torch.Tensor:
        """One forward pass over the last T tokens of the rows, which are not in the cache yet."""
        num_new = ids_BT.shape[1]
        segments_BT = self.segments_BL[:, self.segments_BL.shape[1] - num_new :]
        mask = packed_mask(segments_BT, self.segments_BL, self.model.lm.dtype)
        routes = None if self._routes_BLA is None else self._routes_BLA[:, self._routes_BLA.shape[1] - num_new :]
        return self.model.lm.hidden(self.model.embed(ids_BT, media), mask, positions_BT, self.cache, routes, real_BT=segments_BT != PADDING)


def merged_media(first: Mapping[str, MediaBatch], second: Mapping[str, MediaBatch]) -> dict[str, MediaBatch]:
    """Media of the same rows read one after the other, by modality, in row order (of one row: the first's before the second's)."""
    merged = dict(first)
    for modality, part in second.items():
        if modality not in first:
            merged[modality] = part
            continue
        parts = (first[modality], part)
        longest = max(p.features_BNE.shape[1] for p in parts)
        features = torch.cat([functional.pad(p.features_BNE, (0, 0, 0, longest - p.features_BNE.shape[1])) for p in parts])
        rows = torch.cat([p.rows_B for p in parts])
        order = torch.argsort(rows, stable=True)
        lengths = torch.cat([p.lengths_B for p in parts])
        merged[modality] = MediaBatch(features_BNE=features[order], lengths_B=lengths[order], rows_B=rows[order])
    return merged


def written(
    cache: PackedCache,
    streams: Sequence[Stream],
    last_SD: torch.Tensor,
    end_id: int,
    max_new_tokens: int,
    complete_blocks: bool = True,
    sampling: Sampling = LIKELIEST,
) -> Iterator[tuple[Stream, int | SignalBlock]]:
    """Advance all streams to their end token, a stop string, the limit or the end of the model's context; yields each token and each completed signal block
    as it comes.

    last_SD: hidden state that predicts each stream's first token. complete_blocks: a block that has begun is completed, beyond the limit too (not beyond the
    context); otherwise its tokens must come by themselves, and one that is out of place or cut off is noted in Stream.broken. sampling: how the tokens of
    streams with a generator are drawn. A limit of 0 writes nothing. Raises ValueError for a limit below 0.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens}: it must be 0 (no token) or more")
    if max_new_tokens == 0:
        for stream in streams:
            stream.done, stream.finish = True, "length"
        return
    longest = cache.model.lm.longest
    active, hidden_SD = list(streams), last_SD
    while active:
        choices = choose(_logits(cache.model, hidden_SD), [stream.generator for stream in active], sampling)
        for stream, choice in zip(active, choices, strict=True):
            yield stream, _take(cache.model, stream, choice, complete_blocks)
            within_block = bool(stream.modality) and (complete_blocks or not stream.forced)
            stream.finish = _finish(cache.model, stream, end_id, max_new_tokens, within_block, longest)
            stream.done = bool(stream.finish)
            if stream.done and stream.modality:
                _break_off(cache.model, stream)
        active = [stream for stream in active if not stream.done]
        if not active:
            return
        hidden_SD = _feed(cache, active)
        for stream, state in zip(active, hidden_SD, strict=True):
            within_block = bool(stream.modality)
            block = _collect(cache.model, stream, state)
            if block is not None:
                yield stream, block
            if within_block and not stream.modality:  # it has just ended
                stream.done = len(stream.tokens) >= max_new_tokens
                stream.finish = "length" if stream.done else ""
        keep = [i for i, stream in enumerate(active) if not stream.done]
        active, hidden_SD = [active[i] for i in keep], hidden_SD[keep]


def _finish(model: AnyModel, stream: Stream, end_id: int, limit: int, within_block: bool, longest: int) -> str:
    """Why a stream is done after its newest token; "" when it goes on."""
    if stream.tokens[-1] == end_id:
        return "end"
    if stream.stop and not stream.modality and cut(model.chat.decode(stream.tokens), stream.stop)[1]:
        return "stop"
    if longest and stream.position >= longest:  # the model cannot read the newest token
        return "length"
    return "length" if len(stream.tokens) >= limit and not within_block else ""


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """(the text before the first stop string in it, whether there was one). An empty stop string stops nothing."""
    places = [place for one in stop if one and (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of the text that may be the beginning of a stop string."""
    return max((size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])), default=0)


def _logits(model: AnyModel, hidden_SD: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] of the next tokens; rows of the embedding matrix beyond the tokenizer's vocabulary are never chosen."""
    logits = model.lm.logits(hidden_SD)
    logits[:, len(model.chat.tokenizer) : model.lm.table.base] = float("-inf")
    return logits


def _take(model: AnyModel, stream: Stream, choice: int, complete: bool) -> int:
    """Append the next token: the forced one inside a block that is completed, else the choice (which may begin, follow or break a block)."""
    if stream.forced and not complete and choice != stream.forced[0]:
        _break_off(model, stream)
    if not stream.forced:
        _begin_block(model, stream, choice, complete)
    token = stream.forced.pop(0) if stream.forced else choice
    stream.tokens.append(token)
    return token


def _begin_block(model: AnyModel, stream: Stream, choice: int, complete: bool) -> None:
    """A signal token begins its block, at its beginning; when blocks are not completed, only the first of its tokens does."""
    table = model.lm.table
    modality = table.modality_of(choice)
    if modality is None:
        return
    block = list(table.block(modality))
    if complete or choice == block[0]:
        stream.modality, stream.forced, stream.states = modality, block, []
    else:
        stream.broken.append(f"{table.names[choice - table.base]} came without the signal tokens before it")


def _break_off(model: AnyModel, stream: Stream) -> None:
    """Give up the block being written."""
    size = model.lm.table.count(stream.modality)
    stream.broken.append(f"the {stream.modality} block broke off after {size - len(stream.forced)} of {size} signal tokens")
    stream.modality, stream.forced, stream.states = "", [], []


def _feed(cache: PackedCache, active: Sequence[Stream]) -> torch.Tensor:
    """Run every active stream's last token; returns its hidden state, in the streams' order."""
    rows: list[list[tuple[int, int, Sequence[int]]]] = [[] for _ in cache.lengths]
    places = []
    for stream in active:
        places.append((stream.row, len(rows[stream.row])))
        rows[stream.row].append((stream.segment, stream.position, [stream.tokens[-1]]))
    hidden_BTD = cache.extend(rows)
    for stream in active:
        stream.position += 1
    return torch.stack([hidden_BTD[row, at] for row, at in places])


def _collect(model: AnyModel, stream: Stream, state_D: torch.Tensor) -> SignalBlock | None:
    """Keep the state of a signal token; the finished block when it was the last one. Raises AnyloomError for one that cannot be given, if strict."""
    if not stream.modality:
        return None
    stream.states.append(state_D)
    if stream.forced:
        return None
    if stream.modality in model.untrained and not stream.strict:
        stream.broken.append(f"the {stream.modality} block is whole, but nothing has trained its output projector")
        stream.modality = ""
        return None
    conditioning_QC = model.conditioning(stream.modality, torch.stack(stream.states)[None])[0].float().cpu()
    block = SignalBlock(stream.modality, conditioning_QC)
    stream.blocks.append(block)
    stream.modality = ""
    return block
