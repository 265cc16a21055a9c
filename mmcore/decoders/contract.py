"""Contracts of decoders: what conditioning drives a decoder, what its denoiser predicts, and what its latents look like.

Owns the reading of a diffusers directory's configs (model_index.json and the config of each part) into one DecoderContract; weights are not
opened and torch is not imported, so that planning stays instant. A value that a config leaves out is the default of the diffusers 0.42 class that
reads it. Input: a directory as save_pretrained writes it; output: a DecoderContract.

Shape letters: Q conditioning tokens, C conditioning width, F frames, H/W cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.step import AnyloomError
from infra.storage import read_json

INDEX = "model_index.json"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a denoiser may predict: the noise, the velocity (Salimans & Ho 2022, arXiv 2202.00512), or the clean latent."""
TEXT_TOKENS, SD_SCALE, COG_SCALE = 77, 0.18215, 1.15258426
VIDEO_FRAMES, VIDEO_HZ = 16, 8.0
"""UNet3D pipelines: frames of a video where none are asked for, and images per second; no config of theirs names them (diffusers' defaults)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One tensor of a decoder's conditioning."""

    name: str
    """text: states of a text encoder; clap: a pooled CLAP vector; generated: states that AudioLDM2's own language model writes; latents: what is decoded."""
    tokens: int
    """Q: tokens the decoder was trained with, or the most of them."""
    width: int
    """C."""
    pooled: bool = False
    """True: one vector (Q is 1) that enters as a class label; False: a sequence that is attended to."""
    normalised: bool = False
    """True: unit length; the decoder normalises what it is given."""
    any_length: bool = True
    """True: another number of tokens runs too (attention); False: exactly `tokens`."""
    masked: bool = False
    """True: takes a 0/1 mask over its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderContract:
    """What one decoder takes, predicts and gives."""

    family: str
    """Pipeline class named by model_index.json."""
    modality: str
    """image, video or audio."""
    streams: tuple[Stream, ...]
    """The conditioning, in the order the decoder takes it."""
    prediction_type: str
    """One of PREDICTIONS; "" where nothing is denoised."""
    scheduler: str
    """diffusers class of the noise schedule and of the sampler; "": the decoder has none, its latents are its conditioning."""
    latent_shape: tuple[int, ...]
    """Of one item, without the batch: image [4, H, W]; UNet3D video [4, F, H, W]; CogVideoX [F, 16, H, W]; audio [8, time, mel]; voice [channels, frames]."""
    latent_scale: float
    """Latents are (VAE output - latent_shift) * latent_scale."""
    latent_shift: float = 0.0
    cell: int
    """Pixels (audio: mel frames and mel bins) per latent cell and side."""
    frame_cell: int = 1
    """video: images per latent frame, after the first."""
    frame_multiple: int = 1
    """video: latent frames come in multiples of this many; the surplus ones stand first and are dropped."""
    frames: int = 0
    """video: images of a video where no number is asked for."""
    rate_hz: float = 0.0
    """video: images per second; audio: samples per second."""
    hop: int = 0
    """audio: samples per mel frame (voice: per latent frame)."""
    steps: int
    """Default number of denoising steps (diffusers' default of the family)."""
    guidance: float
    """Default guidance scale (the same)."""

    @property
    def denoises(self) -> bool:
        """False for a decoder without a noise schedule, which has no denoising loss and no sampler."""
        return bool(self.scheduler)

    def sized(self, *, height: int | None = None, width: int | None = None, frames: int | None = None, seconds: float | None = None) -> tuple[int, ...]:
        """Latent shape of an image or video of other sides (pixels) and frames, or an audio clip of other seconds. Raises AnyloomError when it cannot be
        made."""
        if self.modality == "audio":
            if height is not None or width is not None or frames is not None:
                raise AnyloomError(f"{self.family} makes audio: ask for seconds, not for height, width or frames")
            channels, time, mel = self.latent_shape
            mel_frames = time * self.cell if seconds is None else int(seconds * self.rate_hz / self.hop)
            if mel_frames < self.cell:
                raise AnyloomError(f"{self.family} makes audio clips of at least {self.cell * self.hop / self.rate_hz:g} s: {seconds:g} s were asked for")
            return channels, math.ceil(mel_frames / self.cell), mel
        if seconds is not None:
            raise AnyloomError(f"{self.family} makes {self.modality}: ask for height, width and frames, not for seconds")
        if frames is not None and self.modality == "image":
            raise AnyloomError(f"{self.family} makes images: it has no frames")
        for name, pixels in (("height", height), ("width", width)):
            if pixels is not None and (pixels < self.cell or pixels % self.cell):
                raise AnyloomError(f"{self.family}: {name} {pixels} is no multiple of {self.cell} pixels")
        shape = [*self.latent_shape]
        shape[-2] = shape[-2] if height is None else height // self.cell
        shape[-1] = shape[-1] if width is None else width // self.cell
        if frames is not None:
            if frames < 1:
                raise AnyloomError(f"{self.family}: a video needs at least one frame, not {frames}")
            shape[self.frame_axis] = math.ceil(self.latent_frames(frames) / self.frame_multiple) * self.frame_multiple
        return tuple(shape)

    @property
    def frame_axis(self) -> int:
        """video: axis of the frames in latent_shape."""
        return 0 if self.family == COGVIDEOX else 1

    def latent_frames(self, frames: int) -> int:
        """video: latent frames that show `frames` images."""
        return (frames - 1) // self.frame_cell + 1


def read_contract(directory: Path) -> DecoderContract:
    """The contract of the decoder in a diffusers directory. Raises AnyloomError when it is not one, or of a kind that cannot be driven here."""
    directory = Path(directory)
    if not (directory / INDEX).is_file():
        raise AnyloomError(f"{directory} is no diffusers directory: it has no {INDEX}; save the decoder there with save_pretrained")
    family = read_json(directory / INDEX).get("_class_name")
    if family not in READERS:
        raise AnyloomError(f"{directory / INDEX}: no decoder of the family '{family}' is known; there are: {', '.join(sorted(READERS))}")
    try:
        contract = READERS[family](directory)
    except KeyError as error:
        raise AnyloomError(f"{directory}: a config of this {family} has no {error}; save it again with a current diffusers") from error
    if contract.denoises and contract.prediction_type not in PREDICTIONS:
        raise AnyloomError(f"{directory}/scheduler: prediction_type '{contract.prediction_type}' has no loss here; there are: {', '.join(PREDICTIONS)}")
    return contract


def _config(directory: Path, part: str, name: str = "config.json") -> Mapping[str, Any]:
    path = directory / part / name
    if not path.is_file():
        raise AnyloomError(f"{directory}: {part}/{name} is missing; copy the whole directory")
    config: Mapping[str, Any] = read_json(path)
    return config


def _schedule(directory: Path) -> dict[str, Any]:
    """The fields that every family reads from its scheduler."""
    config = _config(directory, "scheduler", "scheduler_config.json")
    return {
        "prediction_type": config.get("prediction_type", "epsilon"),
        "scheduler": config["_class_name"],
    }


def _vae(directory: Path, scale: float) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(config, fields that every family reads from its VAE)."""
    config = _config(directory, "vae")
    fields = {
        "cell": 2 ** (len(config["block_out_channels"]) - 1),
        "latent_scale": config.get("scaling_factor", scale),
        "latent_shift": config.get("shift_factor") or 0.0,
    }
    return config, fields


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _text(directory: Path, width: int) -> Stream:
    """States of a text encoder: CLIP's, or another whose tokenizer pads to fewer tokens than it could take."""
    tokens = _config(directory, "text_encoder").get("max_position_embeddings", TEXT_TOKENS)
    padded = _config(directory, "tokenizer", "tokenizer_config.json").get("model_max_length", tokens)
    return Stream(name="text", tokens=min(tokens, padded), width=width)


def _stable_diffusion(directory: Path) -> DecoderContract:
    unet = _config(directory, "unet")
    if unet.get("time_cond_proj_dim") is not None:
        raise AnyloomError(f"{directory}/unet is distilled for a guidance embedding (time_cond_proj_dim), which has no noise target; use an undistilled model")
    return DecoderContract(
        family=STABLE_DIFFUSION,
        modality="image",
        streams=(_text(directory, unet["cross_attention_dim"]),),
        latent_shape=(unet.get("in_channels", 4), *_sides(unet["sample_size"])),
        steps=50,
        guidance=7.5,
        **_schedule(directory),
        **_vae(directory, SD_SCALE)[1],
    )


def _text_to_video(directory: Path) -> DecoderContract:
    unet = _config(directory, "unet")
    return DecoderContract(
        family=TEXT_TO_VIDEO,
        modality="video",
        streams=(_text(directory, unet.get("cross_attention_dim", 1024)),),
        latent_shape=(unet.get("in_channels", 4), VIDEO_FRAMES, *_sides(unet["sample_size"])),
        rate_hz=VIDEO_HZ,
        frames=VIDEO_FRAMES,
        steps=50,
        guidance=9.0,
        **_schedule(directory),
        **_vae(directory, SD_SCALE)[1],
    )


def _audio(directory: Path) -> dict[str, Any]:
    """The fields that both audio families read from UNet, VAE and vocoder."""
    unet, vocoder = _config(directory, "unet"), _config(directory, "vocoder")
    fields = _vae(directory, SD_SCALE)[1]
    time = unet["sample_size"] if isinstance(unet["sample_size"], int) else unet["sample_size"][0]
    fields["latent_shape"] = (unet.get("in_channels", 4), time, vocoder["model_in_dim"] // fields["cell"])
    return fields | {"modality": "audio", "rate_hz": vocoder["sampling_rate"], "hop": math.prod(vocoder["upsample_rates"])}


def _audioldm(directory: Path) -> DecoderContract:
    unet = _config(directory, "unet")
    width = unet["projection_class_embeddings_input_dim"]
    clap = Stream(name="clap", tokens=1, width=width, pooled=True, normalised=True, any_length=False)
    return DecoderContract(family=AUDIOLDM, streams=(clap,), steps=10, guidance=2.5, **_audio(directory), **_schedule(directory))


def _audioldm2(directory: Path) -> DecoderContract:
    """Of each block's attentions, the second (or first) reads the generated states, the third the T5 states; null is self-attention."""
    widths = _config(directory, "unet")["cross_attention_dim"]
    per_block = widths[0] if isinstance(widths[0], list) else widths
    generated = [width for width in per_block[:2] if width is not None]
    text = per_block[2:]
    if len(generated) != 1 or len(text) != 1 or text[0] is None:
        raise AnyloomError(f"{directory}/unet: cross_attention_dim {per_block} is not [null, generated, text]: other layouts of AudioLDM2 are not known here")
    tokens = _config(directory, "tokenizer_2", "tokenizer_config.json").get("model_max_length", 512)
    streams = (
        Stream(name="generated", tokens=_config(directory, "language_model").get("max_new_tokens", 8), width=generated[0]),
        Stream(name="text", tokens=tokens, width=text[0], masked=True),
    )
    return DecoderContract(family=AUDIOLDM2, streams=streams, steps=200, guidance=3.5, **_audio(directory), **_schedule(directory))


def _cogvideox(directory: Path) -> DecoderContract:
    """Learned or sinusoidal positions cover text and video together, so they fix the number of text tokens; rotary positions leave the text out."""
    config = _config(directory, "transformer")
    vae, fields = _vae(directory, COG_SCALE)
    ratio = vae.get("temporal_compression_ratio", 4)
    text = Stream(
        name="text",
        tokens=config.get("max_text_seq_length", 226),
        width=config.get("text_embed_dim", 4096),
        any_length=bool(config.get("use_rotary_positional_embeddings", False)) and not config.get("use_learned_positional_embeddings", False),
    )
    frames, multiple = config.get("sample_frames", 49), config.get("patch_size_t") or 1
    latent_frames = math.ceil(((frames - 1) // int(ratio) + 1) / multiple) * multiple
    return DecoderContract(
        family=COGVIDEOX,
        modality="video",
        streams=(text,),
        latent_shape=(latent_frames, config.get("in_channels", 16), config.get("sample_height", 60), config.get("sample_width", 90)),
        frame_cell=int(ratio),
        frame_multiple=multiple,
        frames=frames,
        rate_hz=VIDEO_HZ,
        steps=50,
        guidance=6.0,
        **_schedule(directory),
        **fields,
    )


def _voice(directory: Path) -> DecoderContract:
    """A speaking voice (mmcore.decoders.speech.voice): its conditioning are the latent frames it decodes, always as many; a token holds several in a row."""
    config = _config(directory, "vocoder")
    tokens, width, stack = config["tokens"], config["width"], config["stack"]
    return DecoderContract(
        family=VOICE,
        modality="audio",
        streams=(Stream(name="latents", tokens=tokens, width=stack * width, any_length=False),),
        prediction_type="",
        scheduler="",
        latent_shape=(width, stack * tokens),
        latent_scale=1.0,
        cell=1,
        rate_hz=config["sampling_rate"],
        hop=config["hop"],
        steps=0,
        guidance=0.0,
    )


STABLE_DIFFUSION, TEXT_TO_VIDEO, COGVIDEOX = "StableDiffusionPipeline", "TextToVideoSDPipeline", "CogVideoXPipeline"
AUDIOLDM, AUDIOLDM2 = "AudioLDMPipeline", "AudioLDM2Pipeline"
VOICE = "AnyloomVoice"
"""No pipeline of diffusers: the two halves of a Piper voice as ONNX graphs."""
READERS: dict[str, Callable[[Path], DecoderContract]] = {
    STABLE_DIFFUSION: _stable_diffusion,
    TEXT_TO_VIDEO: _text_to_video,
    AUDIOLDM: _audioldm,
    AUDIOLDM2: _audioldm2,
    COGVIDEOX: _cogvideox,
    VOICE: _voice,
}
"""Pipeline class of model_index.json -> what reads its configs."""
