"""Features: encoded images that an evaluation need not encode again.

Owns the reading of an embed artifact by the medium's sha256 (StoredFeatures) and a growing directory of features that evaluations
encoded themselves (KeptFeatures); both refuse another encoder's. Input: sha256 of a medium's bytes; output: features [N, E] or None.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from infra.fingerprint import fingerprint, to_plain
from infra.step import AnyloomError
from infra.storage import digest_tree, read_json, write_atomic
from mmcore.config import model_spec_from_json
from mmcore.stores.embeddings import EmbeddingSet, space_fields

if TYPE_CHECKING:
    from mmcore.encoder_config import EncoderConfig

SUFFIX = ".safetensors"


class FeatureSource(Protocol):
    """Features by the medium they are of."""

    def get(self, sha256: str) -> np.ndarray | None:
        """[N, E], or None when there are none."""
        ...


def exported_encoder(export: Path, modality: str = "image") -> tuple[EncoderConfig, str]:
    """(spec, digest of the weights) of an export's encoder. Raises AnyloomError when the export reads no such media."""

    spec = dict(model_spec_from_json(read_json(export / "anyloom.json")["model"]).encoders).get(modality)
    folder = export / "encoders" / ("image" if modality == "video" else modality)
    if spec is None or not folder.is_dir():
        raise AnyloomError(f"{export} reads no {modality}: export a model that does")
    return spec, digest_tree(folder)


class StoredFeatures:
    """Features of one embed artifact, by the sha256 of the medium.

    aliases: sha256 of other bytes with the same pixels -> sha256 of the medium that was embedded (an image that was put on white, say).
    """

    def __init__(self, artifact: Path, stores: Path, export: Path, modality: str = "image", aliases: Mapping[str, str] | None = None):
        """Raises AnyloomError when another encoder, or the same with other weights, made them."""
        import pyarrow.parquet as pq

        spec, weights = exported_encoder(export, modality)
        try:
            self._set = EmbeddingSet(artifact, stores, expect=spec)
        except ValueError as error:
            raise AnyloomError(f"{error}: use the embeddings of the export's own encoder") from error
        if self._set.space["weights"] != weights:
            raise AnyloomError(f"{artifact} was made with other encoder weights than {export} has: use the embeddings of its own recipe")
        rows = pq.read_table(artifact / "rows.parquet", columns=["key", "media_sha256"]).to_pydict()
        self._key = dict(zip(reversed(rows["media_sha256"]), reversed(rows["key"]), strict=True))
        self._aliases = dict(aliases or {})
        self.served = 0
        """Media that were found."""

    def get(self, sha256: str) -> np.ndarray | None:
        """See FeatureSource."""
        key = self._key.get(self._aliases.get(sha256, sha256))
        if key is None:
            return None
        self.served += 1
        return self._set.get(key)


class KeptFeatures:
    """Features that evaluations encoded, kept for the next ones: one immutable file per batch in a directory per encoder and weights."""

    def __init__(self, stores: Path, spec: Any, weights: str):

        identity = {"spec": to_plain(space_fields(spec)), "weights": weights, "calls": "one picture each"}
        self.directory = stores / "eval_features" / fingerprint(identity)[:12]
        self._file: dict[str, Path] = {}
        self._new: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            self._file |= dict.fromkeys(_names(path), path)

    def get(self, sha256: str) -> np.ndarray | None:
        """See FeatureSource."""
        from safetensors import safe_open

        with self._lock:
            if sha256 in self._new:
                return self._new[sha256]
            path = self._file.get(sha256)
        if path is None:
            return None
        with safe_open(path, framework="np") as file:
            return file.get_tensor(sha256)

    def add(self, sha256: str, features_NE: np.ndarray) -> None:
        """Remember the features of one medium; `flush` writes them."""
        with self._lock:
            self._new[sha256] = features_NE

    def flush(self) -> None:
        """Write what is new as one file, whole or not at all."""
        from safetensors.numpy import save

        with self._lock:
            new, self._new = self._new, {}
            if not new:
                return
            name = hashlib.sha256("".join(sorted(new)).encode()).hexdigest()[:16]
            path = self.directory / f"{name}{SUFFIX}"
            write_atomic(path, save(dict(sorted(new.items()))))
            self._file |= dict.fromkeys(new, path)


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return list(file.keys())
