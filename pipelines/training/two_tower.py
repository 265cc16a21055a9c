"""The two-tower stage: from artifacts to the model and its data. pipelines.training.train launches it, pipelines.training.loop trains it.

Input: features (`embed_<modality>`), caption vectors (`embed_text`) and shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.step import StepContext
from mmcore.config import PairsStage, TwoTowerSpec
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.two_tower.model import TwoTower
from mmcore.two_tower.pairs import TwoTowerData
from pipelines.training.config import TrainConfig
from pipelines.training.data import dataset_samples, feature_sources, shard_sets

if TYPE_CHECKING:
    from mmcore.two_tower.model import TwoTower
    from mmcore.two_tower.pairs import TwoTowerData
    from pipelines.training.loop import Collective


def two_tower_stage(config: TrainConfig, ctx: StepContext[TrainConfig], collective: Collective) -> tuple[TwoTower, TwoTowerData]:
    """The fresh model, its towers standardised on the training samples, and its data. Raises ValueError when another encoder made the features."""

    spec = config.model
    assert isinstance(spec, TwoTowerSpec) and isinstance(config.stage, PairsStage)
    samples, _ = dataset_samples(shard_sets(ctx.inputs, ctx.stores), [name for name, _ in config.stage.mixture])
    features = feature_sources(ctx.inputs, ctx.stores, dict(spec.encoders))
    texts = EmbeddingSet(ctx.inputs["embed_text"].path, ctx.stores, spec.text)
    model = TwoTower(spec)
    data = TwoTowerData(config.stage, samples, features, texts, collective.sum_)
    data.fit(model)
    return model, data
