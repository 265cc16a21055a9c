"""Encoders: frozen modality encoders behind one face, raw bytes -> features.

Owns the registry (a literal dict) and the Encoder protocol. Input: an EncoderSpec and a weights artifact directory; output: an Encoder.
Refuses to know where features are stored and in what order items come.

Shape letters: N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmcore.config import EncoderSpec


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


def _timm_image(spec: EncoderSpec, weights_dir: Path) -> Encoder:
    from mmcore.encoders.timm_image import TimmImageEncoder

    return TimmImageEncoder(spec, weights_dir)


def _timm_video(spec: EncoderSpec, weights_dir: Path) -> Encoder:
    from mmcore.encoders.timm_image import TimmVideoEncoder

    return TimmVideoEncoder(spec, weights_dir)


def _whisper_audio(spec: EncoderSpec, weights_dir: Path) -> Encoder:
    from mmcore.encoders.whisper import WhisperAudioEncoder

    return WhisperAudioEncoder(spec, weights_dir)


def _bert_text(spec: EncoderSpec, weights_dir: Path) -> Encoder:
    from mmcore.encoders.bert_text import BertTextEncoder

    return BertTextEncoder(spec, weights_dir)


ENCODERS: dict[str, Callable[[EncoderSpec, Path], Encoder]] = {
    "timm_image": _timm_image,
    "timm_video": _timm_video,
    "whisper_audio": _whisper_audio,
    "bert_text": _bert_text,
}

MODALITY_OF = {"timm_image": "image", "timm_video": "video", "whisper_audio": "audio", "bert_text": "text"}
"""What each kind encodes."""


def load_encoder(spec: EncoderSpec, weights_dir: Path) -> Encoder:
    """The encoder of `spec` with the weights of an artifact (`weights_dir/encoder/…`). Raises ValueError when they do not fit."""
    if spec.kind not in ENCODERS:
        raise ValueError(f"unknown encoder kind '{spec.kind}': choose one of {', '.join(sorted(ENCODERS))}")
    return ENCODERS[spec.kind](spec, Path(weights_dir))
