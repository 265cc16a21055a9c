"""Decoders: frozen diffusion models, and a speaking voice, behind one face: conditioning -> images, videos and audio clips.

Owns the registry of families (a literal dict) and the loading of a decoder from a diffusers directory. Input: a directory as save_pretrained
writes it, safetensors only, local files only; output: a Decoder, which predicts (for the denoising loss) and generates. The parts are opened as
diffusers' model classes, not through its pipeline classes, so a pipeline that diffusers retires (text-to-video, AudioLDM) goes on working, and only
what a call needs is opened: the denoiser at once; VAE and vocoder when something is decoded; a text encoder only to encode texts (mmcore.decoders.texts).
Importing this module must not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from infra.step import AnyloomError
from mmcore.decoders.contract import AUDIOLDM, AUDIOLDM2, COGVIDEOX, STABLE_DIFFUSION, TEXT_TO_VIDEO, VOICE, DecoderContract, Stream, read_contract

if TYPE_CHECKING:
    from mmcore.decoders.base import Decoder

FAMILIES: dict[str, tuple[str, str]] = {
    STABLE_DIFFUSION: ("image", "StableDiffusionDecoder"),
    TEXT_TO_VIDEO: ("video", "TextToVideoDecoder"),
    COGVIDEOX: ("video", "CogVideoXDecoder"),
    AUDIOLDM: ("audio", "AudioLDMDecoder"),
    AUDIOLDM2: ("audio", "AudioLDM2Decoder"),
    VOICE: ("speech.voice", "VoiceDecoder"),
}
"""Pipeline class of model_index.json -> (module here, class)."""
DTYPES = ("float32", "bfloat16", "float16")
"""Precisions of a decoder's weights and arithmetic."""


def load_decoder(directory: Path, device: str = "cpu", dtype: str = "float32") -> Decoder:
    """The frozen decoder of a diffusers directory, in evaluation mode on `device`; its denoiser and scheduler are open, nothing else.

    Raises AnyloomError for a directory that is no decoder, an unknown family or dtype, or weights that are no safetensors.
    """
    contract = read_contract(directory)
    if dtype not in DTYPES:
        raise AnyloomError(f"unknown dtype '{dtype}' for a decoder: choose one of {', '.join(DTYPES)}")
    module, name = FAMILIES[contract.family]
    decoder: Decoder = getattr(importlib.import_module(f"mmcore.decoders.{module}"), name)(Path(directory), contract, device, dtype)
    return decoder


__all__ = ["DTYPES", "FAMILIES", "DecoderContract", "Stream", "load_decoder", "read_contract"]
