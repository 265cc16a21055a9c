"""EmbeddingSet: reads the features that one embed artifact pins, by sample key.

Owns memory-mapped access to ragged rows of the embedding store. Input: an artifact directory (generation.json, rows.parquet) and the
stores directory its parts live in; output: zero-padded float32 batches. Refuses to read a part without a committed record or with another
digest than the artifact pins. Refuses to know how features are made.

Shape letters: B batch, N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import read_json
from mmcore.config import EncoderSpec
from mmcore.data.shards import pinned_entries

PART_SCHEMA = pa.schema([("media_sha256", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
"""Rows of a part: media_sha256 addresses the medium (a span of it as `sha256@start-end`) or text; offset and length in tokens of features.npy."""
ROWS_SCHEMA = pa.schema([("key", pa.string()), ("media_sha256", pa.string()), ("part", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
"""Rows of an artifact: which part holds a sample's features. part: name of the part's directory."""


class EmbeddingSet:
    """Features of every sample of one artifact; samples that share a medium share the stored rows."""

    def __init__(self, artifact_dir: Path, stores: Path):
        """Raises ValueError when a part is missing, uncommitted or not the one that was pinned."""
        artifact_dir, stores = Path(artifact_dir), Path(stores)
        generation = read_json(artifact_dir / "generation.json")
        self.modality: str = generation["modality"]
        self.space: dict[str, Any] = generation["space"]
        self.spec = EncoderSpec(**self.space["spec"])
        self._parts = {Path(path).name: stores / path for path in pinned_entries(artifact_dir, stores)}
        rows = pq.read_table(artifact_dir / "rows.parquet", schema=ROWS_SCHEMA)
        self._keys: list[str] = rows.column("key").to_pylist()
        self._row = {key: i for i, key in enumerate(self._keys)}
        self._part: list[str] = rows.column("part").to_pylist()
        self._offset, self._length = rows.column("offset").to_numpy(), rows.column("length").to_numpy()
        self._open: dict[str, np.ndarray] = {}

    @property
    def width(self) -> int:
        """E."""
        return self.spec.width

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return list(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def __len__(self) -> int:
        return len(self._keys)

    def length(self, key: str) -> int:
        """N of one sample."""
        return int(self._length[self._at(key)])

    def get(self, key: str) -> np.ndarray:
        """Stored features [N, E] of one sample, as stored (a view of the file)."""
        i = self._at(key)
        part, start = self._part[i], int(self._offset[i])
        if part not in self._open:
            self._open[part] = np.load(self._parts[part] / "features.npy", mmap_mode="r", allow_pickle=False)
        return self._open[part][start : start + int(self._length[i])]

    def gather(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(features_BNE float32 zero-padded to the longest of the batch, lengths_B int64). Raises ValueError for an unknown key."""
        pieces = [self.get(key) for key in keys]
        lengths_B = np.array([len(piece) for piece in pieces], np.int64)
        features_BNE = np.zeros((len(pieces), int(lengths_B.max(initial=0)), self.width), np.float32)
        for row, piece in zip(features_BNE, pieces, strict=True):
            row[: len(piece)] = piece
        return features_BNE, lengths_B

    def _at(self, key: str) -> int:
        try:
            return self._row[key]
        except KeyError:
            raise ValueError(f"no {self.modality} features of '{key}' in this artifact") from None
