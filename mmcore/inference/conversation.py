"""Conversation: several turns with one model, media in any of them.

Input: a Generator, and per turn a prompt with its media; output: a stream of TextPiece, SignalBlock and BrokenBlock. One row grows in one key-value cache.
A model that was trained with caption turns writes one first about a turn's only medium, as it does for a single question.
With LoRA adapters per modality the whole conversation goes through the adapters of all media it has had so far: a turn that brings a new
modality makes the cache be computed again (mmcore.inference.decoding), so an answer is the one that a fresh run over the same turns would give.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator, Mapping, Sequence

import torch

from mmcore.inference.decoding import PackedCache, Stream, written
from mmcore.inference.generator import CAPTION_TOKENS, Generator, names_media
from mmcore.inference.next_token import LIKELIEST, Sampling
from mmcore.types import Event, MediaBatch


class Conversation:
    """generator: an exported model; sampling: how answers are written (captions always by the likeliest tokens). Turns follow each other with `say`; there is
    no way back."""

    def __init__(self, generator: Generator, sampling: Sampling = LIKELIEST):
        self._generator, self._sampling = generator, sampling
        self.cache = PackedCache(generator.model, 1)
        self._position = 0
        self._pending: list[int] = []
        """Ids that the model has not read yet: the end of the last answer."""
        self.num_turns = 0
        """Caption turns count too."""

    @torch.inference_mode()
    def say(
        self, prompt: str, media: Sequence[tuple[str, bytes]] = (), max_new_tokens: int = 64, complete_blocks: bool = True
    ) -> abc.Generator[Event, None, None]:
        """Answer the next turn as it is written. media: (modality, bytes), before the prompt or where it names their placeholders, in order.

        complete_blocks: a signal block that the model begins is completed; False shows what it writes by itself, and what went wrong as BrokenBlocks at the
        end (a caption about the medium always has whole blocks). A turn that is not read to its end stays as far as it was read.
        Raises ValueError when placeholders and media do not pair up, or the turn is too long: the conversation is then as if it had not been said, but for a
        caption turn that came before it.
        """
        generator = self._generator
        if len(media) == 1 and generator.caption_turn and not names_media(prompt):
            for _ in self._turn(*generator.caption_request(*media[0], later=self.num_turns > 0), CAPTION_TOKENS, LIKELIEST):
                pass
            media = ()
        yield from self._turn(*generator.turn(prompt, media, later=self.num_turns > 0), max_new_tokens, self._sampling, complete_blocks)

    def _turn(
        self, ids: list[int], batches: Mapping[str, MediaBatch], max_new_tokens: int, sampling: Sampling, complete_blocks: bool = True
    ) -> Iterator[Event]:
        """Read what is pending and the turn's ids, then write the answer."""
        ids = self._pending + ids
        hidden_BTD = self.cache.extend([[(0, self._position, ids)]], batches)
        self.num_turns += 1
        chat = self._generator.model.chat
        stream = Stream(row=0, segment=0, position=self._position + len(ids), generator=sampling.generator(self.num_turns), strict=True)
        start = stream.position
        try:
            pieces = written(self.cache, [stream], hidden_BTD[0, -1:], chat.end_id, max_new_tokens, complete_blocks, sampling)
            yield from self._generator.events(stream, pieces)
        finally:
            self._position, self._pending = stream.position, self._generator.unread(stream, start)
