"""ChatData: the training data of stages 1 and 3, step by step.

Turns the samples of a step (captions or conversations, with or without media) into collated batches and their loss. Input: samples by
dataset, a feature source per modality, the stage's config; with generation losses in stage 1 also their half (mmcore.training.caption_generation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmcore.chat.chat import Chat, question_text
from mmcore.chat.rows import Turn
from mmcore.chat.special_tokens import placeholder
from mmcore.config import RowsStage
from mmcore.lm.token_nll import token_nll
from mmcore.model.any_model import AnyModel
from mmcore.projectors.inputs import num_projected
from mmcore.training.batching import YES_NO, Schedule, answer_weights, coin, collate, deal, share
from mmcore.training.drawn import Drawn, FeatureSource, media_of
from mmcore.training.losses import StepLoss, modality_sums, parts_by_modality, weighted_nll
from mmcore.types import IGNORE, Batch, Sample, TokenRow

if TYPE_CHECKING:
    from mmcore.training.caption_generation import CaptionGeneration

MICROBATCH = 16
"""Rows of one forward pass. Fixed: it decides the rounding."""

TOKENS = "tokens"
"""Logged part: every supervised token, unweighted."""


def _check_placeholders(sample: Sample) -> None:
    """Raises ValueError for a conversation whose questions name the sample's one medium several times."""
    if sample.modality == "text":
        return
    name = placeholder(sample.modality)
    named = sum(human.count(name) for human, _ in sample.conversations)
    if named > 1:
        raise ValueError(f"sample {sample.key} names {name} {named} times but a training row takes 1 {sample.modality}: split the record or leave it out")


