"""Embed tracks: the audio of every video in the shards -> features in the embedding store, beside those of its images.

Owns the question which videos have audio that can be read. Input: artifact `weights` of the audio encoder and every `shards_*`; output: an artifact like
that of pipelines.embed, its rows keyed by the videos' sample keys, and left_out.parquet. A video without an audio track, or whose track cannot be decoded
in the video's span, has no row and stands in left_out.parquet: silent videos are common and no error. mmcore.stores.embeddings opens the artifact like any
other; training does not read it yet.

The space is that of the audio clips (same encoder, same weights). A video is addressed there by its own bytes, as an audio file would be, so nothing can be
mixed
up: in one space the same bytes and span mean the same audio clip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.step import StepContext
from infra.storage import read_json, write_atomic, write_parquet
from mmcore.encoder_config import TokensAudio
from mmcore.media.decode import MediaError, NoTrackError, decode_audio
from mmcore.stores.shards import ShardSet
from pipelines.embed.config import EmbedConfig
from pipelines.embed.fill import embed_items
from pipelines.embed.space import span_address
from pipelines.embed.worker import Item

LEFT_OUT_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
"""reason: no_track, or the MediaError's."""
NO_TRACK = "no_track"
PROBE_HZ = 16_000
AT_ONCE = 8
"""Videos held in memory, per thread."""

Verdict = tuple[str, str]
"""(reason, detail) why a video is left out; both empty for one with audio."""


def run(ctx: StepContext[EmbedConfig]) -> Mapping[str, Any]:
    """Features of the audio of every video of the config's splits. Returns counts: those of pipelines.embed, and how many videos are left out and why."""
    config = ctx.config
    if not isinstance(config.spec, TokensAudio):
        raise ValueError(f"the audio of videos needs an encoder of audio, got {config.spec.kind}")
    keys: dict[str, str] = {}
    items: dict[str, Item] = {}
    for name in sorted(name for name in ctx.inputs if name.startswith("shards_")):
        generation = ctx.inputs[name].path
        index = ShardSet(generation, ctx.stores).index
        columns = (index.column(column).to_pylist() for column in ("key", "split", "modality", "media_sha256", "start_s", "end_s"))
        for key, split, modality, sha256, start_s, end_s in zip(*columns, strict=True):
            if split in config.splits and modality == "video" and sha256:
                keys[key] = address = span_address(sha256, start_s, end_s)
                items.setdefault(address, Item(address=address, generation=str(generation), value=key, start_s=start_s or 0.0, end_s=end_s))
    verdicts = _listen(items, config.spec.max_seconds, ctx)
    left_out = [{"key": key, "reason": verdicts[address][0], "detail": verdicts[address][1]} for key, address in sorted(keys.items()) if verdicts[address][0]]
    write_parquet(pa.Table.from_pylist(left_out, LEFT_OUT_SCHEMA), ctx.output / "left_out.parquet")
    sounding = {address: item for address, item in items.items() if not verdicts[address][0]}
    counts = embed_items(config.spec, "audio", {key: address for key, address in keys.items() if address in sounding}, sounding, ctx)
    silent = sum(row["reason"] == NO_TRACK for row in left_out)
    return {**counts, "clips": len(keys), "without_track": silent, "undecodable_track": len(left_out) - silent}


def _listen(items: Mapping[str, Item], max_seconds: float, ctx: StepContext[EmbedConfig]) -> dict[str, Verdict]:
    """address -> Verdict. What was found is kept in ctx.work, so a killed run does not listen again."""
    saved = ctx.work / "tracks.json"
    if saved.exists():
        found: dict[str, Verdict] = {address: (reason, detail) for address, (reason, detail) in read_json(saved).items()}
        if set(found) == set(items):
            return found
    shards = {generation: ShardSet(Path(generation), ctx.stores) for generation in sorted({item.generation for item in items.values()})}
    ordered, threads = [items[address] for address in sorted(items)], max(1, ctx.resources.threads)
    found = {}
    with ThreadPoolExecutor(threads, "listen") as pool:
        for start in range(0, len(ordered), AT_ONCE * threads):
            some = ordered[start : start + AT_ONCE * threads]
            media = [shards[item.generation].media(item.value) for item in some]
            found |= dict(zip((item.address for item in some), pool.map(partial(_verdict, max_seconds=max_seconds), some, media), strict=True))
            ctx.progress(0, len(ordered), f"listening: {len(found)} of {len(ordered)}")
    write_atomic(saved, json.dumps(found))
    return found


def _verdict(item: Item, data: bytes, max_seconds: float) -> Verdict:
    """Opens the container; where it tells of a track, decodes what an encoder will want of it, so that it cannot fail there."""
    try:
        decode_audio(data, PROBE_HZ, max_seconds, item.start_s, item.end_s)
    except NoTrackError:
        return NO_TRACK, ""
    except MediaError as error:
        return error.reason, error.detail
    return "", ""
