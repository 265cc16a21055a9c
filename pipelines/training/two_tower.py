"""The two-tower stage: from artifacts to the model and its data. pipelines.training.train launches it, pipelines.training.loop trains it.

Input: features (`embed_<modality>`), caption vectors (`embed_text`) and shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.step import StepContext
from mmcore.config import PairsStage, TwoTowerSpec
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.left_out import LeftOut
from mmcore.training.fitting import check_lost
from mmcore.two_tower.model import TwoTower
from mmcore.two_tower.pairs import TwoTowerData, with_vectors
from pipelines.training.config import TrainConfig
from pipelines.training.data import dataset_samples, feature_sources, shard_sets

if TYPE_CHECKING:
    from mmcore.two_tower.model import TwoTower
    from mmcore.two_tower.pairs import TwoTowerData
    from pipelines.training.loop import Collective


MAX_LOST = 0.5
"""Share of the samples that may be left out; a stage that would lose more fails before it begins, with the reasons."""


def two_tower_stage(config: TrainConfig, ctx: StepContext[TrainConfig], collective: Collective) -> tuple[TwoTower, TwoTowerData, list[LeftOut]]:
    """The fresh model, its towers standardised on the training samples, its data, and the samples that are left out. Raises ValueError when another encoder
    made the features, or too many samples have none."""

    spec = config.model
    assert isinstance(spec, TwoTowerSpec) and isinstance(config.stage, PairsStage)
    lost: list[LeftOut] = []
    samples, _ = dataset_samples(shard_sets(ctx.inputs, ctx.stores), [name for name, _ in config.stage.mixture], lost)
    features = feature_sources(ctx.inputs, ctx.stores, dict(spec.encoders))
    texts = EmbeddingSet(ctx.inputs["embed_text"].path, ctx.stores, spec.text)
    samples, more = with_vectors(samples, features, texts)
    lost += more
    check_lost(lost, samples, MAX_LOST)
    model = TwoTower(spec)
    data = TwoTowerData(config.stage, samples, features, texts, collective.sum_)
    data.fit(model)
    return model, data, lost
