"""One epoch of stage 1 with features from the store against the same epoch with the encoders in the loop. Single run.

The same seeded samples (`--media pictures,clips,sounds`), model, loop (pipelines.training.loop) and threads. peer: features are computed for every batch by
the same encoder code, loaded once before the clock starts. ours: read from the store, as the training step does. limit: the features are already in
memory as float32. The projectors are fitted from the store on all sides, outside the timing. ours and limit must have equal losses. peer's batches
are cut differently, so its features are compared with the stored ones within the tolerance of `embed verify`, and the loss before the first update
must agree; rounding then grows from step to step, as in any training. The note says what the store's build took and from how many epochs it
pays: build + n * ours < n * peer.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_embed_build import Media, build, media_of
from store_bench import PARTS, ensure_root, inputs_of, scratch

from flows.running.run import recipe_steps
from infra.settings import offline_environment
from mmcore.config import RowsStage
from mmcore.encoders import load_encoder
from mmcore.model.any_model import load_model
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.shards import ShardSet
from mmcore.training.rows import ChatData
from mmcore.types import Sample
from pipelines.embed.check import TOLERANCES
from pipelines.embed.worker import keep_freed_memory
from pipelines.training.data import dataset_samples, shard_sets
from pipelines.training.loop import run_stage
from pipelines.training.train import _fit_input_projectors

LOSS_TOLERANCE = 2e-3
"""Largest relative difference of the first loss."""
CHECKED = 64
"""Media per modality whose features are compared."""


class InMemory:
    """A feature source over a function key -> [N, E], with the face of EmbeddingSet."""

    def __init__(self, get: Callable[[str], np.ndarray], keys: Sequence[str], width: int):
        self.get, self._keys, self.width = get, sorted(keys), width

    def keys(self) -> list[str]:
        return list(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def length(self, key: str) -> int:
        return len(self.get(key))

    def _rows(self, keys: Sequence[str]) -> list[np.ndarray]:
        return [self.get(key) for key in keys]

    def gather(self, keys: Sequence[str], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """(features_BNE, lengths_B), zero-padded."""
        rows = self._rows(keys)
        lengths = np.array([len(row) for row in rows], np.int64)
        features = np.zeros((len(rows), int(lengths.max(initial=0)), self.width), dtype)
        for target, row in zip(features, rows, strict=True):
            target[: len(row)] = row
        return features, lengths


class Online(InMemory):
    """Features computed when they are asked for."""

    def __init__(self, media: Media):
        super().__init__(lambda key: self._rows([key])[0], list(media.keys), media.spec.width)
        self._media, self._encoder = media, load_encoder(media.spec, media.weights.path)
        self._shards = {generation: ShardSet(Path(generation), media.stores) for generation in sorted({i.generation for i in media.items.values()})}
        self.encoded = 0

    def _rows(self, keys: Sequence[str]) -> list[np.ndarray]:
        items, size = [self._media.items[self._media.keys[key]] for key in keys], self._media.spec.batch
        self.encoded += len(items)
        prepared = [self._encoder.prepare(self._shards[i.generation].media(i.value), i.start_s, i.end_s) for i in items]
        return [row for start in range(0, len(prepared), size) for row in self._encoder.forward(prepared[start : start + size])]


def run(options: argparse.Namespace) -> list[dict]:
    """One entry. Raises RuntimeError when features or losses differ."""
    from flows.cli.options import parse_overrides

    offline_environment()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    steps = recipe_steps(options.recipe, parse_overrides(options.overrides))
    with scratch() as box:
        root = ensure_root(options.root, options.recipe, box, [word for pair in options.overrides for word in ("--set", pair)])
        config = steps["stage1"].config
        needed = {name: step for name, step in steps["stage1"].inputs.items() if not name.startswith("embed_")}
        inputs = inputs_of(replace(steps["stage1"], inputs=needed), root)
        samples, _ = dataset_samples(shard_sets(inputs, root / "stores"), [name for name, _ in config.stage.mixture])
        samples = drawn_samples(samples, dict(zip(PARTS, map(int, options.media.split(",")), strict=True)), options.seed)
        total = sum(map(len, samples.values()))
        stage = replace(config.stage, steps=math.ceil(total / config.stage.batch), mixture=tuple((n, float(len(s))) for n, s in samples.items()))
        stage = replace(stage, checkpoint_every=stage.steps + 1)
        used = {part: {s.key for rows in samples.values() for s in rows if s.modality == part} for part in PARTS}
        media = {part: media_of(steps[f"embed_{part}"], root) for part in PARTS if used[part]}
        media = {part: m.only({m.keys[key] for key in used[part]}) for part, m in media.items()}
        online = {part: Online(m) for part, m in media.items()}
        built = {part: build(m, box / part, options.threads) for part, m in media.items()}
        stored = {part: EmbeddingSet(artifact, stores) for part, (_, artifact, stores) in built.items()}
        memory = {part: {key: stored[part].get(key).astype(np.float32) for key in used[part]} for part in stored}
        furthest = max(differing(online[part], stored[part]) for part in stored)
        sources = {
            "limit": {part: InMemory(memory[part].__getitem__, list(used[part]), stored[part].width) for part in stored},
            "ours": stored,
            "peer": online,
        }
        seconds, losses = {}, {}
        for side, features in sources.items():
            seconds[side], losses[side] = epoch(config, stage, samples, stored, features, inputs["weights_lm"].path / "lm", box / side)
    return [entry(options, seconds, losses, furthest, {part: found[0] for part, found in built.items()}, online, stage, total)]


def differing(online: Online, stored: EmbeddingSet) -> float:
    """Largest norm-relative difference of a medium's features. Raises RuntimeError beyond the tolerance of `embed verify`."""
    keys = stored.keys()[:CHECKED]
    pairs = zip(online.gather(keys)[0], stored.gather(keys)[0], strict=True)
    online.encoded = 0
    furthest = float(max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs))
    tolerance = TOLERANCES[stored.spec.dtype]
    if not furthest <= tolerance:
        raise RuntimeError(f"features computed in the loop differ from the stored ones by {furthest:.2g}, at most {tolerance} is rounding")
    return furthest


