"""Configs of the shards, embed and targets steps, apart from their code so that planning loads no library."""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import EncoderSpec

GROUP_MODALITY = {"cc3m": "image", "webvid": "video", "audiocaps": "audio"}
"""Caption groups -> the modality their captions describe."""
TARGETS = {"image": "targets", "video": "targets_video", "audio": "targets_audio"}
"""Modality -> the step with its caption targets."""
LATENTS = {"image": "embed_latents", "video": "embed_latents_video", "audio": "embed_latents_audio"}
"""Modality -> the step with the latents of its captioned media."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardsConfig:
    """How a manifest is cut into shards."""

    samples_per_shard: int = 500
    """Manifest rows per shard, by row number."""
    max_media_bytes: int = 256 * 2**20
    """Larger media are refused (too_large), in bytes."""
    fetch_timeout_s: float = 30.0
    """Total time of one download attempt, in seconds."""
    fetch_attempts: int = 3
    """Tries of a download that may pass another time (timeout, dns, http_5xx)."""
    allow_private_addresses: bool = False
    """Also download from private and loopback addresses (an intranet mirror)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Which encoder sees the shards' media."""

    spec: EncoderSpec
    splits: tuple[str, ...] = ("train", "heldout")
    """Splits that are encoded. The pictures of `test` are not read here: the exported model encodes them itself when it is evaluated."""
    sources: tuple[str, ...] = ()
    """texts: datasets whose captions are encoded; empty: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetsConfig:
    """How captions become the token states that conditioning is aligned with."""

    width: int = 384
    """Channels of the text encoder's states."""
    tokens: int = 16
    """Longest caption in tokens, CLS and SEP included; longer ones are cut."""
    batch: int = 32
    """Captions per encoder call."""
    part_rows: int = 1024
    """Captions per part of the store."""

    @property
    def spec(self) -> EncoderSpec:
        """The text encoder in the words of the embedding store."""
        return EncoderSpec(kind="bert_text", arch="bert", width=self.width, tokens=self.tokens, batch=self.batch, part_rows=self.part_rows)
