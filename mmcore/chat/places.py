"""Places: where media stand in what is said, and what of it is words.

Owns the rule which names of placeholders mean a medium. `<image>`, `<video>` and `<audio>` are placeholders only where they belong to a medium of the record or
the prompt; any other is words, as in a text about HTML:
- there is no medium of the modality: all its names are words;
- there are as many media as names: each name is the place of one;
- there are more names, and as many of them as media stand on a line without words: these are the places, the others are words.
Input: texts and how many media there are. Output: what is said, with the media in their places (mmcore.types.Said). Raises Misfit for any other count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mmcore.chat.special_tokens import MEDIA, placeholder
from mmcore.types import Said, Shown

PLACEHOLDER_COUNT = "placeholder_count"
"""Reason of a Misfit: other numbers of placeholders than of media."""
_NAME = re.compile("|".join(f"(?P<{modality}>{re.escape(placeholder(modality))})" for modality in MEDIA))
_ONLY_NAMES = re.compile(rf"\s*(?:(?:{'|'.join(re.escape(placeholder(modality)) for modality in MEDIA)})\s*)+")


class Misfit(ValueError):
    """A record or prompt that does not fit: `reason` is one of a closed set, the message says the rest."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def placed(texts: Sequence[str], media: Mapping[str, int], problem: str) -> list[Said]:
    """What each of the turns `texts` says. media: modality -> how many of them stand somewhere in the turns.

    problem: message of the Misfit, with {named}, {name}, {given} and {modality} to be filled in.
    """
    places: list[tuple[int, re.Match[str]]] = []
    for modality in MEDIA:
        named = [(turn, match) for turn, text in enumerate(texts) for match in _NAME.finditer(text) if match.lastgroup == modality]
        given = media.get(modality, 0)
        if len(named) != given and given:
            alone = [(turn, match) for turn, match in named if _ONLY_NAMES.fullmatch(_line(match))]
            if len(alone) != given:
                raise Misfit(PLACEHOLDER_COUNT, problem.format(named=len(named), name=placeholder(modality), given=given, modality=modality))
            named = alone
        places += named if given else []
    return [_cut(text, sorted((match for where, match in places if where == turn), key=lambda match: match.start())) for turn, text in enumerate(texts)]


def _line(match: re.Match[str]) -> str:
    """The line that a name stands on."""
    text, end = match.string, match.string.find("\n", match.end())
    return text[text.rfind("\n", 0, match.start()) + 1 : len(text) if end < 0 else end]


def _cut(text: str, matches: Sequence[re.Match[str]]) -> Said:
    """A text with media in the places of the matches."""
    if not matches:
        return text
    pieces: list[str | Shown] = []
    at = 0
    for match in matches:
        pieces += [text[at : match.start()], Shown(str(match.lastgroup))]
        at = match.end()
    return tuple(piece for piece in (*pieces, text[at:]) if piece)


def asked(prompt: str, media: Sequence[tuple[str, int]]) -> Said:
    """A prompt with its media, (modality, projected tokens) in order: where it names them, or before it. Raises Misfit, with both counts, when it names other
    numbers of them."""
    if not names_media(prompt, [modality for modality, _ in media]):
        return before(prompt, media)
    counts = {modality: sum(other == modality for other, _ in media) for modality in MEDIA}
    return counted(placed([prompt], counts, "the text names {name} {named} times but {given} {modality} media are given"), media)[0]


def names_media(prompt: str, modalities: Iterable[str]) -> bool:
    """Whether a prompt names media of these modalities, that is, says where they stand."""
    return any(placeholder(modality) in prompt for modality in modalities)


def before(said: Said, media: Sequence[tuple[str, int]]) -> Said:
    """Media, (modality, projected tokens) in order, and then what is said."""
    return (*(Shown(*medium) for medium in media), *((said,) if isinstance(said, str) else said)) if media else said


def counted(turns: Sequence[Said], media: Sequence[tuple[str, int]]) -> list[Said]:
    """The turns with the projected tokens of their media, (modality, tokens) in order, filled in: the n-th place of a modality is that of its n-th medium.

    Media that the turns show nowhere stand before the first of them. Raises Misfit when they show only some, or more than there are.
    """
    if media and not any(map(shown, turns)):
        return [before(turns[0], media), *turns[1:]]
    tokens = {modality: [count for other, count in media if other == modality] for modality in MEDIA}
    for modality in MEDIA:
        named = sum(medium.modality == modality for said in turns for medium in shown(said))
        if named != len(tokens[modality]):
            raise Misfit(PLACEHOLDER_COUNT, f"{named} places of {modality} but {len(tokens[modality])} {modality} media")
    return [
        said if isinstance(said, str) else tuple(replace(one, tokens=tokens[one.modality].pop(0)) if isinstance(one, Shown) else one for one in said)
        for said in turns
    ]


def shown(said: Said) -> tuple[Shown, ...]:
    """The media of a turn, in order."""
    return () if isinstance(said, str) else tuple(piece for piece in said if isinstance(piece, Shown))


def parted(said: Said) -> tuple[tuple[Shown, ...], tuple[str | Shown, ...]]:
    """(media that the turn begins with, the rest without whitespace around it)."""
    pieces = [said] if isinstance(said, str) else list(said)
    first: list[Shown] = []
    while pieces and (isinstance(pieces[0], Shown) or not pieces[0].strip()):
        piece = pieces.pop(0)
        first += [piece] if isinstance(piece, Shown) else []
    if pieces and isinstance(pieces[0], str):
        pieces[0] = pieces[0].lstrip()
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] = pieces[-1].rstrip()
    return tuple(first), tuple(piece for piece in pieces if piece)


def medium_before(said: Said) -> Shown | None:
    """The only medium of a turn where the turn begins with it, else None."""
    media = shown(said)
    return media[0] if len(media) == 1 and parted(said)[0] else None


def rest_of(said: Said) -> Said:
    """A turn without the media that it begins with."""
    _, rest = parted(said)
    return rest if any(isinstance(piece, Shown) for piece in rest) else "".join(piece for piece in rest if isinstance(piece, str))


def spelled(said: Said) -> str:
    """A turn as a text: without the media that it begins with, as any prompt has them before it, unless names in its words would then be read as their
    places."""
    first, rest = parted(said)
    text = "".join(piece if isinstance(piece, str) else placeholder(piece.modality) for piece in rest)
    ambiguous = any(placeholder(medium.modality) in piece for medium in first for piece in rest if isinstance(piece, str))
    return "".join(f"{placeholder(medium.modality)}\n" for medium in first) + text if ambiguous else text


def asked_texts(questions: Sequence[str], modality: str) -> list[str]:
    """The questions of a record about one medium, each as the prompt that asks it. Where they do not name the medium once, they are words."""
    try:
        turns = placed(questions, {modality: 1}, "{named} {name}, not {given}")
    except Misfit:
        turns = list(questions)
    return [spelled(turn) for turn in turns]
