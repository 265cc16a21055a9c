"""Random rows of stored features: EmbeddingSet.gather against a Parquet list column and against one memory-mapped array.

Two shapes: 9 x 1280 float16 (the pictures of smol) and one pooled vector of 1024, the latter also as a set of more than KEPT_BYTES. The features are
written by the real build (plan, parts of 256 rows, commit, artifact) from an encoder that gives seeded noise. Batches of 256 random keys, warm page
cache, one thread, values compared. Each set is read twice: kept in memory, and as `*_unkept` from its files, as a set that no memory is free for.
peer: the fastest of several Parquet layouts (`LAYOUTS`), row groups of its best size, memory-mapped, only the row groups that hold a key are read,
`take`, to NumPy. The note also has a column of opaque bytes (`BYTES`), which is faster than lists but no longer says what it holds. limit: fancy indexing
of one contiguous np.memmap with the same row numbers. Only the reading is timed; the checksums are not.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from store_bench import checksum, context, interleaved, rates, scratch

from infra.step import Artifact
from mmcore.encoder_config import CONFIGS, EncoderConfig
from mmcore.encoders import ENCODERS
from mmcore.stores import part_rows
from mmcore.stores.embeddings import EmbeddingSet
from pipelines.embed.fill import embed_items
from pipelines.embed.worker import Item

SHAPES = {"pictures_9x1280": (8192, 9, 1280), "pooled_1x1024": (51200, 1, 1024), "pooled_large_1x1024": (153600, 1, 1024)}
"""name -> rows, tokens, width."""
BATCH, ROUNDS = 256, 7
BATCHES = {"pictures_9x1280": 20, "pooled_1x1024": 100, "pooled_large_1x1024": 200}
LAYOUTS = ("float16 fixed_size_list", "float32 fixed_size_list", "float16 large_list", "float32 large_list")
BYTES = "float16 fixed_size_binary"
GROUP_ROWS = (8, 32, 128)
Read = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseImage(EncoderConfig):
    """Of Noise."""

    kind = "noise_image"
    tokens: int
    """Tokens of one item."""


class Noise:
    """An encoder that answers a row number with seeded noise."""

    def __init__(self, spec: NoiseImage, weights_dir: Path):
        self.spec = spec

    def place(self, device: str) -> None:
        """Nothing to move."""

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """The features themselves."""
        return np.random.default_rng(int(data)).standard_normal((self.spec.tokens, self.spec.width), np.float32).astype(np.float16)

    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """As prepared."""
        return list(items)


def run(options: argparse.Namespace) -> list[dict]:
    """Two entries per shape."""
    entries = []
    for name in SHAPES:
        with scratch() as box:
            entries += measure(name, box, options.seed)
    return entries


def measure(name: str, box: Path, seed: int) -> list[dict]:
    """One shape, kept and not. Raises RuntimeError when a side reads other values."""
    rows, tokens, width = SHAPES[name]
    stored, unkept, contiguous = build(box, rows, tokens, width)
    rng = np.random.default_rng(seed)
    batches = [rng.choice(rows, BATCH, replace=False) for _ in range(BATCHES[name])]
    keys = stored.keys()
    key_batches = {batch.tobytes(): [keys[i] for i in batch.tolist()] for batch in batches}

    def reader(features: EmbeddingSet) -> Read:
        return lambda batch: features.gather(key_batches[batch.tobytes()], features.dtype)[0]

    layout, tried, parquet = best_parquet(box, contiguous, batches[:3])
    opaque = parquet_reader(write_parquet(box / "bytes.parquet", contiguous, BYTES, GROUP_ROWS[0]), contiguous.shape[1:], GROUP_ROWS[0])
    tried[f"{BYTES}, row groups of {GROUP_ROWS[0]} (not a peer)"] = round(1000 * min(over(opaque, batches[:3])[0] for _ in range(3)) / 3, 2)
    sides = {"ours": reader(stored), "unkept": reader(unkept), "peer": parquet, "limit": lambda batch: contiguous[batch]}
    if over(opaque, batches)[1] != over(parquet, batches)[1]:
        raise RuntimeError(f"the {BYTES} column gives other values than the list column")
    first = {side: over(read, batches)[0] for side, read in sides.items()}  # warm
    seconds = interleaved({side: lambda read=read: over(read, batches) for side, read in sides.items()}, ROUNDS)
    note = {
        "rows": rows,
        "MB": round(contiguous.nbytes / 1e6),
        "ours, first time, rows/s": round(BATCH * len(batches) / first["ours"], 1),
        "batch": BATCH,
        "batches per round": len(batches),
        "peer": layout,
        "layouts tried, ms per batch": tried,
        "ratios": "median over rounds",
    }
    names = {"ours": f"embed_gather_{name}", "unkept": f"embed_gather_{name}_unkept"}
    return [
        rates(entry, {"ours": seconds[side], "peer": seconds["peer"], "limit": seconds["limit"]}, BATCH * len(batches), "rows/s", seed, note)
        for side, entry in names.items()
    ]


def over(read: Read, batches: Sequence[np.ndarray]) -> tuple[float, tuple[int, int]]:
    """(seconds of the reading alone, checksum of all values)."""
    spent, total = 0.0, (0, 0)
    for batch in batches:
        started = time.perf_counter()
        features = read(batch)
        spent += time.perf_counter() - started
        total = checksum(features, total)
    return spent, total


def build(box: Path, rows: int, tokens: int, width: int) -> tuple[EmbeddingSet, EmbeddingSet, np.ndarray]:
    """(the features as the store gives them, the same without memory to keep them, one memory-mapped array [rows, tokens, width] in the order of keys)."""
    CONFIGS["noise_image"], ENCODERS["noise_image"] = NoiseImage, (NoiseImage, Noise)
    spec = NoiseImage(arch="noise", width=width, tokens=tokens, batch=64, part_rows=256)
    keys = {f"noise-{i:06d}": f"{i:064d}" for i in range(rows)}
    items = {address: Item(address=address, value=str(int(address))) for address in keys.values()}
    weights = Artifact(name="weights", path=box, fingerprint="", digest="none", result={})
    ctx = context(box, "embed", None, {"weights": weights})
    embed_items(spec, "image", keys, items, replace(ctx, resources=replace(ctx.resources, threads=1)))
    stored = EmbeddingSet(ctx.output, ctx.stores)
    path = box / "contiguous.npy"
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, tokens, width))
    for i, key in enumerate(stored.keys()):
        whole[i] = stored.get(key)
    whole.flush()
    with mock.patch.multiple(part_rows, KEPT_BYTES=0, spare_memory=lambda: 0):
        unkept = EmbeddingSet(ctx.output, ctx.stores)
    return EmbeddingSet(ctx.output, ctx.stores), unkept, np.load(path, mmap_mode="r")


def best_parquet(box: Path, contiguous: np.ndarray, batches: Sequence[np.ndarray]) -> tuple[str, dict[str, float], Read]:
    """(name, ms per batch of everything tried, reader) of the fastest layout and row group size."""
    found: dict[str, tuple[float, Path, Read]] = {}
    for layout, group in itertools.product(LAYOUTS, GROUP_ROWS):
        name = f"{layout}, row groups of {group}"
        path = write_parquet(box / f"{len(found)}.parquet", contiguous, layout, group)
        read = parquet_reader(path, contiguous.shape[1:], group)
        over(read, batches)
        spent = min(over(read, batches)[0] for _ in range(2))
        found[name] = (1000 * spent / len(batches), path, read)
        best = min(found, key=lambda n: found[n][0])
        for other in found:
            if other != best:
                found[other][1].unlink(missing_ok=True)
    return best, {name: round(ms, 2) for name, (ms, _, _) in found.items()}, found[best][2]


def write_parquet(path: Path, contiguous: np.ndarray, layout: str, group: int) -> Path:
    """One list per row; no compression and no dictionary, which noise does not gain from."""
    dtype, kind = layout.split()
    size, value = int(np.prod(contiguous.shape[1:])), pa.from_numpy_dtype(dtype)
    element = pa.field("element", value, nullable=False)
    kinds = {"fixed_size_list": pa.list_(element, size), "large_list": pa.large_list(element), "fixed_size_binary": pa.binary(size * np.dtype(dtype).itemsize)}
    schema = pa.schema([pa.field("features", kinds[kind], nullable=False)])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for start in range(0, len(contiguous), 1024):
            block = contiguous[start : start + 1024].reshape(-1, size).astype(dtype)
            if kind == "fixed_size_binary":
                column = pa.Array.from_buffers(kinds[kind], len(block), [None, pa.py_buffer(block)])
            elif kind == "fixed_size_list":
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=kinds[kind])
            else:
                column = pa.LargeListArray.from_arrays(pa.array(np.arange(len(block) + 1) * size), pa.array(block.reshape(-1)), type=kinds[kind])
            writer.write_table(pa.table([column], schema=schema), row_group_size=group)
    return path


def parquet_reader(path: Path, shape: tuple[int, ...], group: int) -> Read:
    """Reads the row groups that hold a wanted row, takes the rows in the order asked for."""
    file = pq.ParquetFile(path, memory_map=True)

    def read(batch: np.ndarray) -> np.ndarray:
        groups, place = np.unique(batch // group, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), use_threads=False)
        taken = table.column(0).combine_chunks().take(pa.array(place * group + batch % group))
        if pa.types.is_fixed_size_binary(taken.type):
            return np.frombuffer(taken.buffers()[1], np.float16).reshape(len(batch), *shape)
        return taken.flatten().to_numpy(zero_copy_only=True).reshape(len(batch), *shape).astype(np.float16, copy=False)

    return read
