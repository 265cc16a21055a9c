"""Embed texts: every distinct caption of the shards -> one vector each in the embedding store.

Owns the choice of the texts; the store's plan, parts and artifact are those of pipelines.embed. Input: artifact `weights` and every `shards_*`;
output: generation.json, rows.parquet (`text:<sha256 of the caption>` -> part, offset, length).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.step import AnyloomError, StepContext
from mmcore.stores.shards import ShardSet
from pipelines.embed.config import EmbedConfig
from pipelines.embed.fill import embed_items
from pipelines.embed.space import text_sha256
from pipelines.embed.worker import Item


def run(ctx: StepContext[EmbedConfig]) -> Mapping[str, Any]:
    """Vectors of every distinct caption of the config's splits and sources, keyed `text:<sha256>`. Returns counts. Raises AnyloomError when there is none."""
    config = ctx.config
    captions: set[str] = set()
    for name in sorted(name for name in ctx.inputs if name.startswith("shards_")):
        shards = ShardSet(ctx.inputs[name].path, ctx.stores)
        keys = [key for split in config.splits for key in shards.keys(split=split, duplicates=True)]
        captions |= {text for meta in shards.metas(keys) if not config.sources or meta["source"] in config.sources for text in meta["texts"]}
    if not captions:
        of = f" of {', '.join(config.sources)}" if config.sources else ""
        raise AnyloomError(f"{ctx.name}: no sample{of} in the splits {', '.join(config.splits)} has a caption: check the recipe's lists")
    items = {text_sha256(text): Item(address=text_sha256(text), value=text) for text in sorted(captions)}
    return embed_items(config.spec, "text", {f"text:{sha256}": sha256 for sha256 in items}, items, ctx)
