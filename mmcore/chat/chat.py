"""Chat: conversations and captions -> packed token rows with answer-only targets.

Owns the turns (pieces from mmcore.chat.templates), the prompts of our own making and the shared-prefix layout: an image prefix (with
or without a caption turn) as segment 0, then one segment per question; each segment sees the prefix and itself only, and its position ids go on from the
end of the prefix. A row with no shared part has an empty prefix. Only answers (and their end token) are targets.
Special names of the LM inside contents are read as plain text, so where a template's marks are special tokens no line of a user's text can forge a turn. Each
piece becomes ids on its own, as it would stand in the middle of a text, so the same ids stand in training and in generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcore.chat.rows import RowBuilder, Turn
from mmcore.chat.special_tokens import MEDIA, TokenTable, placeholder
from mmcore.chat.templates import BOS, EOS, chat_template
from mmcore.chat.wordings import DESCRIBE
from mmcore.types import TokenRow

_ANCHOR = "\n"
"""Text that tokenizers with a prefix space put before a piece, so that it does not get that space."""


class Chat:
    """Builds rows and prompts for one tokenizer and token table.

    tokenizer: a transformers tokenizer; template: a name in mmcore.chat.templates. Raises ValueError for an unknown template, or one whose
    special tokens the tokenizer does not have.
    """

    def __init__(self, tokenizer: Any, table: TokenTable, template: str = "chatml"):
        self.tokenizer, self.table, self.template_name = tokenizer, table, template
        self.template = chat_template(template)
        pieces = self.template
        self._anchor = self._plain(_ANCHOR) if self._adds_space() else []
        self.end_id = self._mark(pieces.end)
        self._begin, self._user = self._pieces(pieces.begin, first=True), self._pieces(pieces.user)
        self._assistant, self._after = self._pieces(pieces.assistant), self._pieces(pieces.after)
        self._newline = self.literal("\n")

    def _adds_space(self) -> bool:
        """True for tokenizers (SentencePiece) that put a space before whatever they are given."""
        return str(self.tokenizer.convert_ids_to_tokens(self._plain("x"))[0]).startswith("\u2581")

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _mark(self, name: str) -> int:
        """Id of a template's special token. Raises ValueError when the tokenizer lacks it."""
        found = self.tokenizer.eos_token_id if name == EOS else self.tokenizer.get_vocab().get(name)
        if found is None:
            lacks = "an end token" if name == EOS else name
            raise ValueError(f"the language model's tokenizer lacks {lacks}, which the chat template {self.template_name} is made of: set another `chat`")
        return int(found)

    def _pieces(self, pieces: Sequence[str], first: bool = False) -> list[int]:
        """Ids of a template's pieces; first: they begin a conversation, whose first words get the prefix space of tokenizers that add one."""
        ids: list[int] = []
        for piece in pieces:
            if piece == BOS:
                ids += [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
            elif piece in self.template.marks:
                ids.append(self._mark(piece))
            else:
                ids += self._plain(piece) if first else self.literal(piece)
                first = False
        return ids

    def literal(self, text: str) -> list[int]:
        """Ids of a text in the middle of a row, in which no name means a token."""
        if not text:
            return []
        if not self._anchor:
            return self._plain(text)
        ids = self._plain(_ANCHOR + text)
        if ids[: len(self._anchor)] != self._anchor:
            raise ValueError(f"this tokenizer joins a line break with the words after it ({text[:20]!r}): its pieces cannot be told apart")
        return ids[len(self._anchor) :]

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def open(self, later: bool = False) -> list[int]:
        """Ids before a user's words; later: a turn stands before it in the row."""
        return list(self._user if later else self._begin)

    def close(self) -> list[int]:
        """Ids that end an answer: the end token, then what stands before the next turn."""
        return [self.end_id, *self._after]

    def user(self, text: str, media: Mapping[str, Sequence[int]] | None = None, opened: bool = True) -> list[int]:
        """Ids of a user's text; the i-th placeholder of a modality becomes media[modality][i] placeholder tokens. opened: words stand before it.

        Raises ValueError, with both counts, when placeholders and media do not pair up, and for a token that the model does not have.
        """
        given = {modality: list((media or {}).get(modality, ())) for modality in MEDIA}
        for modality in MEDIA:
            named = sum(piece == self.table.placeholder_id(modality) for piece in self.table.split(text))
            if named != len(given[modality]):
                raise ValueError(f"the text names {placeholder(modality)} {named} times but {len(given[modality])} {modality} media are given")
        ids: list[int] = []
        for piece in self.table.split(text if opened else self.template.space + text):
            if isinstance(piece, str):
                ids += self.literal(piece)
                continue
            ids += [piece] * given[self._placeholder_of(piece, "a question")].pop(0)
        return ids

    def _placeholder_of(self, token: int, where: str) -> str:
        """The modality whose placeholder a new token is. Raises ValueError for a signal token."""
        for modality in MEDIA:
            if token == self.table.placeholder_id(modality):
                return modality
        raise ValueError(f"{where} may not hold the signal token {self.table.names[token - self.table.base]}: the model emits it, texts use the placeholder")

    def assistant(self, text: str) -> list[int]:
        """Ids of an answer; a placeholder in it becomes the modality's whole signal block."""
        ids: list[int] = []
        for piece in self.table.split(text):
            if isinstance(piece, str):
                ids += self.literal(piece) if ids else self.spoken(piece)
                continue
            ids += self.table.block(self._placeholder_of(piece, "an answer"))
        return ids

    def spoken(self, text: str) -> list[int]:
        """Ids of words that begin an answer, in which no name means a token."""
        return self.literal(self.template.space + text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; new tokens and special tokens leave nothing."""
        text = str(self.tokenizer.decode([i for i in ids if i < self.table.base], skip_special_tokens=True))
        return text.removeprefix(self.template.space)

    # -- prompts (the same ids stand in training and in generation) ---------------------------------------------------------------

    def media_prefix(self, modality: str, num_tokens: int, later: bool = False) -> list[int]:
        """Open user turn with the media: a question follows directly. Empty for text. later: a turn stands before it in the row."""
        if modality == "text":
            return []
        return [*self.open(later), *self.literal(self.template.space), *([self.table.placeholder_id(modality)] * num_tokens), *self._newline]

    def caption_prompt(self, modality: str, num_tokens: int, later: bool = False) -> list[int]:
        """Everything before the caption of a caption turn."""
        return [*self.media_prefix(modality, num_tokens, later), *self.literal(DESCRIBE[modality]), *self._assistant]

    def question_prompt(self, text: str, opened: bool, literal: bool = False, later: bool = False) -> list[int]:
        """A question up to the answer's first token.

        opened: the user turn is already open (media prefix); literal: names no tokens; later: a turn stands before it in the row.
        """
        head = [] if opened else self.open(later)
        space = "" if opened else self.template.space
        return [*head, *(self.literal(space + text) if literal else self.user(text, opened=opened)), *self._assistant]

    def media_question(self, text: str, counts: Sequence[tuple[str, int]], named: bool, later: bool = False) -> list[int]:
        """A whole question with its media: counts are (modality, tokens) in order. named: placeholders in the text say where they go."""
        if named:
            media = {modality: [count for other, count in counts if other == modality] for modality in MEDIA}
            return [*self.open(later), *self.user(text, media, opened=False), *self._assistant]
        if not counts:
            return self.question_prompt(text, opened=False, later=later)
        ids = [*self.open(later), *self.literal(self.template.space)]
        for modality, count in counts:
            ids += [*([self.table.placeholder_id(modality)] * count), *self._newline]
        return [*ids, *self.question_prompt(text, opened=True)]

    def dialogue_prompt(
        self, modality: str, num_tokens: int, before: Sequence[tuple[str, str]], request: str, caption: str | None = None, literal: bool = False
    ) -> list[int]:
        """A conversation about at most one medium, up to the first token of the answer to `request`: the ids that `question_row` has of a dialogue.

        before: (question, answer)s that stand before the request; caption: of the caption turn, None without one; literal: the request names no tokens.
        """
        ids = self.media_prefix(modality, num_tokens) if caption is None else self.caption_prompt(modality, num_tokens)
        opened = caption is None and modality != "text"
        if caption is not None:
            ids += [*self.spoken(caption), *self.close()]
        for question, answer in before:
            ids += [*self.question_prompt(question, opened, later=bool(ids)), *self.assistant(answer), *self.close()]
            opened = False
        return ids + self.question_prompt(request, opened, literal=literal, later=bool(ids))

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
        self, modality: str, num_tokens: int, turns: Sequence[Turn], caption: str | None = None, dialogue: bool = False, caption_group: int = 0
    ) -> TokenRow:
        """Several questions about one medium.

        caption: stands before the questions as an answered caption turn (a target too); None for the plain prompt.
        dialogue: the turns form one conversation, each sees the earlier ones; otherwise each sees the prefix and itself only.
        """
        builder = RowBuilder()
        opened = caption is None and modality != "text"
        if caption is not None:
            builder.add(self.caption_prompt(modality, num_tokens), 0)
            builder.add([*self.spoken(caption), self.end_id], 0, 1.0, caption_group)
            builder.add(self._after, 0)
        else:
            builder.add(self.media_prefix(modality, num_tokens), 0)
        for number, turn in enumerate(turns):
            segment = 1 if dialogue else number + 1
            if dialogue and number:
                builder.add(self._after, segment)
            first = not dialogue or number == 0
            later = caption is not None or not first
            builder.add(self.question_prompt(turn.question, opened and first, later=later), segment)
            builder.add([*self.assistant(turn.answer), self.end_id], segment, turn.weight, turn.group)
        return builder.row()


def question_text(human: str, modality: str) -> str:
    """A human turn without the placeholder of the sample's own medium (that one stands in the prefix). Raises ValueError on a second one."""
    if modality == "text":
        return human.strip()
    name = placeholder(modality)
    if human.count(name) > 1:
        raise ValueError(f"one turn has {human.count(name)} {name} but a sample has 1 {modality}: {human[:80]!r}")
    return human.replace(name, "", 1).strip()
