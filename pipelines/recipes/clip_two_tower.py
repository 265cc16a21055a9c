"""clip_two_tower: media and captions in one space, for retrieval and search, trained in seconds on what the store already holds.

Data, encoders and shards are smol's, so every artifact before `embed_text` is shared with it.
"""

from __future__ import annotations

from dataclasses import replace

from evals.config import RetrievalEvalConfig
from mmcore.config import PairsStage, TowerShape
from mmcore.encoder_config import BertText
from pipelines.recipes.recipe import Recipe, Retrieval
from pipelines.recipes.smol import smol
from pipelines.recipes.tiny import tiny


def clip_two_tower() -> Recipe:
    """Media and captions in one space, for retrieval and search.

    Two towers (InfoNCE) on smol's stored features and pooled MiniLM captions.
    """
    towers = Retrieval(
        text=BertText(arch="bert", width=384, tokens=0, batch=32, part_rows=1024),
        shape=TowerShape(width=512, pooling="mean", temperature=0.2, across=True),
        stage=PairsStage(
            stage="two_tower",
            steps=150,
            batch=256,
            lr=1e-3,
            warmup_steps=20,
            weight_decay=0.1,
            checkpoint_every=50,
            mixture=(("stamps_train", 4.0), ("easyvqa_captions", 0.5), ("clips_train", 2.0), ("sounds_train", 2.0)),
        ),
    )
    return replace(smol(), name="clip_two_tower", two_tower=towers)


def tiny_two_tower() -> Recipe:
    """clip_two_tower with random toy-size encoders on generated data. For tests."""
    towers = Retrieval(
        text=BertText(arch="bert", width=32, tokens=0, batch=8, part_rows=64),
        shape=TowerShape(width=16, hidden=24),
        stage=PairsStage(
            stage="two_tower",
            steps=8,
            batch=16,
            lr=3e-3,
            warmup_steps=2,
            checkpoint_every=3,
            mixture=(("stamps_train", 2.0), ("easyvqa_captions", 1.0), ("clips_train", 1.0), ("sounds_train", 1.0)),
        ),
        evaluation=RetrievalEvalConfig(bootstrap_draws=200),
    )
    return replace(tiny(), name="tiny_two_tower", two_tower=towers)
