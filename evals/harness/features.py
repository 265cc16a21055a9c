"""Features: encoded images that an evaluation need not encode again.

Owns the reading of an embed artifact by the medium's sha256 (StoredFeatures) and a growing directory of features that evaluations
encoded themselves (KeptFeatures); both refuse another encoder's. Input: sha256 of a medium's bytes; output: features [N, E] or None. Raises AnyloomError
for features of another encoder and for damaged ones of an artifact. A damaged file that an evaluation kept is not used: its features are made again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from infra.fingerprint import fingerprint, to_plain
from infra.step import AnyloomError
from infra.storage import digest_tree, read_json, sha256_file, sha256_known, write_atomic
from mmcore.config import model_spec_from_json
from mmcore.stores.embeddings import EmbeddingSet, space_fields

if TYPE_CHECKING:
    from mmcore.encoder_config import EncoderConfig

SUFFIX = ".safetensors"
KEPT = "eval_features"
"""Directory of KeptFeatures below the stores."""


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
    """Features that evaluations encoded, kept for the next ones: one immutable file per batch in a directory per encoder and weights, which is called by
    the hash of its bytes."""

    def __init__(self, stores: Path, spec: Any, weights: str):

        identity = {"spec": to_plain(space_fields(spec)), "weights": weights, "calls": "one picture each"}
        self.directory = stores / KEPT / fingerprint(identity)[:12]
        self._file: dict[str, Path] = {}
        self._new: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            if not _named_by_bytes(path):
                continue  # of an earlier version: nobody knows whether it is whole
            if sha256_known(path) == path.stem:
                self._file |= dict.fromkeys(_names(path), path)
            else:
                logging.getLogger(__name__).warning("%s was changed or damaged: its features are made again", path)

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
            data = save(dict(sorted(new.items())))
            path = self.directory / f"{hashlib.sha256(data).hexdigest()}{SUFFIX}"
            write_atomic(path, data)
            self._file |= dict.fromkeys(new, path)


def _named_by_bytes(path: Path) -> bool:
    return len(path.stem) == hashlib.sha256().digest_size * 2


def damaged_files(stores: Path) -> list[Path]:
    """The files of KeptFeatures below the stores that are not what was written."""
    return [path for path in sorted((stores / KEPT).glob(f"*/*{SUFFIX}")) if _named_by_bytes(path) and sha256_file(path) != path.stem]


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return list(file.keys())
