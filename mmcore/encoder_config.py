"""The identity-bearing settings of the frozen encoders: one class per kind, with the fields that its encoder in mmcore.encoders reads and no others.

Owns plain frozen dataclasses, their way from and to JSON, and the rules about their values; importing this module must not import torch, so that planning
stays instant. Input: values; output: a config. Raises ValueError for an unknown kind, a field that a kind does not have, one that it lacks, and a value that
it cannot follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

SAMPLINGS = ("uniform", "scenes")
"""Values of SampledVideo.sampling."""
RETIRED_FIELDS: dict[str, Any] = {
    "grid": 0,
    "frames": 1,
    "sampling": "uniform",
    "image_size": 224,
    "pad": False,
    "tiles": 0,
    "tokens": 0,
    "layer": 0,
    "max_seconds": 30.0,
}
"""Fields that once stood in the identity of every kind, and the value they had where the kind has no use for them. Fingerprints of steps and addresses in
the embedding store hash them, so they stay in the identity: what is stored is found again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """One frozen encoder with its preprocessing, raw media -> features_BNE: what all kinds read."""

    kind: ClassVar[str]
    """Registry name in mmcore.encoders; its last part is the modality."""
    arch: str
    """Architecture inside the kind: a timm name, `whisper`, `imagebind_huge`; of the hf kinds a family, and behind `:` the name of the weights."""
    width: int
    """E, channels of one feature token."""
    dtype: str = "float16"
    """Stored type of the features."""
    compute: str = "float32"
    """Precision of the encoder's arithmetic: float32 (on CUDA convolutions follow torch's TF32 setting), or bfloat16 / float16 through torch.autocast;
    weights and pooling stay float32."""
    batch: int = 16
    """Items per encoder call: part of the identity because it fixes the bytes."""
    part_rows: int = 256
    """Rows per part of the embedding store, the unit of work and of resumption."""
    revision: int = 2
    """Bumped when our code for this encoder changes meaning. 2: frames by the time they are shown, turned; 16-bit grey; words are never control tokens."""

    def identity_fields(self) -> dict[str, Any]:
        """What stands for the config in identities, addresses and JSON: its kind, its fields, and those of RETIRED_FIELDS that it does not have."""
        return {"kind": self.kind, **RETIRED_FIELDS, **{name: getattr(self, name) for name in names(type(self))}}


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig(EncoderConfig):
    """Images, or the frames of videos, as pooled patches."""

    grid: int = 0
    """Side of the pooled token grid of one image or frame (grid * grid tokens each); 0 stores the one pooled vector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TiledImage(GridConfig):
    """Images that may be cut into tiles."""

    tiles: int = 0
    """Largest number of tiles that an image too large for the encoder is also cut into (see mmcore.encoders.tiled); 0: the whole image only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledVideo(GridConfig):
    """Videos of which single frames are seen."""

    frames: int = 1
    """Frames taken from a video."""
    sampling: str = "uniform"
    """`uniform` takes the middles of equal parts; `scenes` spreads the frames over the video's scenes (see mmcore.media.scenes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmImage(TiledImage):
    """Of mmcore.encoders.timm_image.TimmImageEncoder."""

    kind = "timm_image"
    grid: int
    """Side of the pooled token grid of one image, at least 1."""
    image_size: int = 224
    """Pixels per side after resizing to a square; media are composited on white."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmVideo(SampledVideo):
    """Of mmcore.encoders.timm_image.TimmVideoEncoder."""

    kind = "timm_video"
    grid: int
    """Side of the pooled token grid of one frame, at least 1."""
    image_size: int = 224
    """Pixels per side of a frame after resizing to a square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HfImage(TiledImage):
    """Of mmcore.encoders.hf_vision.HfImageEncoder."""

    kind = "hf_image"
    image_size: int = 224
    """Pixels per side that the model's own preparation gives; tiles are cut to it."""
    pad: bool = False
    """True pads an image to a square with the encoder's mean colour before it is resized, as LLaVA does; False cuts off what is beyond the central square."""
    layer: int = 0
    """With a grid: hidden state that the patch tokens are, counted from the end (-2: before the last layer, as LLaVA reads CLIP); 0: the model's output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HfVideo(SampledVideo):
    """Of mmcore.encoders.hf_vision.HfVideoEncoder."""

    kind = "hf_video"
    layer: int = 0
    """With a grid: hidden state that the patch tokens are, counted from the end; 0: the model's output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindImage(TiledImage):
    """Of mmcore.encoders.imagebind.encoders.ImageBindImageEncoder."""

    kind = "imagebind_image"
    pad: bool = False
    """True pads an image to a square with the encoder's mean colour before it is resized; False cuts off what is beyond the central square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindVideo(GridConfig):
    """Of mmcore.encoders.imagebind.encoders.ImageBindVideoEncoder, which has clip times of its own."""

    kind = "imagebind_video"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensAudio(EncoderConfig):
    """Audio clips as tokens in time order."""

    tokens: int = 0
    """Tokens per audio clip: the encoder's frames inside its duration are mean-pooled into this many; 0 stores the one pooled vector."""
    max_seconds: float = 30.0
    """Longer audio is cut, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperAudio(TokensAudio):
    """Of mmcore.encoders.whisper.WhisperAudioEncoder."""

    kind = "whisper_audio"
    tokens: int
    """Tokens per audio clip, at least 1: the encoder's frames inside its duration are mean-pooled into this many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HfAudio(TokensAudio):
    """Of mmcore.encoders.hf_audio.HfAudioEncoder."""

    kind = "hf_audio"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindAudio(TokensAudio):
    """Of mmcore.encoders.imagebind.encoders.ImageBindAudioEncoder."""

    kind = "imagebind_audio"


