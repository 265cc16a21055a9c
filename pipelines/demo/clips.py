"""Videos: short H.264 videos of one image in motion, on white, with or without audio.

Owns the motions and the encoder settings. Input: a PIL image (and samples); output: mp4 bytes, the same for the same image whatever the
machine load (see X264; no times in the container).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

MOTIONS = ("moving left", "moving right", "moving up", "moving down", "zooming in", "zooming out", "rotating")
X264 = {"threads": "1", "crf": "23", "preset": "veryfast", "x264-params": "cpu-independent=1:mbtree=0"}
"""One thread, the same decisions on every processor, and no macroblock tree: its vector code gives other bytes from run to run."""
AUDIO_HZ = 16_000
TRAVEL = 0.28
"""moving: distance of the image's centre from the frame's centre at both ends, as a share of the side."""


def frames(image: Image.Image, motion: str, count: int, side: int) -> Iterator[Image.Image]:
    """`count` RGB frames of side x side pixels: the image on white, in motion."""
    base = image.convert("RGBA")
    base.thumbnail((side * 2, side * 2), Image.Resampling.LANCZOS)
    for number in range(count):
        t = number / max(1, count - 1)
        scale, angle, dx, dy = _pose(motion, t)
        box = max(2, round(side * 0.6 * scale))
        ratio = box / max(base.size)
        size = (max(1, round(base.width * ratio)), max(1, round(base.height * ratio)))
        shown = base.resize(size, Image.Resampling.BILINEAR)
        if angle:
            shown = shown.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True)
        canvas = Image.new("RGBA", (side, side), (255, 255, 255, 255))
        place = (round(side * (0.5 + dx) - shown.width / 2), round(side * (0.5 + dy) - shown.height / 2))
        canvas.paste(shown, place, shown)
        yield canvas.convert("RGB")


def _pose(motion: str, t: float) -> tuple[float, float, float, float]:
    """(scale, angle in degrees, dx, dy) at time t in [0, 1]; dx, dy in shares of the side."""
    along = TRAVEL * (2 * t - 1)
    poses = {
        "moving left": (1.0, 0.0, -along, 0.0),
        "moving right": (1.0, 0.0, along, 0.0),
        "moving up": (1.0, 0.0, 0.0, -along),
        "moving down": (1.0, 0.0, 0.0, along),
        "zooming in": (0.5 + t, 0.0, 0.0, 0.0),
        "zooming out": (1.5 - t, 0.0, 0.0, 0.0),
        "rotating": (1.0, -180.0 * t, 0.0, 0.0),
    }
    return poses[motion]


def encode_mp4(images: Iterable[Image.Image], rate_hz: int, audio: np.ndarray | None = None) -> bytes:
    """H.264 in mp4, yuv420p. Bit-exact container flags and X264: the same frames give the same bytes.

    audio: int16 samples, mono, at AUDIO_HZ; kept as FLAC, because a lossy encoder's bytes depend on the processor.
    """
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: av.VideoStream | None = None
        track: av.AudioStream | None = None
        for image in images:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate_hz, options=X264)
                stream.width, stream.height, stream.pix_fmt = image.width, image.height, "yuv420p"
                stream.codec_context.thread_count = 1
                if audio is not None:
                    added = container.add_stream("flac", rate=AUDIO_HZ, layout="mono")
                    assert isinstance(added, av.AudioStream)
                    track = added
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        if stream is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode())
        if track is not None and audio is not None:
            frame = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
            frame.sample_rate = AUDIO_HZ
            container.mux([packet for packet in [*track.encode(frame), *track.encode(None)] if packet.size])
    return out.getvalue()
