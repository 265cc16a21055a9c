"""TwoTowerData: what the two-tower model trains on, step by step.

Turns the samples of a step into stored features, and those into the loss of this rank's share of the batch. The batch is formed in the global order
and then split, every rank sees the vectors of all rows: the world size changes nothing but rounding. Input: samples by dataset, a feature source per
modality and one for texts. Samples without features are left out before (with_vectors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from mmcore.config import PairsStage
from mmcore.stores.left_out import CUT, LEFT_OUT, NO_FEATURES, LeftOut
from mmcore.training.batching import Schedule, deal, share
from mmcore.training.drawn import FeatureSource
from mmcore.training.fitting import NOTHING
from mmcore.training.losses import StepLoss, group_sums
from mmcore.training.signals import target_key
from mmcore.two_tower.model import Sum, TwoTower, gather_rows, info_nce, same_pairs
from mmcore.types import Sample

FIT_TOKENS = 65536
"""Feature tokens, evenly thinned out, that a tower's standardisation is fitted on."""
_CHUNK = 256


def with_vectors(
    samples: Mapping[str, Sequence[Sample]], features: Mapping[str, FeatureSource], texts: FeatureSource
) -> tuple[dict[str, list[Sample]], list[LeftOut]]:
    """dataset -> its samples with features and the captions that have vectors; and what became of the others."""
    kept: dict[str, list[Sample]] = {}
    lost = []
    for name, rows in samples.items():
        kept[name] = []
        for sample in rows:
            captions = tuple(text for text in sample.texts if target_key(text) in texts)
            if not sample.texts or not sample.media_sha256:
                captions, problem = (), (NOTHING, "it has no caption, or no medium")
            elif sample.modality in features and sample.key not in features[sample.modality]:
                captions, problem = (), (NO_FEATURES, f"this step has no {sample.modality} features of it: its encoder cannot take it")
            else:
                problem = (NO_FEATURES, "the text encoder cannot take its captions")
            if captions != sample.texts or not captions:
                lost.append(LeftOut(key=sample.key, source=name, status=CUT if captions else LEFT_OUT, reason=problem[0], detail=problem[1]))
            kept[name] += [sample if captions == sample.texts else replace(sample, texts=captions)] if captions else []
    return kept, lost