class ChatData:
    """samples: dataset -> its samples in stored order; features: modality -> source; captions: media sha256 -> caption of the caption turn; generation: the
    generation losses of captions (stage 1).

    Raises ValueError for a conversation that names its medium more than once: the prefix of a row holds it once.
    """

    def __init__(
        self,
        config: RowsStage,
        chat: Chat,
        samples: Mapping[str, Sequence[Sample]],
        features: Mapping[str, FeatureSource],
        projector: Any,
        captions: Mapping[str, str] | None = None,
        generation: CaptionGeneration | None = None,
    ):
        self.config, self.chat, self.samples, self.features, self.projector = config, chat, samples, features, projector
        self.captions, self.generation = captions or {}, generation
        self.schedule = Schedule({name: len(rows) for name, rows in samples.items()}, config.mixture, config.steps * config.batch, config.seed)
        names = [name for name, _ in config.mixture]
        for name in names:
            for sample in samples[name]:
                _check_placeholders(sample)
        self.weights = {name: answer_weights(samples[name]) for name in names} if config.balance_answers else {}
        generated = generation.part_names if generation is not None else ()
        tokens = parts_by_modality((TOKENS,), sorted({sample.modality for name in names for sample in samples[name]}))
        self.part_names = ("caption_turn", *names, *(f"{name}_yes_no" for name in names), *tokens, *generated)
        """Logged parts of the loss: by dataset (index = group number of a target), then all tokens, by the medium that their row reads where there are several.
        Those of the generation losses stand last."""

    def cursor(self, step: int) -> dict[str, int]:
        """Samples drawn of each dataset after `step` steps."""
        return self.schedule.seen(step * self.config.batch)

    def losses(self, model: AnyModel, step: int, rank: int, world: int) -> Iterator[StepLoss]:
        """The loss of each microbatch of this rank's share of a step."""
        model.set_draw((self.config.seed << 32) + step)
        try:
            for drawn, batch in self._drawn(step, rank, world):
                batch = batch.to(model.device)
                hidden_BTD = model(batch)
                where = batch.targets_BT != IGNORE
                nll_P = token_nll(model.lm, hidden_BTD[where], batch.targets_BT[where])
                loss = weighted_nll(nll_P, batch.weights_BT[where], batch.groups_BT[where], len(self.part_names))
                loss = replace(loss, parts=loss.parts + self._by_modality(nll_P.detach(), where, drawn))
                if self.generation is not None:
                    captions = {row: self._caption(item) for row, item in enumerate(drawn) if self._generated(item.sample)}
                    loss = self.generation.added(loss, model, hidden_BTD, batch, drawn, captions, step)
                yield loss
        finally:
            model.set_draw(None)

    def _by_modality(self, nll_P: torch.Tensor, where_BT: torch.Tensor, drawn: Sequence[Drawn]) -> torch.Tensor:
        """[G, 2] sums and counts of the supervised positions' cross-entropy by the medium that their row reads. where: P positions are True."""
        rows_P = where_BT.nonzero()[:, 0]
        sums = torch.zeros(len(self.part_names), 2, dtype=torch.float64, device=nll_P.device)
        for modality in sorted({item.sample.modality for item in drawn}):
            reads_B = torch.tensor([item.sample.modality == modality for item in drawn], device=nll_P.device)
            sums += modality_sums(self.part_names, modality, {TOKENS: nll_P[reads_B[rows_P]]})
        return sums

    def batches(self, step: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Collated microbatches of a rank's share of a step."""
        for _, batch in self._drawn(step, rank, world):
            yield batch

    def _drawn(self, step: int, rank: int, world: int) -> Iterator[tuple[list[Drawn], Batch]]:
        """(samples, their batch) of each microbatch of a rank's share of a step."""
        mine = list(share(self.config.batch, rank, world))
        for start in range(0, len(mine), MICROBATCH):
            numbers = mine[start : start + MICROBATCH]
            slots = [self.schedule.slot(step * self.config.batch + number) for number in numbers]
            drawn = [Drawn(self.samples[slot.dataset][slot.index], slot.visit, number) for slot, number in zip(slots, numbers, strict=True)]
            media = media_of(self.features, [(item.sample.modality, item.sample.key) for item in drawn])
            lengths = {row: int(length) for _, all_lengths, rows in media.values() for row, length in zip(rows, all_lengths.tolist(), strict=True)}
            yield drawn, collate([self.row(item.sample, item.visit, lengths.get(i, 0)) for i, item in enumerate(drawn)], media)

    def _generated(self, sample: Sample) -> bool:
        """True for a caption whose signal block has generation losses."""
        return self.generation is not None and not sample.conversations and sample.modality in self.generation.modalities

    def _caption(self, item: Drawn) -> str:
        """The caption that a sample shows on this visit."""
        return deal(item.sample.texts, 1, self.config.seed, item.sample.key, item.visit)[0]

    def row(self, sample: Sample, visit: int, num_features: int) -> TokenRow:
        """The packed row of a sample on its visit-th visit."""
        tokens = num_projected(self.projector, num_features) if num_features else 0
        if sample.conversations:
            return self._question_row(sample, visit, tokens)
        if not sample.texts or sample.modality == "text":
            raise ValueError(f"sample {sample.key} has neither a conversation nor a caption of a medium: it cannot be trained on")
        caption = self._caption(Drawn(sample, visit, 0))
        return self.chat.caption_row(sample.modality, tokens, caption, self._group(sample.source), block=self._generated(sample))

    def _group(self, name: str) -> int:
        return self.part_names.index(name)

    def _question_row(self, sample: Sample, visit: int, tokens: int) -> TokenRow:
        config, dialogue = self.config, sample.source in self.config.dialogues
        pairs = sample.conversations if dialogue else deal(sample.conversations, config.questions, config.seed, sample.key, visit)
        turns = []
        for human, gpt in pairs:
            question = question_text(human, sample.modality)
            weight = self.weights.get(sample.source, {}).get((question, gpt), 1.0)
            group = self._group(f"{sample.source}_yes_no" if gpt.lower() in YES_NO else sample.source)
            turns.append(Turn(question, gpt, weight, group))
        return self.chat.question_row(sample.modality, tokens, turns, self._caption_turn(sample, visit), dialogue)

    def _caption_turn(self, sample: Sample, visit: int) -> str | None:
        """The caption that stands before this visit's questions, or None for the plain prompt."""
        if not self.config.caption_turn or sample.modality == "text" or coin(self.config.plain_share, self.config.seed, sample.key, visit):
            return None
        return self.captions.get(sample.media_sha256)
