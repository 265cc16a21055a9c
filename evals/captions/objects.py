"""Objects: the words for what an image shows, and which of them a caption names.

Owns the object vocabularies and the matching of words. Input: captions, or what questions affirm; output: sets of words.

Two worlds: easy-VQA, where the questions together tell shape and colour (its object words are these eleven, colours too); and stamps, where the one thing
that a caption's head word names is known to be there and nothing else is known to be absent, so a right word that no caption has counts as hallucinated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mmcore.concepts.shapes import COLOURS, SHAPES

EASYVQA_WORDS = (*SHAPES, *COLOURS)
STOPS = ("of", "with", "in", "on", "at", "from", "for", "by", "and", "or", "to", "that", "which", "who", "is", "are")
"""What the head word of a caption stands before."""
SYNONYMS = {"grey": "gray"}
"""Other spellings of an object word."""
_WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> list[str]:
    """Lower-case words in order, in the spelling of the vocabularies."""
    return [SYNONYMS.get(word, word) for word in _WORD.findall(text.lower())]


def head_word(caption: str) -> str:
    """The word for the thing that a short caption names: the last before the first comma or one of STOPS; "" when there is none."""
    words: list[str] = []
    for word in words_of(re.split(r"[,;:(.!?]", caption.strip())[0]):
        if word in STOPS and words:
            break
        words.append(word)
    return words[-1] if words else ""


def vocabulary_of(captions: Iterable[str]) -> tuple[str, ...]:
    """Head words of all captions, sorted; a plural whose singular is among them is left out."""
    found = {word for caption in captions if (word := head_word(caption))}
    return tuple(sorted(word for word in found if not _singulars(word) & found))


def named(text: str, vocabulary: Sequence[str]) -> list[str]:
    """Words of the vocabulary that a text names, in their singular where that is the word, each once, in order."""
    known = set(vocabulary)
    found = [next((form for form in (word, *sorted(_singulars(word))) if form in known), "") for word in words_of(text)]
    return list(dict.fromkeys(word for word in found if word))


def _singulars(word: str) -> set[str]:
    """What a word may be the plural of."""
    found = {word[:-1]} if word.endswith("s") and len(word) > 3 else set()
    found |= {word[:-2]} if word.endswith("es") and len(word) > 4 else set()
    return found | ({f"{word[:-3]}y"} if word.endswith("ies") and len(word) > 4 else set())
