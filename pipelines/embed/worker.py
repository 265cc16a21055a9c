"""Worker of the embedding store: one part after the other, each committed on its own.

Owns the loop read -> decode -> encode -> commit. On a CPU every torch call of an encoder uses one thread, and a part's batches are fixed by its task, so
the bytes are the same with one worker or many, with Ray or without. When memory runs out the batch is halved, for the rest of this worker's life, and
the part's record says so. A medium that the encoder cannot take is left out of its part, which says why; the others go on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import io
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.entries import commit_entry
from infra.settings import offline_environment
from infra.step import AnyloomError, about
from infra.storage import disk_errors, write_atomic, write_parquet
from mmcore.encoder_config import EncoderConfig
from mmcore.encoders import load_encoder
from mmcore.media.decode import MediaError
from mmcore.runtime.devices import is_of_one_medium, out_of_memory
from mmcore.stores.embeddings import PART_SCHEMA
from mmcore.stores.features import computed_dtype, pack, relative_error, worst_channel_error
from mmcore.stores.shards import ShardSet

LEFT_OUT = "left_out.json"
"""In a part that has any: address -> [reason, detail] of what the encoder cannot take."""
NOT_ENCODABLE = "not_encodable"
"""Reason of a medium that decodes, but that the encoder fails on; the others are those of a MediaError."""
AHEAD = 2
"""Batches read (beside a GPU: and decoded) ahead of the encoder."""
RECORDED = ("torch", "timm", "transformers", "diffusers", "av", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing to encode: a sample's medium, or a text."""

    address: str
    """Name in the store: the medium's sha256 (with its span), or the text's."""
    generation: str = ""
    """Directory of the shards artifact that holds the medium; "" for a text."""
    value: str = ""
    """Sample key, or the text itself."""
    start_s: float = 0.0
    end_s: float | None = None
    """Span of the medium in seconds; None: to its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartTask:
    """One part to encode; plain values, so that it can travel to another process."""

    items: tuple[Item, ...]
    entry: Path
    staging: Path
    """Scratch directory of this part on the same file system."""
    batch: int
    """Items per encoder call, as planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartDone:
    """What a worker says about a part it has committed."""

    items: int
    encode_s: float
    """Seconds inside the encoder."""
    batch: int
    """Items per encoder call, after any halving."""
    workers: int = 1
    """Workers of the pool it belongs to."""


