"""Overlap: which held-out images the model may already have seen in training.

Owns the comparison. Input: the shard generations `shards_cc3m` and `shards_instruct`; output: `overlap.json` (counts per training and
held-out dataset) and `overlap.parquet` (pairs). Nothing is removed: the report prints the counts beside the scores. Text, audio and video are not compared.

exact: the same media bytes. near: not exact, a 64-bit difference hash (dHash: is each cell of an 8 x 8 grid brighter than its left
neighbour) at most `max_bits` apart, and the same colours on an 8 x 8 grid: the hash alone sees no colour.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infra.step import StepContext
from infra.storage import write_atomic
from mmcore.media.decode import decode_image
from mmcore.stores.shards import ShardSet
from pipelines.shards.config import OverlapConfig

PAIR_SCHEMA = pa.schema([("heldout_key", pa.string()), ("train_key", pa.string()), ("kind", pa.string()), ("bits", pa.int32())])
"""kind: exact or near; bits: distance of the two hashes."""
COMPARED_AT_ONCE = 1 << 25
"""Pairs of images held in memory at once (a byte and two flags each)."""
COLOURS_AT_ONCE = 1 << 16
"""Pairs of images whose colours are compared at once."""
GRID = 8
"""Cells per side of the colour grid."""


@dataclass(frozen=True, slots=True)
class DatasetImages:
    """The images of one dataset, in key order."""

    source: str
    keys: list[str]
    media: np.ndarray
    """[P] number of the distinct media bytes."""


@dataclass(frozen=True, slots=True)
class Prints:
    """Fingerprints of the distinct images, by media number."""

    hashes: np.ndarray
    """[M] uint64."""
    colours: np.ndarray
    """[M, GRID * GRID * 3] uint8: mean red, green and blue of every cell."""


def run(ctx: StepContext[OverlapConfig]) -> dict[str, Any]:
    """Compare every training dataset with every heldout or test dataset. Returns {"pairs": [counts]}."""

    config = ctx.config
    sets = [ShardSet(ctx.inputs[name].path, ctx.stores) for name in sorted(ctx.inputs)]
    train, heldout, first_seen = _datasets(sets)
    prints = _fingerprints(ctx, sets, first_seen if train and heldout else {})
    counts, pairs = [], []
    for h in heldout:
        for t in train:
            found = list(_compare(h, t, prints, config))
            kinds = [kind for _, kind, _ in found]
            pairs += [row for _, _, rows in found for row in rows]
            counts.append(
                {
                    "train": t.source,
                    "heldout": h.source,
                    "train_pictures": len(t.keys),
                    "heldout_pictures": len(h.keys),
                    "exact": kinds.count("exact"),
                    "near": kinds.count("near"),
                }
            )
    counts.sort(key=lambda c: (c["heldout"], c["train"]))
    pairs.sort(key=lambda row: (row["heldout_key"], row["train_key"]))
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIR_SCHEMA), ctx.output / "overlap.parquet", compression="zstd")
    document = {
        "pairs": counts,
        "max_bits": config.max_bits,
        "max_colour": config.max_colour,
        "meaning": "exact, near: held-out pictures with at least one such picture in the training dataset; near excludes exact",
    }
    write_atomic(ctx.output / "overlap.json", json.dumps(document, indent=1, sort_keys=True) + "\n")
    ctx.progress(1, 1, "done")
    return {"pairs": counts}


def difference_hash(image: Image.Image) -> int:
    """64 bits, row by row: is a cell brighter than its left neighbour, on an 8 x 9 grey version."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def colour_grid(image: Image.Image) -> np.ndarray:
    """[GRID * GRID * 3] uint8: mean red, green, blue of every cell."""
    return np.asarray(image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)


def _datasets(sets: list[ShardSet]) -> tuple[list[DatasetImages], list[DatasetImages], dict[str, tuple[int, str]]]:
    """(training datasets, held-out and test datasets, media sha256 -> (set number, key) where its bytes can be read)."""
    first_seen: dict[str, tuple[int, str]] = {}
    numbers: dict[str, int] = {}
    rows: dict[tuple[str, bool], list[tuple[str, int]]] = {}
    for position, shards in enumerate(sets):
        table = shards.index.select(["key", "source", "split", "modality", "media_sha256"]).to_pylist()
        for row in table:
            if row["modality"] == "image" and row["media_sha256"]:
                first_seen.setdefault(row["media_sha256"], (position, row["key"]))
                number = numbers.setdefault(row["media_sha256"], len(numbers))
                rows.setdefault((row["source"], row["split"] == "train"), []).append((row["key"], number))
    sides: dict[bool, list[DatasetImages]] = {True: [], False: []}
    for (source, is_train), found in sorted(rows.items()):
        found.sort()
        sides[is_train].append(DatasetImages(source, [key for key, _ in found], np.array([number for _, number in found], dtype=np.int64)))
    return sides[True], sides[False], first_seen


def _fingerprints(ctx: StepContext[OverlapConfig], sets: list[ShardSet], first_seen: dict[str, tuple[int, str]]) -> Prints:
    """Decode every distinct image once, in the order of first_seen (the media numbers)."""

    hashes = np.zeros(len(first_seen), dtype=np.uint64)
    colours = np.zeros((len(first_seen), GRID * GRID * 3), dtype=np.uint8)
    for number, (position, key) in enumerate(first_seen.values()):
        if number % 200 == 0:
            ctx.progress(number, len(first_seen), "images")
        image = decode_image(sets[position].media(key))
        hashes[number], colours[number] = difference_hash(image), colour_grid(image)
    return Prints(hashes, colours)


def _compare(heldout: DatasetImages, train: DatasetImages, prints: Prints, config: OverlapConfig) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(held-out key, kind, pairs listed) for every held-out image that has a counterpart in the training dataset."""
    block = max(1, COMPARED_AT_ONCE // max(1, len(train.keys)))
    for start in range(0, len(heldout.keys), block):
        mine = heldout.media[start : start + block]
        exact = mine[:, None] == train.media[None, :]
        bits = np.bitwise_count(prints.hashes[mine][:, None] ^ prints.hashes[train.media][None, :])
        close = (bits <= config.max_bits) & ~exact
        rows, columns = np.nonzero(close)
        for at in range(0, len(rows), COLOURS_AT_ONCE):
            some = slice(at, at + COLOURS_AT_ONCE)
            gap = prints.colours[mine[rows[some]]].astype(np.int16) - prints.colours[train.media[columns[some]]]
            close[rows[some], columns[some]] = np.abs(gap).max(axis=1) <= config.max_colour
        for row in np.nonzero((exact | close).any(axis=1))[0]:
            kind = "exact" if exact[row].any() else "near"
            columns = np.nonzero(exact[row] if kind == "exact" else close[row])[0][: config.pairs_per_sample]
            key = heldout.keys[start + row]
            yield key, kind, [{"heldout_key": key, "train_key": train.keys[c], "kind": kind, "bits": int(bits[row, c])} for c in columns]
