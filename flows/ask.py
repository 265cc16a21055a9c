"""anyloom generate and chat: talk to an exported model from the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from infra.artifact import find
from infra.settings import offline_environment
from infra.step import AnyloomError

Media = list[tuple[str, bytes]]
MEANT = {"image": "picture (PNG, JPEG, WebP, GIF …)", "video": "video (MP4, WebM …)", "audio": "sound (WAV, OGG, FLAC, MP3 …)"}


def read_media(args: argparse.Namespace) -> Media:
    """The bytes of --image, --video and --audio files. Raises AnyloomError naming a file that cannot be read or is not what its option says."""
    from mmcore.data.media import MediaError, probe

    media: Media = []
    for modality in ("image", "video", "audio"):
        for path in getattr(args, modality):
            try:
                data = path.read_bytes()
                probe(data, modality)
            except OSError as error:
                raise AnyloomError(f"--{modality} {path}: {error.strerror or error}") from None
            except MediaError as error:
                raise AnyloomError(f"--{modality} {path}: this is no {MEANT[modality]} that can be read ({error.detail})") from None
            media.append((modality, data))
    return media


def load(model: Path) -> Any:
    """The Generator of an exported directory, or of the newest export below a root."""
    offline_environment()
    from mmcore.generate import Generator

    directory = model if (model / "anyloom.json").exists() else None
    if directory is None:
        if not (model / "artifacts").is_dir():
            raise AnyloomError(f"--model {model}: neither an exported directory (anyloom.json) nor a root with artifacts; run `anyloom run` first")
        directory = find(model.absolute(), "export")[0]
    return Generator.load(directory)


def _stream(generator: Any, prompt: str, media: Media, max_new_tokens: int, save: Path | None) -> None:
    conditioning = {}
    for event in generator.stream(prompt, media, max_new_tokens=max_new_tokens):
        if hasattr(event, "text"):
            sys.stdout.write(event.text)
        else:
            shape = tuple(event.conditioning_QC.shape)
            sys.stdout.write(f"<{event.modality}: conditioning {shape[0]} x {shape[1]}>")
            conditioning[f"{event.modality}_{len(conditioning)}"] = event.conditioning_QC
        sys.stdout.flush()
    sys.stdout.write("\n")
    if save is not None:
        if not conditioning:
            raise AnyloomError("--save-conditioning: the model drew nothing, so there is nothing to save")
        from safetensors.torch import save as to_bytes

        from infra.storage import write_atomic

        write_atomic(save, to_bytes({name: tensor.contiguous() for name, tensor in conditioning.items()}))
        print(f"conditioning saved to {save}", file=sys.stderr)


def generate(model: Path, media: Media, prompt: str, max_new_tokens: int, save: Path | None) -> int:
    """Answer one prompt, streaming."""
    generator = load(model)
    try:
        _stream(generator, prompt, media, max_new_tokens, save)
    except ValueError as error:
        raise AnyloomError(str(error)) from error
    return 0


def chat(model: Path, media: Media, max_new_tokens: int, save: Path | None) -> int:
    """Answer prompts from the terminal until it ends; each question is asked about the media given."""
    generator = load(model)
    print("ask about the media given; an empty line or Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            prompt = input("> ").strip()
        except EOFError:
            return 0
        if not prompt:
            return 0
        _stream(generator, prompt, media, max_new_tokens, save)
