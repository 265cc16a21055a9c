"""Encoders: frozen modality encoders behind one face, raw bytes -> features.

Owns the registry (a literal dict), the Encoder protocol, and where and in what precision encoders compute. Input: a config of mmcore.encoder_config, a
weights artifact directory and a device; output: an Encoder. Importing this module must not import torch, so that planning stays instant.

Shape letters: N feature tokens, E encoder width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcore import encoder_config as configs
from mmcore.encoder_config import EncoderConfig, TiledImage, check_encoder
from mmcore.encoders.base import COMPUTE, Encoder, check_device

Entry = tuple[type[EncoderConfig], Callable[[Any, Path], Encoder]]
"""The config of a kind, and what makes its encoder of such a config and the directory of its weights."""


def _from(module: str, name: str) -> Callable[[Any, Path], Encoder]:
    """A loader that imports its module when it is called."""

    def load(spec: EncoderConfig, weights_dir: Path) -> Encoder:
        encoder: Encoder = getattr(importlib.import_module(f"mmcore.encoders.{module}"), name)(spec, weights_dir)
        return encoder

    return load


ENCODERS: dict[str, Entry] = {
    "timm_image": (configs.TimmImage, _from("timm_image", "TimmImageEncoder")),
    "timm_video": (configs.TimmVideo, _from("timm_image", "TimmVideoEncoder")),
    "hf_image": (configs.HfImage, _from("hf_vision", "HfImageEncoder")),
    "hf_video": (configs.HfVideo, _from("hf_vision", "HfVideoEncoder")),
    "whisper_audio": (configs.WhisperAudio, _from("whisper", "WhisperAudioEncoder")),
    "hf_audio": (configs.HfAudio, _from("hf_audio", "HfAudioEncoder")),
    "hf_text": (configs.HfText, _from("hf_text", "HfTextEncoder")),
    "bert_text": (configs.BertText, _from("bert_text", "BertTextEncoder")),
    "imagebind_image": (configs.ImageBindImage, _from("imagebind.encoders", "ImageBindImageEncoder")),
    "imagebind_video": (configs.ImageBindVideo, _from("imagebind.encoders", "ImageBindVideoEncoder")),
    "imagebind_audio": (configs.ImageBindAudio, _from("imagebind.encoders", "ImageBindAudioEncoder")),
    "imagebind_text": (configs.ImageBindText, _from("imagebind.encoders", "ImageBindTextEncoder")),
    "vae_image": (configs.VaeImage, _from("vae", "VaeImageEncoder")),
}

OF_DECODERS: dict[str, Entry] = {
    "vae_video": (configs.VaeVideo, _from("vae", "VaeVideoEncoder")),
    "vae_audio": (configs.VaeAudio, _from("vae_audio", "VaeAudioEncoder")),
    "decoder_text": (configs.DecoderText, _from("decoder_text", "DecoderTextEncoder")),
}
"""Kinds whose weights are those of a decoder (`weights_dir/pipeline`; see mmcore.decoders.catalogue). `vae_image` opens a decoder's autoencoder too."""

MODALITY_OF = {kind: kind.rpartition("_")[2] for kind in (*ENCODERS, *OF_DECODERS)}
"""What each kind encodes."""


def load_encoder(spec: EncoderConfig, weights_dir: Path, device: str = "cpu") -> Encoder:
    """The encoder of `spec` on `device`, with the weights of an artifact (`weights_dir/encoder/…`, or `weights_dir/pipeline/…` of a decoder).

    Raises ValueError when they do not fit, or for an unknown kind, compute or device.
    """
    loaders = ENCODERS | OF_DECODERS
    if spec.kind not in loaders:
        raise ValueError(f"unknown encoder kind '{spec.kind}': choose one of {', '.join(sorted(loaders))}")
    if spec.compute not in COMPUTE:
        raise ValueError(f"encoder {spec.kind}: unknown compute '{spec.compute}': choose one of {', '.join(COMPUTE)}")
    check_encoder(spec)
    check_device(device)
    encoder = loaders[spec.kind][1](spec, Path(weights_dir))
    encoder.place(device)
    if not isinstance(spec, TiledImage) or not spec.tiles:
        return encoder
    from mmcore.encoders.tiled import TiledEncoder

    return TiledEncoder(spec, encoder)
