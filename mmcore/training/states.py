"""SignalData: the training data and loss of stage 2, from cached states and caption targets.

Per caption: token loss (cross-entropy of the signal tokens, and "no signal token" at negative positions) plus alignment (mean distance to
the decoder's text-encoder states, divided by what the mean predictor costs, so 1 is worthless and 0 perfect) plus, where the stage's denoise_loss is not 0,
what the frozen decoder says about the captioned medium under that conditioning (mmcore.training.generation_loss).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from mmcore.config import StatesStage
from mmcore.model.any_model import signal_rows
from mmcore.stores.left_out import CUT, LEFT_OUT, LeftOut
from mmcore.training.batching import Schedule, deal, share
from mmcore.training.drawn import FeatureSource
from mmcore.training.fitting import TOO_LONG
from mmcore.training.generation_loss import GenerationLoss, Places
from mmcore.training.losses import StepLoss, alignment, modality_sums, parts_by_modality, signal_nll
from mmcore.training.signals import SignalSide, StateSet, caption_key
from mmcore.training.targets import CHUNK, DENOISING, fit_targets, padded_targets
from mmcore.types import Sample

MICROBATCH = 64
"""Captions of one forward pass. Fixed: it decides the rounding."""

DENOISED_MICROBATCH = 8
"""The same with denoise_loss: a decoder's activations are kept for every caption."""

PARTS = ("signal_tokens", "negatives", "alignment", "mean_predictor")

_FIT_CAPTIONS = 2048
"""Captions whose states standardise a projector's input."""


def with_states(samples: Mapping[str, Sequence[Sample]], modalities: Mapping[str, str], states: StateSet) -> tuple[dict[str, list[Sample]], list[LeftOut]]:
    """dataset -> its samples with the captions that have states, and the samples that have none of these: what was too long has none."""
    kept: dict[str, list[Sample]] = {}
    lost = []
    for name, rows in samples.items():
        kept[name] = []
        for sample in rows:
            texts = tuple(text for text in sample.texts if caption_key(modalities[name], text) in states)
            status = LEFT_OUT if not texts else CUT
            if texts != sample.texts:
                detail = "its captions have no states: they are longer than the language model's context"
                lost.append(LeftOut(key=sample.key, source=name, status=status, reason=TOO_LONG, detail=detail))
            kept[name] += [replace(sample, texts=texts)] if texts else []
    return kept, lost