class TwoTowerData:
    """samples: dataset -> its captioned samples; features: modality -> source; texts: vectors of captions; sum_: adds up over ranks."""

    def __init__(self, config: PairsStage, samples: Mapping[str, Sequence[Sample]], features: Mapping[str, FeatureSource], texts: FeatureSource, sum_: Sum):
        """Raises ValueError naming a sample without caption or medium, or a modality without features."""
        self.config, self.samples, self.features, self.texts, self._sum = config, samples, features, texts, sum_
        self.schedule = Schedule({name: len(rows) for name, rows in samples.items()}, config.mixture, config.steps * config.batch, config.seed)
        drawn = [sample for name, _ in config.mixture for sample in samples[name]]
        for sample in drawn:
            if not sample.texts or not sample.media_sha256:
                raise ValueError(f"sample {sample.key} has no {'caption' if sample.media_sha256 else 'medium'}: take {sample.source} out of the mixture")
            if sample.modality not in features:
                raise ValueError(f"sample {sample.key} has {sample.modality} input but there are no {sample.modality} features")
        self.part_names = tuple(sorted({sample.modality for sample in drawn}))
        """Logged parts of the loss: the modalities."""

    def fit(self, model: TwoTower) -> None:
        """Standardise every tower's features over the training samples, in key order."""
        drawn = {sample.key: sample for name, _ in self.config.mixture for sample in self.samples[name]}
        for modality in self.part_names:
            keys = sorted(key for key, sample in drawn.items() if sample.modality == modality)
            model.tower(modality).fit(_tokens(self.features[modality], keys))
        model.tower("text").fit(_tokens(self.texts, sorted({target_key(text) for sample in drawn.values() for text in sample.texts})))

    def cursor(self, step: int) -> dict[str, int]:
        """Samples drawn of each dataset after `step` steps."""
        return self.schedule.seen(step * self.config.batch)

    def keys(self, step: int) -> list[str]:
        """The samples of a step, over all ranks."""
        return self.schedule.keys(self.samples, range(step * self.config.batch, (step + 1) * self.config.batch))

    def batch(self, step: int) -> list[tuple[Sample, str]]:
        """(sample, caption) of every row of a step's global batch."""
        rows = []
        for number in range(step * self.config.batch, (step + 1) * self.config.batch):
            slot = self.schedule.slot(number)
            sample = self.samples[slot.dataset][slot.index]
            rows.append((sample, deal(sample.texts, 1, self.config.seed, sample.key, slot.visit)[0]))
        return rows

    def losses(self, model: TwoTower, step: int, rank: int, world: int) -> Iterator[StepLoss]:
        """The loss of this rank's share of a step, as one sum over its rows."""
        rows = self.batch(step)
        mine = share(len(rows), rank, world)
        own_bX = torch.cat(self._vectors(model, [rows[i] for i in mine]), 1)
        media_BW, texts_BW = gather_rows(own_bX, mine.start, len(rows), self._sum).chunk(2, 1)
        groups = torch.tensor([self.part_names.index(sample.modality) for sample, _ in rows], device=model.device)
        names = [[sample.media_sha256 for sample, _ in rows], [text for _, text in rows]]
        media_B, texts_B = (torch.from_numpy(np.unique(column, return_inverse=True)[1].reshape(-1)).to(model.device) for column in names)
        same_BB = same_pairs(media_B, texts_B, groups, across=model.spec.shape.across)
        own = slice(mine.start, mine.stop)
        loss_b = info_nce(own, media_BW, texts_BW, same_BB, model.scale())
        yield StepLoss(loss_b.sum(), torch.tensor(float(len(mine)), device=model.device), group_sums(loss_b.detach(), groups[own], len(self.part_names)))

    def _vectors(self, model: TwoTower, rows: Sequence[tuple[Sample, str]]) -> list[torch.Tensor]:
        """Unit vectors [b, W] of the rows' media, and of their captions; both hang on the model's parameters even without rows."""
        texts_bW = self._tower_vectors(model, "text", self.texts, [target_key(text) for _, text in rows])
        media_bW = torch.zeros_like(texts_bW)
        for modality in self.part_names:
            at = [i for i, (sample, _) in enumerate(rows) if sample.modality == modality]
            if at:
                vectors = self._tower_vectors(model, modality, self.features[modality], [rows[i][0].key for i in at])
                media_bW = media_bW.index_copy(0, torch.tensor(at, device=model.device), vectors)
        return [media_bW, texts_bW]

    @staticmethod
    def _tower_vectors(model: TwoTower, modality: str, source: FeatureSource, keys: Sequence[str]) -> torch.Tensor:
        """Vectors [b, W] of stored features."""
        features_bNE, lengths_b = source.gather(keys)
        return model.tower(modality)(torch.from_numpy(features_bNE).to(model.device), torch.from_numpy(lengths_b).to(model.device))


def _tokens(source: FeatureSource, keys: Sequence[str]) -> Iterator[np.ndarray]:
    """Feature tokens [n, E] of keys, one item at a time, thinned out to about FIT_TOKENS tokens."""
    _, lengths_B = source.gather(keys[:1])
    kept = keys[:: max(1, len(keys) * max(1, int(lengths_B[0])) // FIT_TOKENS)]
    for start in range(0, len(kept), _CHUNK):
        features_BNE, lengths_B = source.gather(kept[start : start + _CHUNK])
        for features_NE, length in zip(features_BNE, lengths_B.tolist(), strict=True):
            yield features_NE[:length]
