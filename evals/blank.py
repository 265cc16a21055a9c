"""Blank media: a white image, a white video, silence. What a model is shown when the question is whether it looks at all.

Owns their shape. Input: a modality and a place for scratch files. Output: a file's bytes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from mmcore.media.encode import write_media
from mmcore.types import Medium

BLANK = "blank"
SECONDS, FRAMES_HZ, SIDE, AUDIO_HZ = 1.5, 12, 224, 16_000
"""Of videos and audio clips; frames per second; pixels; samples per second."""


def blank_medium(modality: str, work: Path) -> bytes:
    """A white PNG, a white video, or silence, as a file's bytes. work: where a scratch file may be written."""
    from PIL import Image

    if modality == "image":
        buffer = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), "white").save(buffer, "PNG")
        return buffer.getvalue()
    white = np.full((round(SECONDS * FRAMES_HZ), SIDE, SIDE, 3), 255, np.uint8)
    silence = np.zeros(round(SECONDS * AUDIO_HZ), np.float32)
    made = Medium("video", white, FRAMES_HZ) if modality == "video" else Medium("audio", silence, AUDIO_HZ)
    return write_media(made, work / BLANK).read_bytes()
