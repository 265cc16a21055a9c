"""Fitting: which samples the rows of a stage can hold, known before its first step.

Owns what becomes of a sample that cannot be trained on as it is: a conversation or caption longer than the language model's context (by the stage's
`too_long`), a medium without features, an answer that gives what the model cannot emit, nothing to learn. Input: samples by dataset. Output: those that fit,
and a LeftOut for every other. Raises ValueError when too many are lost, with the reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mmcore.chat.chat import Chat, independent
from mmcore.chat.places import counted, rest_of, shown
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import InputProjectorSpec, RowsStage
from mmcore.projectors.inputs import num_projected
from mmcore.stores.left_out import CUT, LEFT_OUT, NO_FEATURES, LeftOut, summarize, too_many
from mmcore.training.drawn import FeatureSource
from mmcore.types import Said, Sample

TOO_LONG, NO_SIGNAL_TOKENS, NOTHING = "too_long", "no_signal_tokens", "nothing_to_learn"
SEVERAL_MEDIA = "several_media"
REASONS = (TOO_LONG, NO_FEATURES, NO_SIGNAL_TOKENS, NOTHING, SEVERAL_MEDIA)
"""Why a stage leaves samples out or cuts them, beside the reasons of mmcore.stores.shards."""
_NOT_TRAINED = "records are not trained on"
_SPARE = 8
"""Tokens that a text may have beyond one per ASCII character, on the safe side."""


class Fitting:
    """features: modality -> source; captions: media sha256 -> caption of the caption turn; longest: tokens of the longest row, 0 without a limit; blocks:
    modalities whose captions are followed by their signal block."""

    def __init__(
        self,
        config: RowsStage,
        chat: Chat,
        features: Mapping[str, FeatureSource],
        projector: InputProjectorSpec,
        captions: Mapping[str, str],
        longest: int,
        blocks: Collection[str] = (),
    ):
        self._config, self._chat, self._features, self._projector = config, chat, features, projector
        self._captions, self._longest, self._blocks = captions, longest, blocks
        frame = len(chat.question_prompt("x")) + len(chat.close()) + max(len(chat.caption_prompt(modality, 0)) for modality in MEDIA)
        self._frame = frame + chat.table.num_signals + _SPARE

    def samples(self, found: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, list[Sample]], list[LeftOut]]:
        """dataset -> the samples that fit, cut where need be, in their order; and what became of the others."""
        kept: dict[str, list[Sample]] = {name: [] for name in found}
        lost: list[LeftOut] = []
        for name, samples in found.items():
            for sample in samples:
                fit, problem = self.fit(sample)
                kept[name] += [] if fit is None else [fit]
                if problem is not None:
                    status = LEFT_OUT if fit is None else CUT
                    lost.append(LeftOut(key=sample.key, source=sample.source, status=status, reason=problem[0], detail=problem[1]))
        return kept, lost

    def fit(self, sample: Sample) -> tuple[Sample | None, tuple[str, str] | None]:
        """(the sample, or what of it fits, or None; reason and detail when it is not all of it)."""
        problem = self._unusable(sample)
        if problem is not None:
            return None, problem
        tokens = 0
        if sample.modality != "text" and self._longest:
            tokens = num_projected(self._projector, self._features[sample.modality].length(sample.key))
        if not self._longest or self._at_most(sample, tokens) <= self._longest:
            return sample, None
        kept, longest = self._conversation(sample, tokens) if sample.conversations else self._texts(sample, tokens)
        if kept == sample:
            return sample, None
        problem = TOO_LONG, f"it makes a row of {longest} tokens, the language model takes at most {self._longest}"
        return (kept if self._config.too_long == CUT else None), problem

    def _unusable(self, sample: Sample) -> tuple[str, str] | None:
        """(reason, detail) of a sample of which nothing can be trained on, whatever its length."""
        if not sample.conversations and (not sample.texts or sample.modality == "text"):
            return NOTHING, "it has neither a conversation nor a caption of a medium"
        if sample.modality != "text" and (sample.modality not in self._features or sample.key not in self._features[sample.modality]):
            return NO_FEATURES, f"this step has no {sample.modality} features of it: give it embed_{sample.modality}"
        for medium in (one for _, answer in sample.conversations for one in shown(answer)):
            if not self._chat.table.count(medium.modality):
                return NO_SIGNAL_TOKENS, f"an answer gives a medium, but the recipe has 0 signal tokens for it: set tokens.{medium.modality}"
        return None

    def _caption(self, sample: Sample) -> str | None:
        return self._captions.get(sample.media_sha256) if self._config.caption_turn and sample.modality != "text" else None

    def _at_most(self, sample: Sample, tokens: int) -> float:
        """No row of the sample has more tokens: found without tokenizing where all is ASCII, else no bound."""
        texts = [sample.system, self._caption(sample) or "", *sample.texts]
        texts += [piece for pair in sample.conversations for said in pair for piece in ((said,) if isinstance(said, str) else said) if isinstance(piece, str)]
        if not all(map(str.isascii, texts)):
            return float("inf")
        media = sum(len(shown(answer)) for _, answer in sample.conversations)
        return tokens + sum(map(len, texts)) + _SPARE * len(texts) + (len(sample.conversations) + 2) * self._frame + media * self._chat.table.num_signals

    def _texts(self, sample: Sample, tokens: int) -> tuple[Sample | None, int]:
        """(the sample with the captions that fit, or None; tokens of the longest row)."""
        block = sample.modality in self._blocks
        lengths = [len(self._chat.caption_row(sample.modality, tokens, text, block=block).ids) for text in sample.texts]
        texts = tuple(text for text, length in zip(sample.texts, lengths, strict=True) if length <= self._longest)
        return (replace(sample, texts=texts) if texts else None), max(lengths)

    def _conversation(self, sample: Sample, tokens: int) -> tuple[Sample | None, int]:
        """(the sample with the exchanges that fit, or None; tokens of the longest row)."""
        medium = [] if sample.modality == "text" else [(sample.modality, tokens)]
        pairs, caption = sample.conversations, self._caption(sample)
        questions = [question for question, _ in pairs]
        if sample.source in self._config.dialogues or not independent(questions):
            lengths = self._lengths(counted(questions, medium), [answer for _, answer in pairs], caption, sample.system)
            kept = pairs[: sum(length <= self._longest for length in lengths)]
            if not kept or (any(map(shown, questions)) and not any(shown(question) for question, _ in kept)):  # its medium was cut off
                return None, lengths[-1]
            return replace(sample, conversations=kept), lengths[-1]
        lengths = [self._lengths(counted([rest_of(question)], medium), [answer], caption, sample.system)[0] for question, answer in pairs]
        if max(lengths) <= self._longest:
            return sample, max(lengths)
        kept = tuple((rest_of(question), answer) for (question, answer), length in zip(pairs, lengths, strict=True) if length <= self._longest)
        return (replace(sample, conversations=kept) if kept else None), max(lengths)

    def _lengths(self, questions: Sequence[Said], answers: Sequence[Said], caption: str | None, system: str) -> list[int]:
        """Tokens of a conversation up to the end of each of its answers."""
        found, length = [], 0
        for part in self._chat.conversation(list(zip(questions, answers, strict=True)), caption, system):
            length += len(part.ids)
            found += [length] if part.answers is not None and part.answers >= 0 else []
        return found


def ledger_lines(lost: Sequence[LeftOut], total: int) -> list[str]:
    """One line for the records that are left out, one for those that are cut: how many, why, and the first of them."""
    left, cut = ([one for one in lost if one.status == status] for status in (LEFT_OUT, CUT))
    return summarize(left, total, _NOT_TRAINED) + summarize(cut, total, "records are cut")


def check_lost(lost: Sequence[LeftOut], kept: Mapping[str, Sequence[Sample]], allowed: float) -> None:
    """Raises ValueError when a larger share than `allowed` of all samples is left out, or all of a dataset."""
    gone = [one for one in lost if one.status == LEFT_OUT]
    problem = too_many(gone, len(gone) + sum(map(len, kept.values())), allowed, _NOT_TRAINED)
    if problem:
        raise ValueError(problem)
    for name, samples in kept.items():
        mine = [one for one in gone if one.source == name]
        if mine and not samples:
            raise ValueError(f"the mixture names {name}: {summarize(mine, len(mine), _NOT_TRAINED)[0]}; mend its list, or leave it out of the mixture")
