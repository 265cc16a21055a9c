"""Generator: an exported model that answers and streams.

Input: an export directory (anyloom.json, lm/, lora/, tensors.safetensors, encoders/); media as bytes or features; questions.
Output: Answers, or a stream of TextPiece, SignalBlock and BrokenBlock. Questions about one medium share its encoding, its prefix and, with the caption
turn, one self-written caption.

Shape letters: N feature tokens, E encoder width, Q decoder queries, C conditioning width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.chat.chat import Chat, independent
from mmcore.chat.places import Misfit, asked, before, medium_before, names_media, rest_of
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import model_spec_from_json
from mmcore.encoders import load_encoder
from mmcore.encoders.base import Encoder
from mmcore.inference.batches import ROWS, Feature, batches, drawn_as, feature_of, media_batches, shared_media, unread_answer
from mmcore.inference.decoding import PackedCache, Stream, cut, held_back, written
from mmcore.inference.next_token import LIKELIEST, Sampling
from mmcore.lm.base_weights import language_model
from mmcore.model.any_model import LORA, TENSORS, AnyModel, check_trained, load_model
from mmcore.projectors.inputs import num_projected
from mmcore.types import Answer, BrokenBlock, Event, MediaBatch, Question, Said, SignalBlock, TextPiece

DESCRIPTION, ENCODERS = "anyloom.json", "encoders"
_ENCODER_DIRS = {"image": "image", "video": "image", "audio": "audio"}
CAPTION_TOKENS = 24
"""Limit of a self-written caption."""


class Generator:
    """model: in evaluation mode; caption_turn: the default of `answer` and `stream`; encoder_dir: `encoders/` of an export."""

    def __init__(self, model: AnyModel, caption_turn: bool, encoder_dir: Path | None = None, description: dict[str, Any] | None = None):
        self.model, self.caption_turn, self.description = model, caption_turn, description or {}
        self._encoder_dir = encoder_dir
        self._encoders: dict[str, Encoder] = {}

    @classmethod
    def load(cls, directory: Path, threads: int | None = None, device: str = "cpu", base: Path | None = None) -> Generator:
        """A Generator from an export directory, on `cpu` or `cuda`. base: the language model's weights, for an export that names them only.

        Raises AnyloomError when it is not one, or the weights are not those that it names, or nothing trained the projector of something it reads.
        """
        directory = Path(directory)
        if not (directory / DESCRIPTION).is_file():
            raise AnyloomError(f"{directory} is not an exported model: it has no {DESCRIPTION}")
        if threads is not None:
            torch.set_num_threads(threads)
        description = read_json(directory / DESCRIPTION)
        try:
            with language_model(directory, base) as lm:
                model = load_model(model_spec_from_json(description["model"]), lm, (directory,), device)
            check_trained(model, directory / TENSORS)
        except ValueError as error:
            raise AnyloomError(f"{directory}: {error}") from error
        return cls(model.to(device).eval(), bool(description["caption_turn"]), directory / ENCODERS, description)

    @property
    def _chat(self) -> Chat:
        return self.model.chat

    def encode(self, modality: str, data: bytes) -> np.ndarray:
        """Features [N, E] of one medium's bytes. Raises ValueError for a modality this model cannot read or bytes that are no such medium."""
        return self.encoder(modality).encode([data])[0]

    def encoder(self, modality: str) -> Encoder:
        """The encoder of a modality. Raises ValueError for one that this model cannot read."""
        if modality not in self._encoders:
            spec = dict(self.model.spec.encoders).get(modality)
            if spec is None or self._encoder_dir is None:
                raise ValueError(f"this model cannot read {modality}: it reads {', '.join(m for m, _ in self.model.spec.encoders)}")
            self._encoders[modality] = load_encoder(spec, self._encoder_dir / _ENCODER_DIRS[modality])
        return self._encoders[modality]

    @torch.inference_mode()
    def answer(
        self,
        items: Sequence[Question],
        *,
        max_new_tokens: int = 16,
        caption_turn: bool | None = None,
        complete_blocks: bool = True,
        sampling: Sampling = LIKELIEST,
        stop: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """Answers in the order of the items. caption_turn None: as the model was exported. sampling: how they are written; the likeliest tokens unless told.

        A medium stands before its question, or where the question names it; names that are more than the media are words.
        complete_blocks: a signal block that the model begins is completed; False shows what it writes by itself, and Answer.broken what went wrong.
        stop: strings that end an answer, which has the text before them; those of the language model's generation_config.json do so too. A question that is
        longer than the model's context is not read (Answer.finish); the others are answered.
        """
        stop = (*self.stop, *stop)
        helped = self.caption_turn if caption_turn is None else caption_turn
        answers: list[Answer | None] = [None] * len(items)
        done = 0
        for rows in batches(items, {number for number, item in enumerate(items) if not independent([self._said(item)])}):
            for number, answer in self._answer_rows(items, rows, max_new_tokens, helped, complete_blocks, sampling, stop).items():
                answers[number] = answer
            done += sum(map(len, rows))
            if progress is not None:
                progress(done, len(items))
        return [answer for answer in answers if answer is not None]

    @torch.inference_mode()
    def follow_up(self, items: Sequence[Question], then: Sequence[str], *, max_new_tokens: int = 16, complete_blocks: bool = True) -> list[Answer]:
        """Answers to what is said `then`, each in a conversation of its own that begins with the question of its item, which the model answers first.

        Each item has a row of its own, whoever shares its medium. complete_blocks: as of `answer`, in both answers; Answer.broken is of the second.
        """
        answers = []
        for start in range(0, len(items), ROWS):
            found = self._follow_up_rows(items[start : start + ROWS], then[start : start + ROWS], max_new_tokens, complete_blocks)
            answers += [found[number] for number in sorted(found)]
        return answers

    def _follow_up_rows(self, items: Sequence[Question], then: Sequence[str], limit: int, complete: bool) -> dict[int, Answer]:
        """Answers by the number of the item. One whose turns may be longer than the context is not read."""
        later = [len(self._chat.question_prompt(text, later=True)) + len(self._chat.close()) + limit for text in then]
        counts = [self._least(item, self.caption_turn) + more for item, more in zip(items, later, strict=True)]
        too_long = {i: unread_answer(count) for i, count in enumerate(counts) if count > self._longest}
        left = [i for i in range(len(items)) if i not in too_long]
        if not left:
            return too_long
        items, then = [items[i] for i in left], [then[i] for i in left]
        said = [self._said(item) for item in items]
        shared, own = shared_media([feature_of(item) for item in items], said)
        cache, captions = self._prefixes(shared, self.caption_turn)
        first = [self._prompt(turn, feature is not None, self.caption_turn) for turn, feature in zip(said, shared, strict=True)]
        positions = list(cache.lengths)
        pending: list[list[int]] = [[] for _ in items]
        for texts, media in ((first, media_batches(own)), ([self._chat.question_prompt(text, later=True) for text in then], {})):
            read = [[*rest, *ids] for rest, ids in zip(pending, texts, strict=True)]
            hidden_BTD = cache.extend([[(1, position, ids)] for position, ids in zip(positions, read, strict=True)], media)
            starts = [position + len(ids) for position, ids in zip(positions, read, strict=True)]
            streams = [Stream(row=row, segment=1, position=position, stop=self.stop) for row, position in enumerate(starts)]
            last_SD = torch.stack([hidden_BTD[row, len(ids) - 1] for row, ids in enumerate(read)])
            for _ in written(cache, streams, last_SD, self._chat.end_id, limit, complete):
                pass
            positions = [stream.position for stream in streams]
            pending = [self.unread(stream, start) for stream, start in zip(streams, starts, strict=True)]
        return too_long | {i: self._answer(stream, captions[stream.row], start) for i, stream, start in zip(left, streams, starts, strict=True)}

    def unread(self, stream: Stream, start: int) -> list[int]:
        """What the model has not read of an answer that began at position `start`, and of what ends it."""
        ended = bool(stream.tokens) and stream.tokens[-1] == self._chat.end_id
        return [*stream.tokens[stream.position - start :], *(self._chat.close()[1:] if ended else self._chat.close())]

    @torch.inference_mode()
    def captions(self, media: Sequence[Feature]) -> list[str]:
        """What the model says of each (modality, features_NE) when it is asked for a caption: its likeliest words, at most CAPTION_TOKENS."""
        found: list[str] = []
        for start in range(0, len(media), ROWS):
            _, captions = self._prefixes(media[start : start + ROWS], True)
            found += [caption or "" for caption in captions]
        return found

    def _answer_rows(
        self, items: Sequence[Question], rows: Sequence[Sequence[int]], limit: int, helped: bool, complete: bool, sampling: Sampling, stop: Sequence[str] = ()
    ) -> dict[int, Answer]:
        too_long = {i: unread_answer(count) for row in rows for i in row if (count := self._least(items[i], helped)) > self._longest}
        rows = [left for row in rows if (left := [i for i in row if i not in too_long])]
        if not rows:
            return too_long
        said = [[self._said(items[i]) for i in row] for row in rows]
        shared, own = shared_media([feature_of(items[row[0]]) for row in rows], [turns[0] for turns in said])
        cache, captions = self._prefixes(shared, helped)
        prompts = [[self._prompt(turn, feature is not None, helped) for turn in turns] for turns, feature in zip(said, shared, strict=True)]
        lengths = list(cache.lengths)
        pieces = [[(number + 1, length, prompt) for number, prompt in enumerate(row)] for row, length in zip(prompts, lengths, strict=True)]
        hidden_BTD = cache.extend(pieces, media_batches(own))
        streams, last = [], []
        for b, row in enumerate(prompts):
            ends = np.cumsum([len(prompt) for prompt in row])
            last += [hidden_BTD[b, end - 1] for end in ends]
            streams += [
                Stream(
                    row=b,
                    segment=number + 1,
                    position=lengths[b] + len(prompt),
                    generator=self._draws(sampling, items[rows[b][number]]),
                    stop=tuple(stop),
                )
                for number, prompt in enumerate(row)
            ]
        for _ in written(cache, streams, torch.stack(last), self._chat.end_id, limit, complete, sampling):
            pass
        numbers = [i for row in rows for i in row]
        inputs = [lengths[b] + len(prompt) for b, row in enumerate(prompts) for prompt in row]
        return too_long | {i: self._answer(stream, captions[stream.row], count) for i, stream, count in zip(numbers, streams, inputs, strict=True)}

    def _answer(self, stream: Stream, caption: str | None, num_input_tokens: int) -> Answer:
        return Answer(
            text=cut(self._chat.decode(stream.tokens), stream.stop)[0].strip(),
            caption=caption,
            token_ids=tuple(stream.tokens),
            num_input_tokens=num_input_tokens,
            blocks=tuple(stream.blocks),
            broken=tuple(stream.broken),
            finish=stream.finish,
        )

    @property
    def _longest(self) -> float:
        return self.model.lm.longest or math.inf

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings of the language model's own generation_config.json."""
        found = getattr(getattr(self.model.lm.base, "generation_config", None), "stop_strings", None) or ()
        return (found,) if isinstance(found, str) else tuple(found)

    def _least(self, item: Question, helped: bool) -> int:
        """Tokens of a question's row; with a caption turn before it, at most (the caption is not written yet)."""
        said, feature = self._said(item), feature_of(item)
        shared = feature is not None and independent([said])
        count = len(self._prompt(said, shared, helped))
        if feature is None or not shared:
            return count
        tokens = num_projected(self.model.spec.input_projector, len(feature[1]))
        if not helped:
            return count + len(self._chat.media_prefix(feature[0], tokens))
        table = self.model.lm.table
        caption = CAPTION_TOKENS + max((table.count(modality) for modality in MEDIA), default=0) + len(self._chat.close())
        return count + len(self._chat.caption_prompt(feature[0], tokens)) + caption

    @staticmethod
    def _draws(sampling: Sampling, item: Question) -> torch.Generator | None:
        if sampling.temperature == 0:
            return None
        feature = feature_of(item)
        return sampling.generator(drawn_as(item.text, [] if feature is None else [feature]))

    def _said(self, item: Question) -> Said:
        """What a question says, with its medium before it, or where it names it. Other numbers of names than one are words."""
        feature = feature_of(item)
        if feature is None:
            return item.text
        medium = [(feature[0], num_projected(self.model.spec.input_projector, len(feature[1])))]
        try:
            return asked(item.text, medium)
        except Misfit:
            return before(item.text, medium)

    def _prompt(self, said: Said, shared: bool, helped: bool) -> list[int]:
        """Ids of a question up to its answer. shared: its medium stands in the row's prefix, which has left the user turn open unless helped."""
        return self._chat.question_prompt(rest_of(said), opened=not helped, later=helped) if shared else self._chat.question_prompt(said)

    def _prefixes(self, features: Sequence[Feature | None], helped: bool, system: str = "") -> tuple[PackedCache, list[str | None]]:
        """The cache after each row's prefix (media, and a self-written caption turn when helped), and the captions."""
        cache = PackedCache(self.model, len(features))
        ids: list[list[int]] = []
        for feature in features:
            tokens = 0 if feature is None else num_projected(self.model.spec.input_projector, len(feature[1]))
            prompt = self._chat.caption_prompt if helped else self._chat.media_prefix
            ids.append([] if feature is None else prompt(feature[0], tokens, system=system))
        if not any(ids):
            return cache, [None] * len(ids)
        hidden_BTD = cache.extend([[(0, 0, row)] for row in ids], media_batches(features))
        captions: list[str | None] = [None] * len(ids)
        if helped:
            rows = [b for b, row in enumerate(ids) if row]
            streams = [Stream(row=b, segment=0, position=len(ids[b])) for b in rows]
            last_SD = torch.stack([hidden_BTD[b, len(ids[b]) - 1] for b in rows])
            for _ in written(cache, streams, last_SD, self._chat.end_id, CAPTION_TOKENS):
                pass
            self._close(cache, streams, [len(ids[b]) for b in rows])
            for stream in streams:
                captions[stream.row] = self._chat.decode(stream.tokens).strip()
        return cache, captions

    def _close(self, cache: PackedCache, streams: Sequence[Stream], starts: Sequence[int]) -> None:
        """Append what ends each caption turn: what the model has not read of the caption, which began at position `start`, and the end of the turn."""
        pieces: list[list[tuple[int, int, Sequence[int]]]] = [[] for _ in cache.lengths]
        for stream, start in zip(streams, starts, strict=True):
            pieces[stream.row] = [(0, stream.position, self.unread(stream, start))]
        cache.extend(pieces)

    @torch.inference_mode()
    def stream(
        self,
        prompt: str,
        media: Sequence[tuple[str, bytes]] = (),
        max_new_tokens: int = 64,
        sampling: Sampling = LIKELIEST,
        complete_blocks: bool = True,
        system: str = "",
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """Answer one prompt as it is written: TextPiece by TextPiece, and a SignalBlock when the model draws. There is no caption turn about media that the
        prompt names.

        Media stand before the prompt, or where it names their placeholders (<image>, <video>, <audio>), in order; a name without a medium is a word.
        complete_blocks, stop: as of `answer`; what went wrong comes as BrokenBlocks at the end. system: what the system says before the prompt.
        Raises ValueError when placeholders and media do not pair up, and for words of the system where the chat template has no place for them.
        """
        self._chat.check_system(system)
        given: dict[str, MediaBatch] = {}
        said, features = self.turn(prompt, media)
        if self.caption_turn and medium_before(said) is not None and not names_media(prompt, [modality for modality, _ in media]):
            cache, _ = self._prefixes(features, True, system)
            ids, segment = self._chat.question_prompt(rest_of(said), later=True), 1
        else:
            cache, segment = PackedCache(self.model, 1), 0
            ids, given = self._chat.question_prompt(said, system=system), media_batches([features])
        position = cache.lengths[0]
        hidden_BTD = cache.extend([[(segment, position, ids)]], given)
        draws = None if sampling.temperature == 0 else sampling.generator(drawn_as(prompt, features))
        stream = Stream(row=0, segment=segment, position=position + len(ids), generator=draws, stop=(*self.stop, *stop), strict=True)
        yield from self.events(stream, written(cache, [stream], hidden_BTD[0, -1:], self._chat.end_id, max_new_tokens, complete_blocks, sampling))

    def turn(self, prompt: str, media: Sequence[tuple[str, bytes]]) -> tuple[Said, list[Feature]]:
        """(what it says, features of its media) of one user turn. Raises ValueError as `stream` does."""
        asked(prompt, [(modality, 0) for modality, _ in media])  # before anything is encoded
        features = [(modality, self.encode(modality, data)) for modality, data in media]
        return asked(prompt, [(modality, num_projected(self.model.spec.input_projector, len(array))) for modality, array in features]), features

    def events(self, stream: Stream, pieces: Iterator[tuple[Stream, int | SignalBlock]]) -> Iterator[Event]:
        """Tokens of a stream -> pieces of text, a piece held back while its last character is incomplete or its end may begin a stop string; then what was
        broken."""
        said = ""
        text = ""
        for _, piece in pieces:
            if isinstance(piece, SignalBlock):
                yield piece
                continue
            text = cut(self._chat.decode(stream.tokens), stream.stop)[0]
            sure = text[: len(text) - held_back(text, stream.stop)]
            if not sure.endswith("\ufffd") and len(sure) > len(said):
                yield TextPiece(sure[len(said) :])
                said = sure
        if len(text) > len(said):
            yield TextPiece(text[len(said) :])
        yield from map(BrokenBlock, stream.broken)


__all__ = ["LORA", "TENSORS", "Answer", "BrokenBlock", "Generator", "Question", "SignalBlock", "TextPiece"]