class SignalData:
    """samples: dataset -> its captioned samples; modalities: dataset -> the modality that its captions ask for; targets: per modality; denoised: per modality,
    needed when config.denoise_loss is not 0.

    part_names: PARTS and `denoising` over all captions; with several modalities also `<part>_<modality>` of each.
    """

    def __init__(
        self,
        config: StatesStage,
        side: SignalSide,
        samples: Mapping[str, Sequence[Sample]],
        modalities: Mapping[str, str],
        states: StateSet,
        targets: Mapping[str, FeatureSource],
        denoised: Mapping[str, GenerationLoss] | None = None,
    ):
        """Raises ValueError for a modality without targets, or without a decoder and latents where they are asked for, or targets of another width."""
        self.config, self.samples, self.modalities, self.states, self.targets = config, samples, modalities, states, targets
        self.denoised = dict(denoised or {}) if config.denoise_loss else {}
        self._microbatch = DENOISED_MICROBATCH if config.denoise_loss else MICROBATCH
        drawn = sorted({modalities[name] for name, _ in config.mixture})
        self.part_names = parts_by_modality((*PARTS, DENOISING) if config.denoise_loss else PARTS, drawn)
        self.schedule = Schedule({name: len(rows) for name, rows in samples.items()}, config.mixture, config.steps * config.batch, config.seed)
        self.costs: dict[str, float] = {}
        for modality in drawn:
            if modality not in targets:
                raise ValueError(f"stage 2 has captions for {modality} but no {modality} targets")
            if config.denoise_loss and modality not in self.denoised:
                raise ValueError(f"stage 2 has a denoising loss and captions for {modality}, but no {modality} decoder with latents")
            captions = [text for name, _ in config.mixture if modalities[name] == modality for sample in samples[name] for text in sample.texts]
            projector = side.projector(modality)
            mean_QC, std, cost = fit_targets(targets[modality], captions, len(projector.mean_QC))
            if mean_QC.shape != projector.mean_QC.shape:
                raise ValueError(f"the {modality} targets have {mean_QC.shape[1]} channels, the output projector makes {projector.mean_QC.shape[1]}: set out")
            projector.fit(mean_QC, std)
            projector.fit_input(self._state_chunks(side, modality, sorted(set(captions))), signal_rows(side.lm, modality))
            self.costs[modality] = max(cost, 1e-6)

    def _state_chunks(self, side: SignalSide, modality: str, captions: Sequence[str]) -> Iterator[torch.Tensor]:
        """Cached states [b, S, D] at the signal tokens, of every request for at most _FIT_CAPTIONS evenly thinned captions."""
        chosen = captions[:: -(-len(captions) // _FIT_CAPTIONS)]
        keys = [caption_key(modality, caption, variant) for caption in chosen for variant in range(self.states.requests(modality, caption))]
        for start in range(0, len(keys), CHUNK):
            yield self.states.gather(keys[start : start + CHUNK])[0][:, 1 : 1 + len(side.block(modality))]

    def cursor(self, step: int) -> dict[str, int]:
        """Samples drawn of each dataset after `step` steps."""
        return self.schedule.seen(step * self.config.batch)

    def keys(self, step: int) -> list[str]:
        """The samples of a step, over all ranks."""
        return self.schedule.keys(self.samples, range(step * self.config.batch, (step + 1) * self.config.batch))

    def losses(self, side: SignalSide, step: int, rank: int, world: int) -> Iterator[StepLoss]:
        """The loss of each microbatch of this rank's share of a step."""
        mine = list(share(self.config.batch, rank, world))
        for start in range(0, len(mine), self._microbatch):
            by_modality: dict[str, list[tuple[str, int, str, int]]] = {}
            for number in mine[start : start + self._microbatch]:
                slot = self.schedule.slot(step * self.config.batch + number)
                sample = self.samples[slot.dataset][slot.index]
                modality = self.modalities[slot.dataset]
                caption = deal(sample.texts, 1, self.config.seed, sample.key, slot.visit)[0]
                variant = deal(range(self.states.requests(modality, caption)), 1, self.config.seed, f"{sample.key} request", slot.visit // len(sample.texts))[0]
                by_modality.setdefault(modality, []).append((caption, variant, sample.key, number))
            for modality, found in sorted(by_modality.items()):
                captions, variants, keys, numbers = zip(*found, strict=True)
                yield self.loss(side, modality, captions, variants, Places(keys, step, numbers))

    def loss(self, side: SignalSide, modality: str, captions: Sequence[str], variants: Sequence[int] | None = None, places: Places | None = None) -> StepLoss:
        """The loss of captions from their cached states. variants: the request of each (None: the plainest); without places there is no denoising
        loss in it."""
        variants = [0] * len(captions) if variants is None else variants
        states_BPD, lse_BP = self.states.gather([caption_key(modality, caption, variant) for caption, variant in zip(captions, variants, strict=True)])
        states_BPD, lse_BP = states_BPD.to(side.device), lse_BP.to(side.device)
        projector = side.projector(modality)
        target_BQC = padded_targets(self.targets[modality], captions, len(projector.mean_QC)).to(side.device)
        block_BS, negative_BM = signal_nll(states_BPD, lse_BP, side.lm.new_head_rows, side.block(modality))
        conditioning_BQC = side.conditioning(modality, states_BPD)
        distance_B = alignment(conditioning_BQC, target_BQC) / self.costs[modality]
        baseline_B = alignment(projector.mean_QC.expand_as(target_BQC), target_BQC) / self.costs[modality]
        token_B = torch.cat([block_BS, negative_BM], 1).mean(1)
        total_B = self.config.token_loss * token_B + self.config.align_loss * distance_B
        values = {"signal_tokens": block_BS.mean(1), "negatives": negative_BM.mean(1), "alignment": distance_B, "mean_predictor": baseline_B}
        if places is not None and self.denoised:
            values[DENOISING] = self.denoised[modality](conditioning_BQC, places)
            total_B = total_B + self.config.denoise_loss * values[DENOISING]
        return StepLoss(total_B.sum(), torch.tensor(float(len(captions)), device=side.device), modality_sums(self.part_names, modality, values))
