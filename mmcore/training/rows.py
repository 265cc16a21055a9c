"""ChatData: the training data of stages 1 and 3, step by step.

Turns the samples of a step (captions or conversations, with or without media) into collated batches and their loss. Input: samples by
dataset, a feature source per modality, the stage's config; with generation losses in stage 1 also their half (mmcore.training.caption_generation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmcore.chat.chat import Chat, independent
from mmcore.chat.places import rest_of, spelled
from mmcore.chat.rows import Turn
from mmcore.config import RowsStage
from mmcore.lm.token_nll import token_nll
from mmcore.model.any_model import AnyModel
from mmcore.projectors.inputs import num_projected
from mmcore.training.batching import Schedule, answer_weights, coin, collate, deal, deal_questions, says_yes_no, share
from mmcore.training.drawn import Drawn, FeatureSource, media_of
from mmcore.training.losses import StepLoss, modality_sums, parts_by_modality, weighted_nll
from mmcore.types import IGNORE, Batch, Sample, TokenRow

if TYPE_CHECKING:
    from mmcore.training.caption_generation import CaptionGeneration

MICROBATCH = 16
"""Rows of one forward pass. Fixed: it decides the rounding."""

TOKENS = "tokens"
"""Logged part: every supervised token, unweighted."""


class ChatData:
    """samples: dataset -> its samples in stored order; features: modality -> source; captions: media sha256 -> caption of the caption turn; generation: the
    generation losses of captions (stage 1); routed: the model has LoRA adapters per modality.
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
        routed: bool = False,
    ):
        self.config, self.chat, self.samples, self.features, self.projector = config, chat, samples, features, projector
        self.captions, self.generation, self.routed = captions or {}, generation, routed
        self.schedule = Schedule({name: len(rows) for name, rows in samples.items()}, config.mixture, config.steps * config.batch, config.seed)
        names = [name for name, _ in config.mixture]
        self.weights = {name: answer_weights(samples[name]) for name in names} if config.balance_answers else {}
        generated = generation.part_names if generation is not None else ()
        tokens = parts_by_modality((TOKENS,), sorted({sample.modality for name in names for sample in samples[name]}))
        self.part_names = ("caption_turn", *names, *(f"{name}_yes_no" for name in names), *tokens, *generated)
        """Logged parts of the loss: by dataset (index = group number of a target), then all tokens, by the medium that their row reads where there are several.
        Those of the generation losses stand last."""

    def cursor(self, step: int) -> dict[str, int]:
        """Samples drawn of each dataset after `step` steps."""
        return self.schedule.seen(step * self.config.batch)

    def keys(self, step: int) -> list[str]:
        """The samples of a step, over all ranks."""
        return self.schedule.keys(self.samples, range(step * self.config.batch, (step + 1) * self.config.batch))

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
            yield drawn, collate([self.row(item.sample, item.visit, lengths.get(i, 0)) for i, item in enumerate(drawn)], media, numbers)

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
        config, pairs = self.config, sample.conversations
        dialogue = sample.source in config.dialogues or not independent([human for human, _ in pairs])
        if not dialogue:
            pairs = tuple(deal_questions([(rest_of(human), gpt) for human, gpt in pairs], config.questions, config.seed, sample.key, visit))
        weights, turns = self.weights.get(sample.source, {}), []
        for human, gpt in pairs:
            weight = weights.get((spelled(human), gpt), 1.0) if isinstance(gpt, str) else 1.0
            group = self._group(f"{sample.source}_yes_no" if says_yes_no(gpt) else sample.source)
            turns.append(Turn(human, gpt, weight, group))
        return self.chat.question_row(sample.modality, tokens, turns, self._caption_turn(sample, visit), dialogue, system=sample.system, routed=self.routed)

    def _caption_turn(self, sample: Sample, visit: int) -> str | None:
        """The caption that stands before this visit's questions, or None for the plain prompt."""
        if not self.config.caption_turn or sample.modality == "text" or coin(self.config.plain_share, self.config.seed, sample.key, visit):
            return None
        return self.captions.get(sample.media_sha256)
