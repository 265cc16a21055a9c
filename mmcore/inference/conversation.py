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

from mmcore.chat.places import medium_before, names_media, rest_of
from mmcore.inference.batches import media_batches
from mmcore.inference.decoding import PackedCache, Stream, written
from mmcore.inference.generator import CAPTION_TOKENS, Generator
from mmcore.inference.next_token import LIKELIEST, Sampling
from mmcore.types import Event, MediaBatch


class Conversation:
    """generator: an exported model; sampling: how answers are written (captions always by the likeliest tokens); system: what the system says before the first
    turn; stop: strings that end an answer, as of Generator.answer. Turns follow each other with `say`; there is no way back."""

    def __init__(self, generator: Generator, sampling: Sampling = LIKELIEST, system: str = "", stop: Sequence[str] = ()):
        """Raises ValueError for words of the system where the model's chat template has no place for them."""
        generator.model.chat.check_system(system)
        self._generator, self._sampling, self._system = generator, sampling, system
        self._stop = (*generator.stop, *stop)
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
        """Answer the next turn as it is written. media: (modality, bytes), before the prompt or where it names their placeholders, in order; a name without a
        medium is a word.

        complete_blocks: a signal block that the model begins is completed; False shows what it writes by itself, and what went wrong as BrokenBlocks at the
        end (a caption about the medium always has whole blocks). A turn that is not read to its end stays as far as it was read.
        Raises ValueError when placeholders and media do not pair up, or the turn is too long: the conversation is then as if it had not been said, but for a
        caption turn that came before it.
        """
        generator = self._generator
        said, features = generator.turn(prompt, media)
        helped = generator.caption_turn and not names_media(prompt, [modality for modality, _ in media])
        medium = medium_before(said) if helped else None
        if medium is not None:
            asked = generator.model.chat.caption_prompt(medium.modality, medium.tokens, later=self.num_turns > 0, system=self._system)
            for _ in self._turn(asked, media_batches([features]), CAPTION_TOKENS, LIKELIEST):
                pass
            said, features = rest_of(said), []
        ids = generator.model.chat.question_prompt(said, later=self.num_turns > 0, system=self._system)
        yield from self._turn(ids, media_batches([features]), max_new_tokens, self._sampling, complete_blocks)

    def _turn(
        self, ids: list[int], batches: Mapping[str, MediaBatch], max_new_tokens: int, sampling: Sampling, complete_blocks: bool = True
    ) -> Iterator[Event]:
        """Read what is pending and the turn's ids, then write the answer."""
        ids = self._pending + ids
        hidden_BTD = self.cache.extend([[(0, self._position, ids)]], batches)
        self.num_turns += 1
        chat = self._generator.model.chat
        stream = Stream(row=0, segment=0, position=self._position + len(ids), generator=sampling.generator(self.num_turns), stop=self._stop, strict=True)
        start = stream.position
        try:
            pieces = written(self.cache, [stream], hidden_BTD[0, -1:], chat.end_id, max_new_tokens, complete_blocks, sampling)
            yield from self._generator.events(stream, pieces)
        finally:
            self._position, self._pending = stream.position, self._generator.unread(stream, start)