@dataclass(frozen=True, kw_only=True, slots=True)
class BertText(EncoderConfig):
    """Of mmcore.encoders.bert_text.BertTextEncoder."""

    kind = "bert_text"
    tokens: int = 0
    """Longest text in tokens; 0: the mean over a text's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HfText(EncoderConfig):
    """Of mmcore.encoders.hf_text.HfTextEncoder."""

    kind = "hf_text"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindText(EncoderConfig):
    """Of mmcore.encoders.imagebind.encoders.ImageBindTextEncoder."""

    kind = "imagebind_text"


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeImage(EncoderConfig):
    """Of mmcore.encoders.vae.VaeImageEncoder."""

    kind = "vae_image"
    image_size: int = 224
    """Pixels per side of the largest central square, resized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeVideo(EncoderConfig):
    """Of mmcore.encoders.vae.VaeVideoEncoder."""

    kind = "vae_video"
    image_size: int = 224
    """Pixels per side of a frame's largest central square, resized."""
    frames: int = 1
    """Frames from the middles of equal parts of a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeAudio(EncoderConfig):
    """Of mmcore.encoders.vae_audio.VaeAudioEncoder."""

    kind = "vae_audio"
    max_seconds: float = 30.0
    """Seconds that every audio clip is cut or filled up to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderText(EncoderConfig):
    """Of mmcore.encoders.decoder_text.DecoderTextEncoder."""

    kind = "decoder_text"
    tokens: int
    """Tokens of the decoder's conditioning."""


CONFIGS: dict[str, type[EncoderConfig]] = {
    "timm_image": TimmImage,
    "timm_video": TimmVideo,
    "hf_image": HfImage,
    "hf_video": HfVideo,
    "whisper_audio": WhisperAudio,
    "hf_audio": HfAudio,
    "hf_text": HfText,
    "bert_text": BertText,
    "imagebind_image": ImageBindImage,
    "imagebind_video": ImageBindVideo,
    "imagebind_audio": ImageBindAudio,
    "imagebind_text": ImageBindText,
    "vae_image": VaeImage,
    "vae_video": VaeVideo,
    "vae_audio": VaeAudio,
    "decoder_text": DecoderText,
}
"""Kind -> its config."""


def names(config: type[EncoderConfig]) -> list[str]:
    """The fields of a class of configs."""
    return [field.name for field in fields(config)]


def config_class(kind: str) -> type[EncoderConfig]:
    """The class of a kind. Raises ValueError naming all kinds for another."""
    if kind not in CONFIGS:
        raise ValueError(f"unknown encoder kind '{kind}': choose one of {', '.join(sorted(CONFIGS))}")
    return CONFIGS[kind]


def encoder_config(kind: str, values: Mapping[str, Any]) -> EncoderConfig:
    """The config of a kind with these values, and the defaults of the kind for all others."""
    config = config_class(kind)
    unknown = sorted(set(values) - set(names(config)))
    if unknown:
        raise ValueError(f"{kind} has no {unknown[0]}; it has {', '.join(names(config))}")
    needed = [field.name for field in fields(config) if field.default is MISSING and field.name not in values]
    if needed:
        raise ValueError(f"{kind} needs {', '.join(needed)}")
    return config(**values)


def shared_values(config: EncoderConfig, kind: str) -> dict[str, Any]:
    """The values of the fields that another kind has too."""
    return {name: getattr(config, name) for name in names(config_class(kind)) if name in names(type(config))}


def encoder_from_json(values: Mapping[str, Any]) -> EncoderConfig:
    """The config whose `identity_fields` became JSON. A field that the kind does not have may stand there at its value in RETIRED_FIELDS only."""
    if "kind" not in values:
        raise ValueError("the description of an encoder names no kind")
    own = names(config_class(values["kind"]))
    unused = {name for name, value in RETIRED_FIELDS.items() if name not in own and values.get(name) == value}
    return encoder_config(values["kind"], {name: value for name, value in values.items() if name != "kind" and name not in unused})


def pooled(config: EncoderConfig) -> bool:
    """True where a medium is one vector: of models with a text side that of the shared space."""
    return (isinstance(config, GridConfig) and not config.grid) or (isinstance(config, TokensAudio) and not config.tokens)


def check_encoder(config: EncoderConfig) -> None:
    """Raises ValueError for a sampling, a number of tiles or a layer that there is none of."""
    if isinstance(config, SampledVideo) and config.sampling not in SAMPLINGS:
        raise ValueError(f"{config.kind} does not support sampling={config.sampling}: use {' or '.join(SAMPLINGS)}")
    if isinstance(config, TiledImage) and (config.tiles < 0 or config.tiles == 1):
        raise ValueError(f"{config.kind} with tiles {config.tiles}: set it to 0 (off) or to at least 2")
    if isinstance(config, (HfImage, HfVideo)) and (config.layer > 0 or (config.layer and not config.grid)):
        raise ValueError(f"{config.kind} with layer {config.layer} and grid {config.grid}: with a grid it takes 0, or -1, -2, ... from the end")
