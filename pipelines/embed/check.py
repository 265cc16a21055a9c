"""Check: are the stored features still what the encoder gives? Re-encodes a seeded sample and compares.

Owns the sample, the tolerance per stored type and the comparison. Input: an embedding artifact, the shards and weights it was made from; output: one
Checked. Nothing is repaired. Bytes may differ between machines, library versions and batch sizes; features must not, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.artifact import ArtifactRecord, all_records, find
from infra.entries import damage
from infra.settings import offline_environment
from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.encoder_config import encoder_from_json
from mmcore.encoders import load_encoder
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.shards import ShardSet
from pipelines.embed.space import text_sha256

TOLERANCES = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 3e-2}
"""Stored type -> largest norm-relative difference of one medium's features that passes."""
TEXT = "text:"
"""Keys of texts start with this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """The outcome for one artifact."""

    name: str
    """step/fingerprint12."""
    media: int
    """Media that were encoded again."""
    largest: float
    """Largest norm-relative difference of one medium."""
    worst: str
    """Key of that medium."""
    tolerance: float
    damaged: tuple[str, ...]
    """Parts (of those sampled) whose bytes are not the ones that were committed."""

    @property
    def passed(self) -> bool:
        """True when nothing is damaged or beyond the tolerance."""
        return not self.damaged and self.largest <= self.tolerance


def embedding_artifacts(root: Path, name: str | None) -> list[tuple[Path, ArtifactRecord]]:
    """The artifact called `name`, or the newest of every step that embeds. Raises AnyloomError when there is none."""
    if name is not None:
        found = [find(root, name)]
    else:
        found = list({record.name: (path, record) for path, record in all_records(root)}.values())
    found = [(path, record) for path, record in found if (path / "generation.json").exists() and "space" in read_json(path / "generation.json")]
    if not found:
        raise AnyloomError(f"no embeddings{f' called {name}' if name else ''} below {root}: make them with `anyloom embed build`")
    return found


def check(root: Path, name: str | None, sample: int, seed: int, tolerance: float | None, progress: Callable[[str], None]) -> Iterator[Checked]:
    """One Checked per embedding artifact. sample: media of each; tolerance: None for that of the stored type."""
    offline_environment()
    for path, record in embedding_artifacts(root, name):
        progress(f"{record.name}/{path.name}")
        yield _check_one(root, path, record, sample, seed, tolerance)


def _check_one(root: Path, path: Path, record: ArtifactRecord, sample: int, seed: int, tolerance: float | None) -> Checked:
    stores = root / "stores"
    stored = EmbeddingSet(path, stores)
    spec = encoder_from_json({**stored.space["spec"], **record.payload["config"].get("spec", {})})
    keys = stored.keys()
    chosen = [keys[i] for i in sorted(np.random.default_rng(seed).choice(len(keys), min(sample, len(keys)), replace=False).tolist())]
    inputs = {input_name: root / "artifacts" / reference for input_name, reference in record.inputs.items()}
    for input_name, directory in inputs.items():
        if not directory.exists():
            raise AnyloomError(f"{record.name}/{path.name} cannot be encoded again: its input {input_name} ({record.inputs[input_name]}) was removed")
    encoder = load_encoder(spec, inputs["weights"])
    media = _Media({n: d for n, d in inputs.items() if n.startswith("shards_")}, stores)
    largest, worst = 0.0, ""
    for start in range(0, len(chosen), spec.batch):
        batch = chosen[start : start + spec.batch]
        for key, fresh in zip(batch, encoder.forward([encoder.prepare(*media.of(key)) for key in batch]), strict=True):
            try:
                difference = relative_difference(stored.get(key), fresh)
            except AnyloomError:  # its part is among the damaged ones
                difference = float("inf")
            if difference > largest:
                largest, worst = difference, key
    damaged = tuple(part.name for part in stored.parts_of(chosen) if damage(part))
    return Checked(
        name=f"{record.name}/{path.name}",
        media=len(chosen),
        largest=largest,
        worst=worst,
        tolerance=TOLERANCES[spec.dtype] if tolerance is None else tolerance,
        damaged=damaged,
    )


def relative_difference(stored_NE: np.ndarray, fresh_NE: np.ndarray) -> float:
    """Norm of the difference over the norm of the fresh features; infinite when the shapes differ."""
    if stored_NE.shape != fresh_NE.shape:
        return float("inf")
    fresh = fresh_NE.astype(np.float64)
    norm = float(np.linalg.norm(fresh))
    return float(np.linalg.norm(stored_NE.astype(np.float64) - fresh)) / norm if norm else float(np.abs(stored_NE).max(initial=0.0))


class _Media:
    """key -> what its features were made from: (bytes, start_s, end_s)."""

    def __init__(self, shards: Mapping[str, Path], stores: Path):
        self._sets = [ShardSet(path, stores) for _, path in sorted(shards.items())]
        self._texts: dict[str, str] = {}
        self._spans: dict[str, tuple[ShardSet, float, float | None]] = {}
        for shard_set in self._sets:
            columns = (shard_set.index.column(column).to_pylist() for column in ("key", "start_s", "end_s"))
            for key, start_s, end_s in zip(*columns, strict=True):
                self._spans[key] = (shard_set, start_s or 0.0, end_s)

    def of(self, key: str) -> tuple[Any, ...]:
        """Arguments of Encoder.prepare. Raises AnyloomError for a text or sample that the shards no longer hold."""
        if not key.startswith(TEXT):
            shard_set, start_s, end_s = self._spans[key]
            return shard_set.media(key), start_s, end_s
        if not self._texts:
            self._texts = {text_sha256(text): text for shard_set in self._sets for meta in shard_set.metas(shard_set) for text in meta["texts"]}
        if key.removeprefix(TEXT) not in self._texts:
            raise AnyloomError(f"the text with the address {key} is in none of the shards")
        return (self._texts[key.removeprefix(TEXT)].encode(),)