class PartBuilder:
    """One encoder copy that turns tasks into committed parts. Not for use by several threads at once."""

    def __init__(self, spec: EncoderConfig, weights_dir: Path, stores: Path, device: str = "cpu", decoders: int = 1):
        """device: `cpu` or `cuda:<n>`; decoders: threads that work ahead of the encoder. Beside a GPU they read and decode; on a CPU, where decoding would take
        turns with the encoder for the same core, they read only."""
        offline_environment()
        keep_freed_memory()
        import torch

        torch.set_num_threads(1)
        self._encoder = load_encoder(spec, weights_dir, device)
        self._spec, self._stores, self._device, self._decoders = spec, stores, device, decoders
        self._decodes_ahead = device != "cpu"
        self._shards: dict[str, ShardSet] = {}
        self._batch = sys.maxsize
        """Largest batch that has not run out of memory."""
        self._encode_s = 0.0
        self._left: dict[str, tuple[str, str]] = {}
        """Address -> (reason, detail) of what the encoder cannot take, of the part that is being built."""
        self._failure: Exception | None = None
        """What the encoder raised last for one medium of that part."""

    def build(self, task: PartTask) -> PartDone:
        """Encode and commit one part. What the encoder cannot take is left out, with its reason. Raises what the encoder
        raises when it takes nothing of a part, AnyloomError when one item needs more memory than there is or the disk is full."""
        import torch

        torch.set_num_threads(1)  # the setting belongs to the thread that computes
        self._batch, self._encode_s = min(self._batch, task.batch), 0.0
        self._left, self._failure = {}, None
        features = self._encode(task)
        if self._failure is not None and not features and len(task.items) > 1:  # not one medium, but the encoder or the machine
            raise self._failure
        shutil.rmtree(task.staging, ignore_errors=True)
        try:
            with disk_errors(task.entry):
                task.staging.mkdir(parents=True)
                errors = self._write(task, features)
                record = {"items": len(features), "libraries": library_versions(), "device": self._device.partition(":")[0]}
                commit_entry(task.entry, task.staging, {**record, **errors, "batch": self._batch, "planned_batch": task.batch})
        finally:
            shutil.rmtree(task.staging, ignore_errors=True)
        return PartDone(items=len(features), encode_s=self._encode_s, batch=self._batch)

    def _encode(self, task: PartTask) -> list[np.ndarray]:
        """Features [N_i, E] of every item that is not left out; the threads stay AHEAD batches before the encoder."""
        for generation in sorted({item.generation for item in task.items} - {"", *self._shards}):
            self._shards[generation] = ShardSet(Path(generation), self._stores)
        batches = iter([task.items[start : start + task.batch] for start in range(0, len(task.items), task.batch)])
        features: list[np.ndarray] = []
        waiting: deque[tuple[Sequence[Item], list[Future[Any]]]] = deque()
        with ThreadPoolExecutor(self._decoders, "decode") as pool:
            try:
                for batch in islice(batches, AHEAD):
                    waiting.append((batch, self._start(pool, batch)))
                while waiting:
                    items, started = waiting.popleft()
                    prepared = [(item, ready) for item, ready in zip(items, self._prepared(items, started), strict=True) if item.address not in self._left]
                    for batch in islice(batches, 1):
                        waiting.append((batch, self._start(pool, batch)))
                    features += self._forward(prepared)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return features

    def _start(self, pool: ThreadPoolExecutor, batch: Sequence[Item]) -> list[Future[Any]]:
        """What runs ahead: on a CPU the reading of the whole batch, beside a GPU the reading and decoding of each item."""
        if self._decodes_ahead:
            return [pool.submit(lambda item: self._prepare(item, self._read(item)), item) for item in batch]
        return [pool.submit(lambda: [self._read(item) for item in batch])]

    def _prepared(self, batch: Sequence[Item], started: Sequence[Future[Any]]) -> list[Any]:
        """The items of a batch as the encoder takes them."""
        if self._decodes_ahead:
            return [future.result() for future in started]
        return [self._prepare(item, data) for item, data in zip(batch, started[0].result(), strict=True)]

    def _forward(self, prepared: list[tuple[Item, Any]]) -> list[np.ndarray]:
        """Features of prepared items, the batch halved as long as memory does not suffice. One that fails alone is left out, and the batch is what it was."""
        features: list[np.ndarray] = []
        started = time.monotonic()
        whole, at, alone = self._batch, 0, 0
        while at < len(prepared):
            some = prepared[at : at + (1 if at < alone else self._batch)]
            try:
                features += self._encoder.forward([ready for _, ready in some])
            except (MemoryError, RuntimeError, ValueError) as error:
                if not is_of_one_medium(error):
                    raise
                if len(some) == 1:
                    self._leave_out(some[0][0], error, self._device)
                    at, self._batch = at + 1, whole
                elif out_of_memory(error):
                    self._batch = max(1, min(self._batch, len(some)) // 2)
                else:
                    alone = at + len(some)
            else:
                at += len(some)
                continue
            free_device_memory()
        self._encode_s += time.monotonic() - started
        return features

    def _read(self, item: Item) -> bytes:
        with about(item.value if item.generation else item.address):
            return self._shards[item.generation].media(item.value) if item.generation else item.value.encode()

    def _prepare(self, item: Item, data: bytes) -> Any:
        if not item.generation:
            return self._encoder.prepare(data)
        try:
            return self._encoder.prepare(data, item.start_s, item.end_s)
        except MediaError as error:
            self._left[item.address] = (error.reason, error.detail)
        except (MemoryError, RuntimeError, ValueError, ArithmeticError) as error:
            if not is_of_one_medium(error):
                raise
            self._leave_out(item, error, "this machine")
        return None

    def _leave_out(self, item: Item, error: Exception, where: str) -> None:
        """Note that the encoder cannot take an item. Raises AnyloomError when it is the memory that does not suffice: elsewhere, or later, it may."""
        encoder = f"the encoder {self._spec.kind} {self._spec.arch}"
        if out_of_memory(error):
            raise AnyloomError(
                f"{item.value}: {encoder} needs more memory for it alone than {where} has free: free some, or take it out of its list, and run the same "
                "command again"
            ) from error
        self._failure = error
        self._left[item.address] = NOT_ENCODABLE, f"{encoder} cannot take it ({type(error).__name__}: {' '.join(str(error).split())[:160]})"

    def _write(self, task: PartTask, features: list[np.ndarray]) -> dict[str, float]:
        """The feature files [all tokens, E] and rows.parquet. Returns what the stored type costs: relative_error of all, and of the worst
        channel."""
        lengths = np.array([len(rows) for rows in features], np.int64)
        together = np.concatenate(features) if features else np.zeros((0, self._spec.width), computed_dtype(self._spec.dtype))
        if together.shape[1] != self._spec.width:
            raise ValueError(f"encoder {self._spec.arch} gave features of shape {together.shape}, the spec says {self._spec.width} channels")
        files = pack(together, self._spec.dtype)
        for name, array in files.items():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)  # row after row, also when the encoder gave columns
            write_atomic(task.staging / name, buffer.getvalue())
        columns = {
            "media_sha256": [item.address for item in task.items if item.address not in self._left],
            "offset": np.cumsum(lengths) - lengths,
            "length": lengths,
        }
        write_parquet(pa.table(columns, schema=PART_SCHEMA), task.staging / "rows.parquet")
        if self._left:
            write_atomic(task.staging / LEFT_OUT, json.dumps(self._left, indent=1, sort_keys=True))
        if not features:
            return {"relative_error": 0.0, "worst_channel_error": 0.0}
        return {"relative_error": relative_error(together, files), "worst_channel_error": worst_channel_error(together, files)}


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what decides the features."""
    return {name: importlib.metadata.version(name) for name in RECORDED}


def free_device_memory() -> None:
    """Give cached blocks back before the next, smaller try."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving them back to the kernel at once.

    Activations are tens of megabytes, so by default every layer maps fresh zeroed pages: half of the time of a small convolutional encoder.
    Changes no values. Does nothing where the C library has no mallopt.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_arena_max, 1)  # arenas of further threads are limited to 64 MB
