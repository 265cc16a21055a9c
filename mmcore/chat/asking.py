"""Asking: the ways in which a caption is asked for, whose states stage 2 learns from.

Owns the templates' choice and Asking, a request with what stands before it in its conversation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mmcore.chat.wordings import REQUESTS
from mmcore.types import Said


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """One way to ask for a caption: a request alone, or at the end of a conversation about at most one medium."""

    text: Said
    before: tuple[tuple[Said, Said], ...] = ()
    """(question, answer)s that stand before the request."""
    modality: str = "text"
    """What the conversation is about; it stands before the first question that is asked, where none shows it."""
    key: str = ""
    """Sample whose medium it is about; "" for text."""
    caption: str | None = None
    """The caption turn about that medium; None without one."""
    system: str = ""
    """What the system says before all of it."""
    said: str = ""
    """What the answer says before it gives the medium."""

    @property
    def alone(self) -> bool:
        """True when nothing stands before the request."""
        return not self.before and self.modality == "text" and not self.system


def request(modality: str, caption: str, variant: int = 0) -> str:
    """A caption as a request. Variant 0 is the plainest wording; the others go round the rest, beginning where a hash of the caption says."""
    wordings = REQUESTS[modality]
    if variant:
        start = int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16)
        return wordings[1 + (start + variant) % (len(wordings) - 1)].format(caption)
    return wordings[0].format(caption)


def plain(modality: str, caption: str, variant: int = 0, restate: bool = False) -> Asking:
    """A request alone, in one of the wordings. restate: the answer says the caption before it gives the medium."""
    return Asking(text=request(modality, caption, variant), said=caption if restate else "")


def askings(modality: str, caption: str, written: list[Asking], most: int, restate: bool = False) -> list[Asking]:
    """At most `most` distinct ways: the plainest wording, those that instructions wrote, then the other wordings."""
    wordings = [plain(modality, caption, variant, restate) for variant in range(len(REQUESTS[modality]))]
    return list(dict.fromkeys([wordings[0], *written, *wordings]))[:most]
