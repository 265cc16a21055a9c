"""The one table of tokens we add to a language model.

Placeholder tokens (<image>, <video>, <audio>) mark where projected features go; they are read, never emitted, and own no row.
Signal tokens (<image_00>, <image_01>, ...) are emitted, in this order, to drive a decoder; each owns an input row and a head row.
New ids are appended after the LM's embedding matrix: signal tokens first, so that column V+i of the logits is token id V+i, then
the placeholders. Each is one whole token that no text can spell: a name in a text is words (mmcore.chat.places says where media stand).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import SpecialTokens

MEDIA = ("image", "video", "audio")


def placeholder(modality: str) -> str:
    """Name of a modality's placeholder token, as it stands in conversations."""
    return f"<{modality}>"


@dataclass(frozen=True)
class TokenTable:
    """Ids of the new tokens over an LM with `base` embedding rows."""

    base: int
    """V, rows of the LM's embedding matrix (not the tokenizer's length: matrices are often padded)."""
    counts: SpecialTokens

    @property
    def names(self) -> tuple[str, ...]:
        """All new tokens in id order."""
        signals = tuple(f"<{modality}_{i:02d}>" for modality in MEDIA for i in range(self.count(modality)))
        return signals + tuple(placeholder(modality) for modality in MEDIA)

    def count(self, modality: str) -> int:
        """S, signal tokens of a modality; 0 means it cannot be emitted."""
        return int(getattr(self.counts, modality))

    @property
    def num_signals(self) -> int:
        """Signal tokens of all modalities: new rows of the LM's input and head."""
        return sum(self.count(modality) for modality in MEDIA)

    def placeholder_id(self, modality: str) -> int:
        """Id of a modality's placeholder."""
        return self.base + self.num_signals + MEDIA.index(modality)

    def signal_ids(self, modality: str) -> tuple[int, ...]:
        """Ids of a modality's block, in order."""
        start = self.base + sum(self.count(other) for other in MEDIA[: MEDIA.index(modality)])
        return tuple(range(start, start + self.count(modality)))

    def modality_of(self, token_id: int) -> str | None:
        """The modality whose signal token this is; None for any other token."""
        return next((modality for modality in MEDIA if token_id in self.signal_ids(modality)), None)

    def block(self, modality: str) -> tuple[int, ...]:
        """The whole block of a modality. Raises ValueError when the recipe gives it no signal tokens."""
        ids = self.signal_ids(modality)
        if not ids:
            raise ValueError(f"the model is asked to emit {placeholder(modality)}, but the recipe has 0 signal tokens for it: set tokens.{modality}")
        return ids
