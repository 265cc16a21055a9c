"""Targets: carried out of pipelines/embed/fill.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.step import StepContext
from mmcore.stores.shards import ShardSet
from pipelines.embed.config import TargetsConfig
from pipelines.embed.fill import embed_items
from pipelines.embed.space import text_sha256
from pipelines.embed.worker import Item


def run_targets(ctx: StepContext[TargetsConfig]) -> Mapping[str, Any]:
    """Token states of every distinct caption of shards_cc3m, keyed `text:<sha256>`. Returns counts."""
    config = ctx.config
    shards = ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores)
    captions = sorted({text for meta in shards.metas(shards) for text in meta["texts"]})
    items = {sha256: Item(address=sha256, value=text) for text, sha256 in ((text, text_sha256(text)) for text in captions)}
    return embed_items(config.spec, "text", {f"text:{sha256}": sha256 for sha256 in items}, items, ctx)