def drawn_samples(samples: Mapping[str, Sequence[Sample]], counts: Mapping[str, int], seed: int) -> dict[str, list[Sample]]:
    """A seeded draw of samples per modality, in stored order; datasets without any are left out."""
    kept: set[str] = set()
    for part, count in counts.items():
        keys = sorted(sample.key for rows in samples.values() for sample in rows if sample.modality == part)
        kept |= set(np.random.default_rng(seed).permutation(keys)[:count].tolist())
    chosen = {name: [sample for sample in rows if sample.key in kept] for name, rows in samples.items()}
    return {name: rows for name, rows in chosen.items() if rows}


def epoch(
    config: Any, stage: RowsStage, samples: Mapping[str, Sequence[Sample]], stored: Mapping[str, Any], features: Mapping[str, Any], lm: Path, work: Path
) -> tuple[float, list[float]]:
    """(seconds in steps, loss of every step) of a fresh model."""
    model = load_model(config.model, lm, ())
    fitted = ChatData(stage, model.chat, samples, stored, config.model.input_projector, {})
    _fit_input_projectors(model, fitted, list(stored))
    data = ChatData(stage, model.chat, samples, features, config.model.input_projector, {})
    _, log, seconds = run_stage(stage, model, data, work)
    return seconds, [float(row[1] or 0.0) for row in log.rows]


def entry(
    options: argparse.Namespace,
    seconds: Mapping[str, float],
    losses: Mapping[str, list[float]],
    furthest: float,
    built: Mapping[str, float],
    online: Mapping[str, Online],
    stage: RowsStage,
    total: int,
) -> dict:
    """The entry of a single run. Raises RuntimeError when the losses differ."""
    if losses["ours"] != losses["limit"]:
        raise RuntimeError("the losses with features from the store and from memory differ")
    first = abs(losses["peer"][0] - losses["ours"][0]) / losses["ours"][0]
    if not first <= LOSS_TOLERANCE:
        raise RuntimeError(f"the first loss with encoders in the loop differs by {first:.2g}, at most {LOSS_TOLERANCE} is rounding")
    build_s, saved = sum(built.values()), seconds["peer"] - seconds["ours"]
    note = {
        "single run": True,
        "recipe": options.recipe,
        "threads": options.threads,
        "samples": total,
        "steps": stage.steps,
        "encoder calls in the loop": {part: source.encoded for part, source in online.items()},
        "seconds of the store's build": {part: round(spent, 2) for part, spent in built.items()},
        "the store pays from epoch": math.floor(build_s / saved) + 1 if saved > 0 else None,
        "relative difference of the first loss": round(first, 6),
        "largest relative difference of a medium's features": round(furthest, 6),
        "mean loss of the epoch": {side: round(sum(found) / len(found), 3) for side, found in losses.items()},
    }
    return {
        "name": "stage1_epoch",
        **{side: round(seconds[side], 2) for side in ("ours", "peer", "limit")},
        "unit": "s",
        "ratio_peer": round(seconds["peer"] / seconds["ours"], 3),
        "ratio_limit": round(seconds["limit"] / seconds["ours"], 3),
        "runs": 1,
        "spread": [round(seconds["ours"], 2)] * 2,
        "seed": options.seed,
        "note": note,
    }
