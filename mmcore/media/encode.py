"""Generated media -> files: images as png, videos as mp4 (H.264 through PyAV), audio clips as wav (16-bit PCM).

Owns the formats; a file appears whole or not at all, and the same medium gives the same bytes. Input: a Medium and a path; output: the path. Importing this
module must not import torch.
"""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infra.step import AnyloomError
from infra.storage import write_atomic
from mmcore.types import NotFinite

if TYPE_CHECKING:
    from mmcore.types import Medium

SUFFIXES = {"image": ".png", "video": ".mp4", "audio": ".wav"}
X264 = {"threads": "1", "crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1:mbtree=0"}
"""One thread, the same decisions on every processor, and no macroblock tree: the same frames give the same bytes."""


def write_media(medium: Medium, path: Path) -> Path:
    """Write `medium` to `path`, whose suffix must be its modality's (none: it is added); returns the path written.

    Raises AnyloomError for another suffix or an odd image size of a video, NotFinite for samples that are not.
    """
    path, suffix = Path(path), SUFFIXES[medium.modality]
    if not path.suffix:
        path = path.with_suffix(suffix)
    if path.suffix.lower() != suffix:
        raise AnyloomError(f"{path}: {medium.modality} is written as {suffix}; use that suffix")
    write_atomic(path, {"image": _png, "video": _mp4, "audio": _wav}[medium.modality](medium))
    return path


def _png(medium: Medium) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(medium.data).save(out, "PNG")
    return out.getvalue()


def _mp4(medium: Medium) -> bytes:
    """yuv420p, bit-exact container flags."""
    import av

    frames, height, width, _ = medium.data.shape
    if not frames or height % 2 or width % 2:
        raise AnyloomError(f"a video of {frames} frames of {width} x {height} pixels cannot be written as mp4: H.264 takes even sides and at least one frame")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(medium.rate_hz).limit_denominator(1000), options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in medium.data:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def _wav(medium: Medium) -> bytes:
    return wav(medium.data, medium.rate_hz)


def wav(audio: np.ndarray, rate_hz: float) -> bytes:
    """Mono samples in -1..1 (those beyond are clipped) -> a .wav of 16-bit PCM. Raises NotFinite for samples that are not."""
    if not np.isfinite(audio).all():
        raise NotFinite("an audio clip with samples that are not finite cannot be written; generate it again in float32")
    samples = np.round(np.clip(audio, -1, 1) * 32767).astype("<i2")
    out = io.BytesIO()
    with wave.open(out, "wb") as container:
        container.setnchannels(1)
        container.setsampwidth(2)
        container.setframerate(round(rate_hz))
        container.writeframes(samples.tobytes())
    return out.getvalue()
