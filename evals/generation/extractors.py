"""Extractors: media -> vectors by the exported model's own encoders, and the space that some of them share with sentences.

Owns how a medium becomes one vector (the mean of its tokens; of a video, one for each looked-at frame), scrambled controls, and where CLIPScore is allowed.
Input: an export, a text encoder's weights; output: float32 vectors and digests.

Shape letters: M media, E encoder width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from infra.storage import digest_tree
from mmcore.encoder_config import EncoderConfig, pooled
from mmcore.encoders import load_encoder
from mmcore.media.decode import decode_image, decode_video_frames
from mmcore.media.encode import wav

FOLDERS = {"image": "image", "video": "image", "audio": "audio"}
"""Modality -> folder of the weights in an export."""
CLIPSCORE_WEIGHT = 2.5
"""Hessel et al. 2021 (arXiv 2104.08718): CLIPScore = 2.5 max(cos, 0)."""


class Extractor:
    """One encoder of an export. spec: of images for images and for the frames of videos; frames: looked at in a video."""

    def __init__(self, spec: EncoderConfig, weights: Path, modality: str, frames: int, device: str = "cpu"):
        self.spec, self._weights, self._modality, self._frames, self._device = spec, weights, modality, frames, device

    @property
    def name(self) -> str:
        """What it is and how a medium becomes a vector."""
        of = f", of each of {self._frames} frames" if self._modality == "video" else ""
        return f"{self.spec.kind} {self.spec.arch}, mean of the tokens{of}"

    @cached_property
    def sha256(self) -> str:
        """Digest of its weights' files."""
        return digest_tree(self._weights)

    @cached_property
    def _encoder(self) -> Any:

        return load_encoder(self.spec, self._weights, self._device)

    def vectors(self, media: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
        """(vectors [M', E] float32, the medium each is of): M' is M, for videos M times the frames. Raises MediaError."""
        items = list(media) if self._modality != "video" else [frame for video in media for frame in frames_of(video, self._frames)]
        owners = [i for i in range(len(media)) for _ in range(self._frames if self._modality == "video" else 1)]
        features = self._encoder.encode(items)
        return np.stack([np.asarray(array, np.float32).mean(0) for array in features]), owners


def frames_of(video: bytes, count: int) -> list[bytes]:
    """Frames of a video, evenly spread, as PNG."""

    return [_png(np.asarray(frame)) for frame in decode_video_frames(video, count)]


def scrambled(modality: str, data: bytes, seed: int, frames: int) -> bytes | list[bytes]:
    """The same pixels or samples in a random order: what is left when nothing is shown. A video becomes scrambled frames, as PNG."""
    draws = np.random.default_rng(seed)
    if modality == "audio":
        from mmcore.media.decode import decode_waveform

        samples, hz = decode_waveform(data, 60.0)
        return wav(draws.permutation(samples), hz)

    images = [data] if modality == "image" else frames_of(data, frames)
    mixed = []
    for image in images:
        pixels = np.asarray(decode_image(image).convert("RGB"))
        mixed.append(_png(draws.permutation(pixels.reshape(-1, 3)).reshape(pixels.shape)))
    return mixed[0] if modality == "image" else mixed


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").save(out, "PNG")
    return out.getvalue()


# ---- the space that media and sentences share -----------------------------------------------------------------------


def shares_space(query: EncoderConfig | None, media: EncoderConfig | None) -> str:
    """Nothing when the two encoders are the pooled halves of one model (CLIP, SigLIP, ImageBind, CLAP); else why a CLIPScore of them means nothing."""
    if media is None:
        return "the model has no encoder for it"
    if query is None:
        return f"{media.kind} {media.arch} shares no space with a text encoder: the recipe names no query encoder"
    if (media.kind.rpartition("_")[0], media.arch) != (query.kind.rpartition("_")[0], query.arch):
        return f"{media.kind} {media.arch} and {query.kind} {query.arch} are of different models"
    if not pooled(media):
        return f"{media.kind} {media.arch} is read as tokens, not as the pooled vector of the shared space"
    return ""


class SharedSpace:
    """Cosines between media and sentences. query, query_weights: the sentences' encoder; media, media_weights: of one modality, which shares its space."""

    def __init__(self, query: EncoderConfig, query_weights: Path, media: EncoderConfig, media_weights: Path, device: str = "cpu"):

        self._query, self._media = load_encoder(query, query_weights, device), load_encoder(media, media_weights, device)

    def clipscore(self, media: Sequence[bytes], texts: Sequence[str]) -> np.ndarray:
        """2.5 max(cos, 0) of each pair, float64 [M]."""
        media_ME, texts_ME = self._unit(self._media, media), self._unit(self._query, [text.encode() for text in texts])
        return CLIPSCORE_WEIGHT * np.maximum((media_ME * texts_ME).sum(1), 0.0)

    @staticmethod
    def _unit(encoder: Any, items: Sequence[bytes]) -> np.ndarray:
        vectors = np.stack([np.asarray(array, np.float64).mean(0) for array in encoder.encode(list(items))])
        unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit
