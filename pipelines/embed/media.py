"""Media: the steps that embed images, videos and audio clips with a frozen encoder.

Owns which samples are embedded and under which address. Input: shards and the encoder's weights. Output: the artifact of pipelines.embed.fill, keyed by
sample. Raises AnyloomError as that does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.step import StepContext
from mmcore.encoders import MODALITY_OF
from mmcore.stores.shards import ShardSet
from pipelines.embed.config import EmbedConfig
from pipelines.embed.fill import embed_items
from pipelines.embed.space import span_address
from pipelines.embed.worker import Item


def run(ctx: StepContext[EmbedConfig]) -> Mapping[str, Any]:
    """Features of every sample of the config's splits whose input medium has the encoder's modality. Returns counts."""
    config = ctx.config
    modality = MODALITY_OF[config.spec.kind]
    keys: dict[str, str] = {}
    items: dict[str, Item] = {}
    for name in sorted(name for name in ctx.inputs if name.startswith("shards_")):
        generation = ctx.inputs[name].path
        index = ShardSet(generation, ctx.stores).index
        columns = (index.column(column).to_pylist() for column in ("key", "split", "modality", "media_sha256", "start_s", "end_s"))
        for key, split, found, sha256, start_s, end_s in zip(*columns, strict=True):
            if split in config.splits and found == modality and sha256:
                keys[key] = address = span_address(sha256, start_s, end_s)
                items.setdefault(address, Item(address=address, generation=str(generation), value=key, start_s=start_s or 0.0, end_s=end_s))
    return embed_items(config.spec, modality, keys, items, ctx)
