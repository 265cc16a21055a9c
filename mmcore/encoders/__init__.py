"""Encoders: frozen modality encoders behind one face, raw bytes -> features.

Owns the registry (a literal dict) and the Encoder protocol. Input: an EncoderSpec and a weights artifact directory; output: an Encoder.
Refuses to know where features are stored and in what order items come.

Shape letters: N feature tokens, E encoder width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmcore.config import EncoderSpec, check_encoder
from mmcore.data.features import computed_dtype


class Encoder(Protocol):
    """A frozen encoder. `encode` is `forward` of every `prepare`d item, spec.batch at a time."""

    spec: EncoderSpec

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> Any:
        """Decode and preprocess one item (or its span in seconds); may run in another thread than forward. Raises MediaError."""
        ...

    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """One encoder call on prepared items: features [N_i, E] of spec.dtype."""
        ...

    def encode(self, items: Sequence[bytes]) -> list[np.ndarray]:
        """Decode, preprocess and encode: features [N_i, E] of spec.dtype, in the order of the items."""
        ...


class BatchedEncoder:
    """Shared half of the encoders: cuts items into calls of spec.batch."""

    spec: EncoderSpec

    @property
    def out_dtype(self) -> str:
        """NumPy type of the features: float16 where they are stored so, else float32 (the store packs bfloat16 and int8)."""
        return computed_dtype(self.spec.dtype)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> Any:
        """See Encoder."""
        raise TypeError(f"{type(self).__name__} defines no prepare")

    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """See Encoder."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def encode(self, items: Sequence[bytes]) -> list[np.ndarray]:
        """See Encoder."""
        features: list[np.ndarray] = []
        for start in range(0, len(items), self.spec.batch):
            features += self.forward([self.prepare(data) for data in items[start : start + self.spec.batch]])
        return features


def _from(module: str, name: str) -> Callable[[EncoderSpec, Path], Encoder]:
    """A loader that imports its module when it is called."""

    def load(spec: EncoderSpec, weights_dir: Path) -> Encoder:
        encoder: Encoder = getattr(importlib.import_module(f"mmcore.encoders.{module}"), name)(spec, weights_dir)
        return encoder

    return load


ENCODERS: dict[str, Callable[[EncoderSpec, Path], Encoder]] = {
    "timm_image": _from("timm_image", "TimmImageEncoder"),
    "timm_video": _from("timm_image", "TimmVideoEncoder"),
    "hf_image": _from("hf_vision", "HfImageEncoder"),
    "hf_video": _from("hf_vision", "HfVideoEncoder"),
    "whisper_audio": _from("whisper", "WhisperAudioEncoder"),
    "hf_audio": _from("hf_audio", "HfAudioEncoder"),
    "hf_text": _from("hf_text", "HfTextEncoder"),
    "bert_text": _from("bert_text", "BertTextEncoder"),
    "imagebind_image": _from("imagebind_encoders", "ImageBindImageEncoder"),
    "imagebind_video": _from("imagebind_encoders", "ImageBindVideoEncoder"),
    "imagebind_audio": _from("imagebind_encoders", "ImageBindAudioEncoder"),
    "imagebind_text": _from("imagebind_encoders", "ImageBindTextEncoder"),
}

MODALITY_OF = {kind: kind.rpartition("_")[2] for kind in ENCODERS}
"""What each kind encodes."""


def load_encoder(spec: EncoderSpec, weights_dir: Path) -> Encoder:
    """The encoder of `spec` with the weights of an artifact (`weights_dir/encoder/…`). Raises ValueError when they do not fit."""
    if spec.kind not in ENCODERS:
        raise ValueError(f"unknown encoder kind '{spec.kind}': choose one of {', '.join(sorted(ENCODERS))}")
    check_encoder(spec)
    encoder = ENCODERS[spec.kind](spec, Path(weights_dir))
    if not spec.tiles:
        return encoder
    from mmcore.encoders.tiled import TiledEncoder

    return TiledEncoder(spec, encoder)
