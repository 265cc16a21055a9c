"""Room: which captions, in the ways they are asked for, the language model of a states step can read.

Input: the step's context, an Asking. Output: whether the rows that mmcore.training.signals makes of it are short enough. Raises ValueError for a language model
that needs code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.step import StepContext
from mmcore.chat.asking import Asking, plain
from mmcore.chat.chat import Chat
from mmcore.chat.places import spelled
from mmcore.chat.special_tokens import MEDIA, TokenTable
from mmcore.lm.language_model import load_tokenizer, longest_of
from mmcore.projectors.inputs import num_projected
from mmcore.training.drawn import FeatureSource
from mmcore.training.signals import exchange_row, signal_row
from mmcore.types import TokenRow
from pipelines.training.config import StatesConfig
from pipelines.training.data import feature_sources

_SPARE = 16
"""Tokens that an exchange may have beyond its frame and one per ASCII character, on the safe side."""


def letters(way: Asking) -> int:
    """Of everything that a row says in words, which its tokens grow with."""
    return sum(map(len, _texts(way)))


def _texts(way: Asking) -> tuple[str, ...]:
    return (*(spelled(said) for pair in way.before for said in pair), spelled(way.text), way.caption or "", way.system, way.said)


class Room:
    """What the language model can read of captions and of exchanges in words. What is surely short enough is not tokenized."""

    def __init__(self, ctx: StepContext[StatesConfig]):
        config, lm = ctx.config.model, ctx.inputs["weights_lm"].path / "lm"
        tokenizer = load_tokenizer(lm)
        self._chat = Chat(tokenizer, TokenTable(len(tokenizer), config.tokens), config.chat)
        self._longest, self._projector = longest_of(lm), config.input_projector
        self._features: Mapping[str, FeatureSource] = feature_sources(ctx.inputs, ctx.stores, dict(config.encoders))
        emitted = [modality for modality in MEDIA if self._chat.table.count(modality)]
        rows = [signal_row(self._chat, modality, "", plain(modality, ""))[0] for modality in emitted]
        self._frame = max((len(row.ids) for row in rows), default=0) + max(len(self._chat.caption_prompt(modality, 0)) for modality in MEDIA) + _SPARE

    def takes(self, modality: str, caption: str, way: Asking) -> bool:
        """Whether a caption that is asked for in this way, and its reply in words, are short enough, and there are features of what it is about."""
        tokens = 0
        if way.modality != "text":
            if way.modality not in self._features or way.key not in self._features[way.modality]:
                return False
            tokens = num_projected(self._projector, self._features[way.modality].length(way.key))
        if self._surely((*_texts(way), caption, caption), tokens, len(way.before) + 2):
            return True
        return self._short(signal_row(self._chat, modality, caption, way, tokens)[0])

    def takes_exchange(self, question: str, answer: str) -> bool:
        """Whether an exchange in words is short enough."""
        return self._surely((question, answer), 0, 1) or self._short(exchange_row(self._chat, question, answer)[0])

    def _surely(self, texts: tuple[str, ...], tokens: int, exchanges: int) -> bool:
        if not self._longest:
            return True
        return all(map(str.isascii, texts)) and tokens + sum(map(len, texts)) + exchanges * self._frame <= self._longest

    def _short(self, row: TokenRow) -> bool:
        return int(row.positions.max()) < self._longest
