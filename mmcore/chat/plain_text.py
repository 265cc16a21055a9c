"""Plain text: words become the ids of words, whatever names stand in them.

Owns how a text is tokenized so that none of the tokenizer's control tokens comes out of it: neither special tokens (`<s>`, `<|im_end|>`) nor other added tokens
that mark something (`[INST]`, `<tool_call>`). Input: a transformers tokenizer, a text. Output: ids. Raises ValueError for a tokenizer whose pieces cannot be
told apart.
"""

from __future__ import annotations

import re
from typing import Any

_ANCHOR = "\n"
"""Text that tokenizers with a prefix space put before a piece, so that it does not get that space."""
_MARKS_SOMETHING = re.compile(r"[<>\[\]{}|]")
"""Signs in the names of added tokens that are no words; added words and runs of spaces are text like any other."""


class PlainText:
    """Texts as ids of one tokenizer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        control = {str(token.content): int(number) for number, token in tokenizer.added_tokens_decoder.items() if _controls(token)}
        control |= {str(name): int(number) for name, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)}
        used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        unknown = tokenizer.unk_token_id  # what stands for unknown characters is no control token, unless it is one of the others too
        control = {name: number for name, number in control.items() if name and (number != unknown or number in used)}
        self._control = frozenset(control.values())
        self._names = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
        self._anchor = self._encoded(_ANCHOR) if self._adds_space() else []

    def _encoded(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _adds_space(self) -> bool:
        """True for tokenizers (SentencePiece) that put a space before whatever they are given."""
        return str(self._tokenizer.convert_ids_to_tokens(self._encoded("x"))[0]).startswith("\u2581")

    def first(self, text: str) -> list[int]:
        """Ids of words that begin a row, with the prefix space of tokenizers that add one."""
        if not text:
            return []
        ids = self._encoded(text)
        if self._control.isdisjoint(ids):
            return ids
        pieces = self._apart(text)
        return [number for place, piece in enumerate(pieces) for number in (self.inside(piece) if place else self.first(piece))]

    def inside(self, text: str) -> list[int]:
        """Ids of words in the middle of a row. Raises ValueError for a tokenizer that joins a line break with the words after it."""
        if not text:
            return []
        ids = self._encoded(_ANCHOR + text) if self._anchor else self._encoded(text)
        if ids[: len(self._anchor)] != self._anchor:
            raise ValueError(f"this tokenizer joins a line break with the words after it ({text[:20]!r}): its pieces cannot be told apart")
        ids = ids[len(self._anchor) :]
        if self._control.isdisjoint(ids):
            return ids
        return [number for piece in self._apart(text) for number in self.inside(piece)]

    def _apart(self, text: str) -> list[str]:
        """The text in pieces that hold no name of a control token: cut behind the first sign of each name, or where that cuts nothing, behind every sign. A
        sign that is a control token all by itself is left out."""
        cuts = [match.start() + 1 for match in self._names.finditer(text) if match.start() + 1 < len(text)] or list(range(1, len(text)))
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)] if cuts else []


def _controls(token: Any) -> bool:
    """Whether an added token is for control."""
    return bool(token.special) or _MARKS_SOMETHING.search(str(token.content)) is not None
