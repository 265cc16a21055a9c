"""Types that the model, the training data and the generator pass to each other.

Owns plain containers only, and the error of a made medium that no file can hold. Shape letters: B rows of a batch, T tokens of a row, N feature tokens,
E encoder width, S signal tokens, D LM width, Q queries, C conditioning width. A row is one packed sequence: a prefix (segment 0) and segments 1, 2, ... that
each see the prefix and themselves only. Segment -1 is padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from infra.step import AnyloomError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Medium:
    """One generated image, video or audio."""

    modality: str
    data: np.ndarray
    """image: uint8 [height, width, 3]; video: uint8 [frames, height, width, 3]; audio: float32 [samples] in -1..1."""
    rate_hz: float = 0.0
    """video: images per second; audio: samples per second."""


class NotFinite(AnyloomError):
    """A made medium with values that are no finite numbers; no file can hold it."""


IGNORE = -100
"""Target of a position that predicts nothing."""

PADDING = -1
"""Segment of a padding position."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A medium in its place among the words of a turn: shown to the model in a question, to be made by it in an answer."""

    modality: str
    tokens: int = 0
    """Projected tokens that it becomes in a question; 0 until its features are known."""


Said = str | tuple[str | Shown, ...]
"""What one turn says. A text is words and nothing else, whatever names stand in it; with media it is their pieces in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One media group of the training data."""

    key: str
    source: str
    """Dataset name."""
    modality: str
    """Input media: text, image, video or audio."""
    texts: tuple[str, ...] = ()
    """Captions."""
    conversations: tuple[tuple[Said, Said], ...] = ()
    """(human, gpt) pairs in order. Where no question shows the input medium, it stands before the first."""
    system: str = ""
    """Words of the system's turn before the conversation; "" without one."""
    media_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One packed row before collation; all arrays have T entries."""

    ids: np.ndarray
    """int64 token ids; placeholder tokens where projected features go."""
    targets: np.ndarray
    """int64: the id that this position must predict, or IGNORE."""
    weights: np.ndarray
    """float32 weight of each target's cross-entropy; 0 where there is none."""
    segments: np.ndarray
    """int64 segment numbers."""
    positions: np.ndarray
    """int64 position ids; every segment goes on from the end of the prefix."""
    groups: np.ndarray
    """int64: which loss part a target is logged under (index into the caller's names); 0 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaBatch:
    """Features of one modality in a batch, in the order of their rows."""

    features_BNE: torch.Tensor
    """float32, zero-padded."""
    lengths_B: torch.Tensor
    """int64 feature tokens of each item."""
    rows_B: torch.Tensor
    """int64 row of the batch that each item belongs to, ascending."""

    def to(self, device: torch.device) -> MediaBatch:
        """The same on a device."""
        return MediaBatch(features_BNE=self.features_BNE.to(device), lengths_B=self.lengths_B.to(device), rows_B=self.rows_B.to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Collated rows."""

    ids_BT: torch.Tensor
    targets_BT: torch.Tensor
    weights_BT: torch.Tensor
    segments_BT: torch.Tensor
    positions_BT: torch.Tensor
    groups_BT: torch.Tensor
    numbers_B: torch.Tensor | None = None
    """int64 place of each row's sample in the step's global batch; None: its place in this one."""
    media: Mapping[str, MediaBatch] = field(default_factory=dict)
    """modality -> its features."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = {item.name: value.to(device) for item in fields(self) if item.name != "media" and (value := getattr(self, item.name)) is not None}
        return Batch(**tensors, media={modality: part.to(device) for modality, part in self.media.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One thing to answer, about at most one medium."""

    text: str
    media_key: str = ""
    """Questions with equal keys share one medium and its prefix work; "" without media."""
    modality: str | None = None
    features_NE: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of streamed text."""

    text: str


@dataclass(frozen=True, slots=True)
class SignalBlock:
    """A complete block of signal tokens: what a decoder turns into a medium."""

    modality: str
    conditioning_QC: torch.Tensor
    """float32 conditioning made by the output projector, on the CPU."""


@dataclass(frozen=True, slots=True)
class BrokenBlock:
    """Signal tokens that made no whole block; only where blocks are not completed."""

    reason: str
    """What was wrong, one line."""


Event = TextPiece | SignalBlock | BrokenBlock


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model said to one Question."""

    text: str
    caption: str | None
    """The self-written caption that stood before the question; None without a caption turn."""
    token_ids: tuple[int, ...]
    """Generated ids, the end token included when it came."""
    num_input_tokens: int
    """Tokens the model read before its first answer token."""
    blocks: tuple[SignalBlock, ...] = ()
    broken: tuple[str, ...] = ()
    """What was wrong with signal tokens that made no whole block; empty when blocks are completed, unless the model's context ended within one."""
    finish: str = "end"
    """Why it ends: `end` (the end token), `length` (the limit of tokens, or the model's context), `stop` (a stop string), `too_long` (the question is longer
    than the context: the model has not read it, and there is no text)."""

    @property
    def unread(self) -> bool:
        """True where there is no answer to judge: the question was not read, or the limit came before anything was said."""
        return self.finish == "too_long" or (self.finish == "length" and not self.text and not self.blocks)
