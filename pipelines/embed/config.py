"""Configs of the shards, embed and targets steps, apart from their code so that planning loads no library."""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.encoder_config import BertText, EncoderConfig

TARGETS = {"image": "targets", "video": "targets_video", "audio": "targets_audio"}
"""Modality -> the step with its caption targets."""

LATENTS = {"image": "embed_latents", "video": "embed_latents_video", "audio": "embed_latents_audio"}
"""Modality -> the step with the latents of its captioned media."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Which encoder sees the shards' media."""

    spec: EncoderConfig
    splits: tuple[str, ...] = ("train", "heldout")
    """Splits that are encoded. The images of `test` are not read here: the exported model encodes them itself when it is evaluated."""
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
    def spec(self) -> EncoderConfig:
        """The text encoder in the words of the embedding store."""
        return BertText(arch="bert", width=self.width, tokens=self.tokens, batch=self.batch, part_rows=self.part_rows)
