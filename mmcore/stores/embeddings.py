"""EmbeddingSet: reads the features that one embed artifact pins, by sample key.

Owns the way from a sample's key to ragged rows of the embedding store. Input: an artifact directory (generation.json, rows.parquet) and the
stores directory its parts live in; output: zero-padded batches. Raises ValueError for another encoder's features; AnyloomError for a part without a committed
record or with another digest than the artifact pins, and for a damaged file: each is compared with its record before its first row is read.

Shape letters: B batch, N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.entries import intact, pinned_entries
from infra.storage import read_json
from mmcore.encoder_config import EncoderConfig, encoder_from_json
from mmcore.stores.features import CHANNELS, SCALES, STORED, VALUES, computed_dtype, unpack
from mmcore.stores.part_rows import PartRows

PLAN_FIELDS = ("batch", "part_rows")
"""Fields of an encoder's config that say how work is cut, not what is computed: they change features by rounding at most and are no part of a space."""
ADDED_FIELDS: dict[str, Any] = {"layer": 0, "pad": False}
"""Fields of a spec that came later, and the value that leaves the features as they were before: spaces made then keep their name."""
PART_SCHEMA = pa.schema([("media_sha256", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
"""Rows of a part: media_sha256 addresses the medium (a span of it as `sha256@start-end`) or text; offset and length in tokens of features.npy."""
ROWS_SCHEMA = pa.schema([("key", pa.string()), ("media_sha256", pa.string()), ("part", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
"""Rows of an artifact: which part holds a sample's features. part: name of the part's directory."""
WHERE_BYTES = 3 * np.dtype(np.int64).itemsize
"""Where a sample's rows are: part, offset and length. Bytes that are found with the key, since random access to arrays of them costs as much again."""


class EmbeddingSet:
    """Features of every sample of one artifact; samples that share a medium share the stored rows."""

    def __init__(self, artifact_dir: Path, stores: Path, expect: EncoderConfig | None = None):
        """expect: the encoder the reader believes made the features.

        Raises AnyloomError when a part is missing, uncommitted or not the one that was pinned, ValueError when another encoder made them, naming the fields.
        """
        artifact_dir, stores = Path(artifact_dir), Path(stores)
        generation = read_json(artifact_dir / "generation.json")
        self.modality: str = generation["modality"]
        self.space: dict[str, Any] = generation["space"]
        if expect is not None:
            refuse_other_encoder(self.space["spec"], expect, artifact_dir)
        self.spec = encoder_from_json(self.space["spec"])
        rows = pq.read_table(artifact_dir / "rows.parquet", schema=ROWS_SCHEMA)
        self._keys: list[str] = rows.column("key").to_pylist()
        parts = rows.column("part").combine_chunks().dictionary_encode()
        pinned = {Path(path).name: stores / path for path in pinned_entries(artifact_dir, stores)}
        self._paths = [pinned[name] for name in parts.dictionary.to_pylist()]
        part, offset, length = parts.indices.to_numpy(), rows.column("offset").to_numpy(), rows.column("length").to_numpy()
        packed = np.stack([part, offset, length], axis=1, dtype=np.int64).tobytes()
        self._where = {key: packed[at : at + WHERE_BYTES] for key, at in zip(self._keys, range(0, len(packed), WHERE_BYTES), strict=True)}
        rows_P = np.zeros(len(self._paths), np.int64)
        np.maximum.at(rows_P, part, offset + length)
        same = int(length[0]) if len(length) and (length == length[0]).all() else None
        self._values = PartRows([path / VALUES for path in self._paths], rows_P, self.width, STORED[self.spec.dtype], same, _intact)
        self._scales = PartRows([path / SCALES for path in self._paths], rows_P, 1, "float32", same, _intact) if self.spec.dtype == "int8" else None
        once_P = np.minimum(rows_P, 1)
        by_channel = self.spec.dtype == "int8" and self.space.get("format", 1) >= 2
        self._channels = PartRows([path / CHANNELS for path in self._paths], once_P, self.width, "float32", 1, _intact) if by_channel else None

    @property
    def width(self) -> int:
        """E."""
        return self.spec.width

    @property
    def dtype(self) -> str:
        """NumPy type that `get` gives and `gather` can give without a conversion."""
        return computed_dtype(self.spec.dtype)

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return list(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._keys)

    def length(self, key: str) -> int:
        """N of one sample."""
        return int(self._find([key])[0, 2])

    def parts_of(self, keys: Sequence[str]) -> list[Path]:
        """Directories of the parts that hold these samples, sorted."""
        return sorted({self._paths[part] for part in set(self._find(keys)[:, 0].tolist())})

    def get(self, key: str) -> np.ndarray:
        """Features [N, E] of one sample: float16 for those that are stored as float16, else float32."""
        return self._features(self._find([key]))[0]

    def gather(self, keys: Sequence[str], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """(features_BNE of `dtype`, zero-padded to the longest of the batch; lengths_B int64). Raises ValueError for an unknown key."""
        where_B3 = self._find(keys)
        return self._features(where_B3).astype(dtype, copy=False), where_B3[:, 2].copy()

    def _features(self, where_B3: np.ndarray) -> np.ndarray:
        part_B, start_B, length_B = where_B3.T
        scales = None if self._scales is None else self._scales.take(part_B, start_B, length_B)[..., 0]
        channels = None if self._channels is None else self._channels.take(part_B, np.zeros_like(start_B), np.ones_like(length_B))
        return unpack(self._values.take(part_B, start_B, length_B), scales, channels)

    def _find(self, keys: Sequence[str]) -> np.ndarray:
        """[B, 3] part, offset and length of each key."""
        try:
            found = itemgetter(*keys)(self._where) if len(keys) > 1 else [self._where[key] for key in keys]
        except KeyError as error:
            raise ValueError(f"no {self.modality} features of '{error.args[0]}' in this artifact") from None
        return np.frombuffer(b"".join(found), np.int64).reshape(-1, 3)


def _intact(path: Path) -> Path:
    return intact(path.parent, path.name)


def space_fields(spec: EncoderConfig) -> dict[str, Any]:
    """What of a spec decides the features: all but PLAN_FIELDS, and ADDED_FIELDS where they say something."""
    fields = spec.identity_fields().items()
    return {name: value for name, value in fields if name not in PLAN_FIELDS and not (name in ADDED_FIELDS and value == ADDED_FIELDS[name])}


def refuse_other_encoder(stored: Mapping[str, Any], expect: EncoderConfig, artifact_dir: Path) -> None:
    """Raises ValueError naming every field in which the stored features' encoder is not the expected one."""
    expected = ADDED_FIELDS | space_fields(expect)
    found = {name: stored.get(name, ADDED_FIELDS.get(name)) for name in expected}
    differing = [f"{name} is {found[name]!r} there and {expected[name]!r} here" for name in sorted(expected) if found[name] != expected[name]]
    if differing:
        raise ValueError(f"{artifact_dir} holds features of another encoder: {'; '.join(differing)}")
