"""Generation losses in stage 1: a caption is followed by its modality's signal block, and the frozen output side says how well that drives the decoder.

The language model reads a medium, says its caption, and goes on with the signal block; the block's hidden states go through the output projector that an
earlier stage 2 trained, and alignment with the caption's targets (and the frozen decoder's denoising error of the medium itself) is added to the caption's
cross-entropy. Output projectors, language model and decoder are frozen, so the gradient reaches the input projectors only. Owns these losses and their
weight beside the tokens'. Input: a batch with its hidden states; output: a StepLoss.

The losses of a sample count once for each of its supervised tokens: a step is divided by its global number of tokens, so generation_loss compares them
with the cross-entropy of one token, whatever the lengths of captions and the number of ranks.

Shape letters: B rows, T tokens, S signal tokens, D LM width, Q queries and C width of the conditioning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mmcore.config import RowsStage
from mmcore.model.any_model import AnyModel
from mmcore.projectors.outputs import OutputProjector
from mmcore.training.drawn import Drawn, FeatureSource
from mmcore.training.generation_loss import GenerationLoss, Places
from mmcore.training.losses import StepLoss, alignment, modality_sums, parts_by_modality
from mmcore.training.targets import DENOISING, fit_targets, padded_targets
from mmcore.types import Batch

PARTS = ("alignment", "mean_predictor")


class CaptionGeneration:
    """captions: modality -> every caption of the stage; targets: modality -> theirs; denoised: per modality, needed when config.denoise_loss is not 0."""

    def __init__(
        self,
        config: RowsStage,
        model: AnyModel,
        captions: Mapping[str, Sequence[str]],
        targets: Mapping[str, FeatureSource],
        denoised: Mapping[str, GenerationLoss] | None = None,
    ):
        """Raises ValueError for a modality that the model does not emit, or without a decoder and latents where they are asked for, or of targets of another
        width."""
        self.config, self.targets = config, {modality: targets[modality] for modality in captions}
        self.denoised = dict(denoised or {}) if config.denoise_loss else {}
        self.modalities = tuple(sorted(captions))
        self.part_names = parts_by_modality((*PARTS, DENOISING) if config.denoise_loss else PARTS, self.modalities)
        self._costs: dict[str, float] = {}
        for modality in self.modalities:
            if modality not in model.output_projectors:
                raise ValueError(f"generation losses of {modality} need signal tokens: set tokens.{modality}, or generation_loss to 0")
            if config.denoise_loss and modality not in self.denoised:
                raise ValueError(f"stage 1 has a denoising loss and captions for {modality}, but no {modality} decoder with latents")
            mean_QC = self._mean(model, modality)
            target_mean_QC, _, cost = fit_targets(self.targets[modality], captions[modality], len(mean_QC))
            if target_mean_QC.shape != mean_QC.shape:
                raise ValueError(f"the {modality} targets have {target_mean_QC.shape[1]} channels, the output projector makes {mean_QC.shape[1]}: set out")
            self._costs[modality] = max(cost, 1e-6)

    @staticmethod
    def _mean(model: AnyModel, modality: str) -> torch.Tensor:
        """[Q, C] the mean that stage 2 fitted: what a projector without any caption would say."""
        projector = model.output_projectors[modality]
        assert isinstance(projector, OutputProjector)
        return projector.mean_QC

    def added(
        self, loss: StepLoss, model: AnyModel, hidden_BTD: torch.Tensor, batch: Batch, drawn: Sequence[Drawn], captions: Mapping[int, str], step: int
    ) -> StepLoss:
        """The loss of a batch with the generation losses of the rows that `captions` names added. Its parts are the last of loss.parts."""
        total, own = loss.total, torch.zeros(len(self.part_names), 2, dtype=torch.float64)
        weights_B = batch.weights_BT.sum(1)
        for modality in self.modalities:
            rows = [row for row in sorted(captions) if drawn[row].sample.modality == modality]
            if not rows:
                continue
            places = Places(tuple(drawn[row].sample.key for row in rows), step, tuple(drawn[row].number for row in rows))
            hidden_BSD = self._block(model, modality, hidden_BTD[rows], batch.ids_BT[rows])
            values = self._values(model, modality, hidden_BSD, [captions[row] for row in rows], places)
            each_B = self.config.align_loss * values["alignment"]
            if DENOISING in values:
                each_B = each_B + self.config.denoise_loss * values[DENOISING]
            total = total + self.config.generation_loss * (each_B * weights_B[rows]).sum()
            own += modality_sums(self.part_names, modality, values).cpu()
        parts = loss.parts.clone()
        parts[len(parts) - len(own) :] += own.to(parts.device)
        return replace(loss, total=total, parts=parts)

    def _block(self, model: AnyModel, modality: str, hidden_BTD: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        """[B, S, D] hidden states at the signal tokens of rows that hold one block each."""
        block = model.lm.table.block(modality)
        inside_BT = (ids_BT >= block[0]) & (ids_BT <= block[-1])
        return hidden_BTD[inside_BT].view(len(ids_BT), len(block), -1)

    def _values(self, model: AnyModel, modality: str, hidden_BSD: torch.Tensor, captions: Sequence[str], places: Places) -> dict[str, torch.Tensor]:
        """[B] of each part; alignment and mean_predictor in units of what the mean of the stage's own captions costs."""
        mean_QC, cost = self._mean(model, modality), self._costs[modality]
        conditioning_BQC = model.conditioning(modality, hidden_BSD)
        target_BQC = padded_targets(self.targets[modality], captions, len(mean_QC)).to(conditioning_BQC.device)
        values = {
            "alignment": alignment(conditioning_BQC, target_BQC) / cost,
            "mean_predictor": alignment(mean_QC.expand_as(target_BQC), target_BQC) / cost,
        }
        if self.denoised:
            values[DENOISING] = self.denoised[modality](conditioning_BQC, places)
        return values
