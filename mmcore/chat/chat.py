"""Chat: conversations and captions -> packed token rows with answer-only targets.

Owns how a conversation is laid out, in training and in generation alike: the turns (pieces from mmcore.chat.templates), the prompts of our own making and the
shared-prefix layout: an image prefix (with or without a caption turn) as segment 0, then one segment per question; each segment sees the prefix and itself
only, and its position ids go on from the end of the prefix. A row with no shared part has an empty prefix. Only answers (and their end token) are targets.
What is said is words (mmcore.chat.plain_text) and media in their places (mmcore.chat.places): no name in a text means a token, so where a template's marks are
special tokens no line of a user's text can forge a turn. Each piece becomes ids on its own, as it would stand in the middle of a text, so the same ids stand
in training and in generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmcore.chat.places import before, counted, medium_before, parted, shown
from mmcore.chat.plain_text import PlainText
from mmcore.chat.rows import RowBuilder, Turn
from mmcore.chat.special_tokens import TokenTable
from mmcore.chat.templates import BOS, EOS, SYSTEM, chat_template
from mmcore.chat.wordings import DESCRIBE
from mmcore.types import Said, Shown, TokenRow

CAPTION = -1
"""Stands for the caption turn among the numbers of the exchanges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a conversation that is laid out."""

    ids: list[int]
    shared: bool = False
    """It stands before the words of the first question: questions about the same medium have it in common."""
    answers: int | None = None
    """Number of the exchange whose answer it is, with its end token, or CAPTION; None for what is no answer."""


class Chat:
    """Builds rows and prompts for one tokenizer and token table.

    tokenizer: a transformers tokenizer; template: a name in mmcore.chat.templates. Raises ValueError for an unknown template, or one whose
    special tokens the tokenizer does not have.
    """

    def __init__(self, tokenizer: Any, table: TokenTable, template: str = "chatml"):
        self.tokenizer, self.table, self.template_name = tokenizer, table, template
        self.template = chat_template(template)
        pieces = self.template
        self._words = PlainText(tokenizer)
        self.end_id = self._mark(pieces.end)
        self._begin, self._user = self._pieces(pieces.begin, first=True), self._pieces(pieces.user)
        self._assistant, self._after = self._pieces(pieces.assistant), self._pieces(pieces.after)
        self._newline = self.literal("\n")

    def _mark(self, name: str) -> int:
        """Id of a template's special token. Raises ValueError when the tokenizer lacks it."""
        found = self.tokenizer.eos_token_id if name == EOS else self.tokenizer.get_vocab().get(name)
        if found is None:
            lacks = "an end token" if name == EOS else name
            raise ValueError(f"the language model's tokenizer lacks {lacks}, which the chat template {self.template_name} is made of: set another `chat`")
        return int(found)

    def _pieces(self, pieces: Sequence[str], first: bool = False, system: str = "") -> list[int]:
        """Ids of a template's pieces; first: they begin a conversation, whose first words get the prefix space of tokenizers that add one."""
        ids: list[int] = []
        for piece in pieces:
            if piece == BOS:
                ids += [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
            elif piece in self.template.marks:
                ids.append(self._mark(piece))
            else:
                text = system if piece == SYSTEM else piece
                ids += self._words.first(text) if first else self.literal(text)
                first = False
        return ids

    def literal(self, text: str) -> list[int]:
        """Ids of a text in the middle of a row, in which no name means a token."""
        return self._words.inside(text)

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def open(self, later: bool = False, system: str = "") -> list[int]:
        """Ids before a user's words; later: a turn stands before it in the row; system: what the system says before the first turn, where the template has a
        place for it."""
        if system and not later and self.template.system:
            return self._pieces(self.template.system, first=True, system=system)
        return list(self._user if later else self._begin)

    def check_system(self, system: str) -> None:
        """Raises ValueError for words of the system where the template has no place for them."""
        if system and not self.template.system:
            raise ValueError(f"the chat template {self.template_name} has no turn of the system: leave it out")

    def close(self) -> list[int]:
        """Ids that end an answer: the end token, then what stands before the next turn."""
        return [self.end_id, *self._after]

    def _shown(self, medium: Shown) -> list[int]:
        """The placeholder tokens of a medium."""
        return [self.table.placeholder_id(medium.modality)] * medium.tokens

    def _words_of(self, pieces: Sequence[str | Shown], opened: bool) -> list[int]:
        """Ids of a user's words and the media among them. opened: something stands before them in the turn."""
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            space = "" if opened or place else self.template.space
            ids += self._shown(piece) if isinstance(piece, Shown) else self.literal(space + piece)
        return ids

    def assistant(self, said: Said) -> list[int]:
        """Ids of an answer; a medium in it becomes the modality's whole signal block. Raises ValueError for a modality without signal tokens."""
        ids: list[int] = []
        for piece in (said,) if isinstance(said, str) else said:
            if isinstance(piece, Shown):
                ids += self.table.block(piece.modality)
            else:
                ids += self.literal(piece) if ids else self.spoken(piece)
        return ids

    def spoken(self, text: str) -> list[int]:
        """Ids of words that begin an answer, in which no name means a token."""
        return self.literal(self.template.space + text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; new tokens and special tokens leave nothing."""
        text = str(self.tokenizer.decode([i for i in ids if i < self.table.base], skip_special_tokens=True))
        return text.removeprefix(self.template.space)

    # -- prompts (the same ids stand in training and in generation) ---------------------------------------------------------------

    def head(self, media: Sequence[Shown], later: bool = False, system: str = "") -> list[int]:
        """Open user turn with the media that it begins with: the words follow directly. later: a turn stands before it in the row."""
        ids = self.open(later, system)
        if media:
            ids += self.literal(self.template.space)
        for medium in media:
            ids += [*self._shown(medium), *self._newline]
        return ids

    def media_prefix(self, modality: str, num_tokens: int, later: bool = False, system: str = "") -> list[int]:
        """Open user turn with a medium: a question follows directly. Empty for text. later: a turn stands before it in the row."""
        return [] if modality == "text" else self.head([Shown(modality, num_tokens)], later, system)

    def caption_prompt(self, modality: str, num_tokens: int, later: bool = False, system: str = "") -> list[int]:
        """Everything before the caption of a caption turn."""
        return [*self.media_prefix(modality, num_tokens, later, system), *self.literal(DESCRIBE[modality]), *self._assistant]

    def question_prompt(self, said: Said, opened: bool = False, later: bool = False, system: str = "") -> list[int]:
        """A question up to the answer's first token. opened: the user turn is already open (media prefix); later: a turn stands before it in the row.

        Media that the question begins with stand a line each, whatever whitespace follows them; any other stands in its place among the words.
        """
        first, rest = parted(said)
        if opened and first:
            raise ValueError(f"a {first[0].modality} begins a question whose turn is open already")
        ids = [] if opened else self.head(first, later, system)
        return [*ids, *self._words_of(rest, opened or bool(first)), *self._assistant]

    def conversation(self, exchanges: Sequence[tuple[Said, Said | None]], caption: str | None = None, system: str = "") -> Iterator[Part]:
        """A conversation piece by piece, each exchange behind those before it. An answer of None ends it: it is yet to be written.

        caption: of a caption turn, which stands before the first question that begins with one medium, and shows it in its place.
        """
        later = False
        for number, (question, answer) in enumerate(exchanges):
            (first, rest), medium = parted(question), medium_before(question)
            if caption is not None and medium is not None:
                yield Part(ids=self.caption_prompt(medium.modality, medium.tokens, later, system), shared=not number)
                yield Part(ids=[*self.spoken(caption), self.end_id], shared=not number, answers=CAPTION)
                yield Part(ids=list(self._after), shared=not number)
                first, later, caption = (), True, None
            yield Part(ids=self.head(first, later, system), shared=bool(first) and not number)
            yield Part(ids=[*self._words_of(rest, bool(first)), *self._assistant])
            if answer is None:
                return
            yield Part(ids=[*self.assistant(answer), self.end_id], answers=number)
            if number + 1 < len(exchanges):
                yield Part(ids=list(self._after))
            later = True

    def dialogue_prompt(
        self, modality: str, num_tokens: int, before: Sequence[tuple[Said, Said]], request: Said, caption: str | None = None, system: str = ""
    ) -> list[int]:
        """A conversation about at most one medium, up to the first token of the answer to `request`: the ids that `question_row` has of a dialogue.

        before: (question, answer)s that stand before the request; caption: of the caption turn, None without one.
        """
        questions = counted([*(question for question, _ in before), request], _media(modality, num_tokens))
        answers: list[Said | None] = [*(answer for _, answer in before), None]
        return [token for part in self.conversation(list(zip(questions, answers, strict=True)), caption, system) for token in part.ids]

    # -- rows ---------------------------------------------------------------------------------------------------------------------

    def caption_row(self, modality: str, num_tokens: int, caption: str, group: int = 0, block: bool = False) -> TokenRow:
        """Media -> caption; the caption and its end token are targets.

        block: the modality's signal block follows the caption, as if the medium were to be made again; it is no target, and the targets stay the same.
        """
        builder = RowBuilder()
        builder.add(self.caption_prompt(modality, num_tokens), 0)
        if block:
            builder.add(self.spoken(caption), 0, 1.0, group)
            builder.expect(self.end_id, 0, 1.0, group)
            builder.add(self.table.block(modality), 0)
        else:
            builder.add([*self.spoken(caption), self.end_id], 0, 1.0, group)
        return builder.row()

    def question_row(
        self,
        modality: str,
        num_tokens: int,
        turns: Sequence[Turn],
        caption: str | None = None,
        dialogue: bool = False,
        caption_group: int = 0,
        system: str = "",
        routed: bool = False,
    ) -> TokenRow:
        """Several questions about at most one medium. It stands where they show it, or where none does, before the first.

        caption: stands before the questions as an answered caption turn (a target too); None for the plain prompt.
        dialogue: the turns form one conversation, each sees the earlier ones; otherwise each sees the prefix and itself only. Questions of which another than
        the first shows the medium, or shows it among its words, have no prefix in common: they form a conversation in any case.
        routed: adapters per modality take the tokens of whoever sees a medium. Answers before a later turn shows it are then trained in a segment of their
        own, which does not see it, as they are written; those after it in a segment that holds the conversation from its start.
        """
        questions = counted([turn.question for turn in turns], _media(modality, num_tokens))
        exchanges = [(question, turn.answer) for question, turn in zip(questions, turns, strict=True)]
        builder = RowBuilder()
        if dialogue or not independent(questions):
            parts = list(self.conversation(exchanges, caption, system))
            unseen = next((number for number, question in enumerate(questions) if shown(question)), 0) if routed else 0
            if unseen:
                self._add(builder, self.conversation(exchanges[:unseen], None, system), 1, turns, caption_group)
                parts = [replace(part, answers=None) if part.answers in range(unseen) else part for part in parts]
            self._add(builder, parts, 2 if unseen else 1, turns, caption_group)
            return builder.row()
        first, _ = parted(questions[0])
        for number, exchange in enumerate(exchanges):
            question = before(exchange[0], [(medium.modality, medium.tokens) for medium in first]) if number else exchange[0]
            pieces = self.conversation([(question, exchange[1])], caption, system)
            turn = turns[number]
            self._add(builder, (part for part in pieces if not number or not part.shared), number + 1, [turn], caption_group)
        return builder.row()

    @staticmethod
    def _add(builder: RowBuilder, parts: Iterable[Part], segment: int, turns: Sequence[Turn], caption_group: int) -> None:
        """Append the pieces of a conversation: what is shared to the prefix, the rest to a segment; answers are targets."""
        for part in parts:
            where = 0 if part.shared else segment
            if part.answers is None:
                builder.add(part.ids, where)
            elif part.answers == CAPTION:
                builder.add(part.ids, where, 1.0, caption_group)
            else:
                builder.add(part.ids, where, turns[part.answers].weight, turns[part.answers].group)


def independent(questions: Sequence[Said]) -> bool:
    """Whether questions can share a prefix: their media stand at the beginning of the first, or there are none."""
    _, rest = parted(questions[0])
    return not any(isinstance(piece, Shown) for piece in rest) and not any(map(shown, questions[1:]))


def _media(modality: str, num_tokens: int) -> list[tuple[str, int]]:
    """The one medium of a conversation with its tokens; none for text."""
    return [] if modality == "text" else [(modality, num_tokens)]
