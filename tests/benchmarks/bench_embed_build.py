"""A cold build of the embedding store against a bare loop that decodes and encodes the same media with the same number of threads.

ours: pipelines.embed as the DAG runs it, without Ray: plan, parts, fsync, artifact, into an empty store. peer = limit: each thread has its own
encoder copy and takes every n-th batch, decodes, encodes and keeps the features in a list; nothing is written. Both load the encoder inside the timing,
use one torch thread per worker, the recipe's batch, and keep freed memory. A seeded subset of the media (`--media pictures,clips,sounds`), the same for
both; the features are compared. Needs `--root DIR` with finished shards and weights, or makes one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store_bench import PARTS, checksum, context, ensure_root, inputs_of, interleaved, rates, scratch

from flows.running.run import recipe_steps
from infra.settings import offline_environment
from infra.step import Artifact, Step
from mmcore.encoder_config import EncoderConfig
from mmcore.encoders import MODALITY_OF, load_encoder
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.shards import ShardSet
from pipelines.embed.fill import cut, embed_items
from pipelines.embed.space import span_address
from pipelines.embed.worker import Item, keep_freed_memory

ROUNDS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """Media of one embed step, and the samples that show them."""

    spec: EncoderConfig
    weights: Artifact
    stores: Path
    keys: dict[str, str]
    """Sample key -> address."""
    items: dict[str, Item]

    def only(self, addresses: Iterable[str]) -> Media:
        """Some of the media, sorted by address, with all their samples."""
        kept = set(addresses)
        keys = {key: address for key, address in self.keys.items() if address in kept}
        return replace(self, keys=keys, items={address: self.items[address] for address in sorted(kept)})


def media_of(step: Step, root: Path) -> Media:
    """What the step would encode."""
    inputs, config = inputs_of(step, root), step.config
    keys: dict[str, str] = {}
    items: dict[str, Item] = {}
    for name in sorted(name for name in inputs if name.startswith("shards_")):
        index = ShardSet(inputs[name].path, root / "stores").index
        columns = (index.column(column).to_pylist() for column in ("key", "split", "modality", "media_sha256", "start_s", "end_s"))
        for key, split, modality, sha256, start_s, end_s in zip(*columns, strict=True):
            if split in config.splits and modality == MODALITY_OF[config.spec.kind] and sha256:
                keys[key] = address = span_address(sha256, start_s, end_s)
                items.setdefault(address, Item(address=address, generation=str(inputs[name].path), value=key, start_s=start_s or 0.0, end_s=end_s))
    return Media(spec=config.spec, weights=inputs["weights"], stores=root / "stores", keys=keys, items=items)


def drawn(media: Media, count: int, seed: int) -> Media:
    """A seeded draw of `count` of the media."""
    return media.only(np.random.default_rng(seed).permutation(sorted(media.items))[:count].tolist())


def run(options: argparse.Namespace) -> list[dict]:
    """One entry per modality."""
    offline_environment()
    keep_freed_memory()
    steps = recipe_steps(options.recipe, {})
    counts = dict(zip(PARTS, map(int, options.media.split(",")), strict=True))
    with scratch() as box:
        root = ensure_root(options.root, options.recipe, box)
        media = {part: drawn(media_of(steps[f"embed_{part}"], root), counts[part], options.seed) for part in PARTS}
        return [measure(part, media[part], box, options) for part in PARTS if media[part].items]


def measure(part: str, media: Media, box: Path, options: argparse.Namespace) -> dict:
    """One modality. Raises RuntimeError when the store holds other features than the bare loop computes."""
    busy: list[float] = []

    def ours() -> tuple[float, Any]:
        seconds, artifact, stores = build(media, box / "cold", options.threads)
        busy.append(json.loads((artifact / "info" / "timing.json").read_text())["encoder_busy"])
        stored = EmbeddingSet(artifact, stores)
        key_of = {address: key for key, address in media.keys.items()}
        found = total([stored.get(key_of[address]) for address in media.items])
        shutil.rmtree(box / "cold")
        return seconds, found

    def bare() -> tuple[float, Any]:
        seconds, features = bare_loop(media, options.threads)
        return seconds, total(features)

    bare()  # warm page cache and libraries
    seconds = interleaved({"ours": ours, "peer": bare}, ROUNDS)
    seconds["limit"] = seconds["peer"]
    note = {
        "recipe": options.recipe,
        "media": len(media.items),
        "threads": options.threads,
        "encoder_busy": busy,
        "peer": "bare loop, nothing written; it is the limit too",
        "ratios": "median over pairs",
    }
    return rates(f"embed_build_{part}", seconds, len(media.items), "media/s", options.seed, note)


def build(media: Media, place: Path, threads: int) -> tuple[float, Path, Path]:
    """(seconds, artifact directory, stores) of a cold build below `place`, with an empty store that shares the root's shards."""
    (place / "stores").mkdir(parents=True)
    (place / "stores" / "shards").symlink_to(media.stores / "shards")
    ctx = context(place, "embed", None, {"weights": media.weights}, threads)
    started = time.perf_counter()
    embed_items(media.spec, MODALITY_OF[media.spec.kind], media.keys, media.items, ctx)
    return time.perf_counter() - started, ctx.output, ctx.stores


def bare_loop(media: Media, threads: int) -> tuple[float, list[np.ndarray]]:
    """(seconds, features in the order of the addresses): decode and encode, nothing else."""
    size, parts = media.spec.batch, [[media.items[address] for address in part] for part in cut(list(media.items), len(media.items), media.spec)]
    batches = [part[start : start + size] for part in parts for start in range(0, len(part), size)]
    before = torch.get_num_threads()
    started = time.perf_counter()

    def work(mine: Sequence[list[Item]]) -> list[list[np.ndarray]]:
        torch.set_num_threads(1)
        encoder = load_encoder(media.spec, media.weights.path)
        shards = {generation: ShardSet(Path(generation), media.stores) for generation in sorted({item.generation for batch in mine for item in batch})}
        return [encoder.forward([encoder.prepare(shards[i.generation].media(i.value), i.start_s, i.end_s) for i in batch]) for batch in mine]

    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(work, [batches[start::threads] for start in range(threads)]))
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return seconds, [rows for number in range(len(batches)) for rows in done[number % threads][number // threads]]


def total(features: Sequence[np.ndarray]) -> tuple[int, int]:
    """Checksum of all features in order."""
    found = (0, 0)
    for rows in features:
        found = checksum(rows, found)
    return found
