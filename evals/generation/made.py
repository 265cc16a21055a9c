"""Made media: what the decoders of an export make of signal blocks, and what a judge can read of it.

Owns the rule for what cannot be read: a made medium whose values are not finite, or whose file no reader takes, counts as wrong and is counted; nothing stops
at it. Input: what draws, files; output: media and texts, None or b"" where there is none to be read. Raises AnyloomError for what is about the
export, not about one medium.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from evals.records import attempt
from mmcore.media.encode import wav
from mmcore.types import NotFinite

if TYPE_CHECKING:
    from mmcore.concepts.speech_judge import SpeechJudge
    from mmcore.types import Medium


def drawn(draw: Callable[[list[int]], Sequence[Medium]], numbers: Sequence[int]) -> list[Medium | None]:
    """What `draw` makes of numbered items, all together; None for one whose values are not finite, and then each is drawn alone."""
    try:
        return list(draw(list(numbers)))
    except NotFinite:
        if len(numbers) == 1:
            return [None]
    return [medium for number in numbers for medium in drawn(draw, [number])]


def wav_bytes(medium: Medium | None) -> bytes:
    """The .wav of an audio clip; b"" where there is none that a file can hold."""
    try:
        return b"" if medium is None else wav(medium.data, medium.rate_hz)
    except NotFinite:
        return b""


def texts_heard(judge: SpeechJudge, files: Sequence[bytes]) -> list[str | None]:
    """What the judge of spoken words writes down of each audio file, all together; None for one that it cannot read."""
    mels = [attempt(partial(judge.mel, data))[0] for data in files]
    texts = iter(judge.transcribed([mel for mel in mels if mel is not None]))
    return [None if mel is None else next(texts) for mel in mels]


def unreadable(made_as: Iterable[str], read: Iterable[str]) -> dict[str, int]:
    """Condition -> how many media were made under it and cannot be read; those of 0 are not there. made_as, read: a condition for each medium."""
    return dict(Counter(made_as) - Counter(read))
