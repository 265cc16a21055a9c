"""Media: raw bytes of an image, video or audio -> pixels, frames or samples, with limits against hostile files.

Owns sniffing (what the bytes say they are), decoding and probing. Input: bytes; output: PIL images, float32 audio, or Probe.
The audio of a video file is read like any other audio. Which frames of a video are wanted is told from outside (see scenes).
Every failure is a MediaError with a reason of the closed set, whose text depends on the bytes alone (no addresses, no paths).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from mmcore.media.containers import ends_early, flac_samples
from mmcore.media.formats import FORMATS, IMAGE, extension_of, listed
from mmcore.media.timeline import Timeline, upright, upright_size
from mmcore.media.waves import mono

if TYPE_CHECKING:
    import av

T = TypeVar("T")

MAX_PIXELS = 50_000_000
"""Pixels of one image or video frame; more is refused before decoding."""
MAX_VIDEO_FRAMES = 100_000
"""Frames of one video (about an hour at 25 Hz)."""
MAX_AUDIO_S = 4 * 3600.0
"""Seconds of audio decoded from one file."""


class MediaError(ValueError):
    """Bytes that are not a usable medium.

    reason: empty_file, not_media, truncated, decode or too_large; detail: one line that depends on the bytes alone.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class NoTrackError(MediaError):
    """A file that may hold both, but has no image track or no audio track. Its reason is not_media."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a medium is. width, height in pixels (0 for audio); duration in seconds (0 for an image)."""

    ext: str
    width: int = 0
    height: int = 0
    duration_s: float = 0.0


def sniff(data: bytes) -> tuple[str, tuple[str, ...]]:
    """(file extension, modalities it can hold) from the leading bytes. Raises MediaError: empty_file, not_media."""
    if not data:
        raise MediaError("empty_file", "0 bytes")
    ext = extension_of(data)
    if ext == "heic":
        raise MediaError("not_media", f"HEIC images are not read: convert them to one of {listed('image')}")
    if ext is None:
        start = data[:12].decode("latin-1").encode("unicode_escape").decode()
        raise MediaError("not_media", f"unknown file type, starts with '{start}'")
    return ext, FORMATS[ext]


def probe(data: bytes, modality: str) -> Probe:
    """Decode the whole medium once and say what it is. modality: image, video or audio. Raises MediaError."""
    ext, modalities = sniff(data)
    if modality not in modalities:
        raise MediaError("not_media", f"a {ext} file cannot be {modality}, which is one of {listed(modality)}")
    if modality == "image":
        width, height = decode_image(data).size
        return Probe(ext=ext, width=width, height=height)
    if modality == "video":
        return _probe_video(data, ext)
    return _probe_audio(data, ext)


# ---- texts


def decode_text(data: bytes) -> str:
    """The text of UTF-8 bytes. Raises MediaError: decode."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MediaError("decode", f"text of {len(data)} bytes: byte {error.start} is not UTF-8") from None


# ---- images


def decode_image(data: bytes) -> Image.Image:
    """The (first) image as RGB, upright, composited on white. Raises MediaError."""
    ext, modalities = sniff(data)
    if modalities != IMAGE:
        raise MediaError("not_media", f"a {ext} file is no picture")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval sets it for its whole process; half an image must stay an error here
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise MediaError("too_large", f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _on_white(image if upright is None else upright)
    except MediaError:
        raise
    except Image.DecompressionBombError:
        raise MediaError("too_large", f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, zlib.error … for damaged files
        raise _image_error(data, ext, error) from error


def _image_error(data: bytes, ext: str, error: Exception) -> MediaError:
    cut = "truncat" in str(error).lower() or ends_early(data, ext)
    return MediaError("truncated" if cut else "decode", f"{ext} of {len(data)} bytes: {'data ends early' if cut else type(error).__name__}")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 or 32 bit grey: PIL's own conversion clips at 255
        grey = np.asarray(image, dtype=np.int64)
        shift = 8 if image.mode.startswith("I;16") or image.format == "PNG" else 23  # the range of the type, whatever the values are
        return Image.fromarray(np.clip(grey >> shift, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise MediaError("decode", "grey values are floating-point numbers, whose range no file says: convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# ---- videos and audio (PyAV)


@contextmanager
def _opened(data: bytes, modality: str) -> Iterator[tuple[av.container.InputContainer, Any]]:
    """(container, its first stream of the modality), with libav's errors turned into MediaError."""
    import av

    ext, modalities = sniff(data)
    if modality not in modalities:
        raise MediaError("not_media", f"a {ext} file cannot be {modality}")
    if ends_early(data, ext):
        raise MediaError("truncated", f"{ext} of {len(data)} bytes: data ends early")
    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore") as container:
            streams = _moving(container) if modality == "video" else container.streams.audio
            if not streams:
                raise NoTrackError("not_media", f"{ext} without a {modality} stream")
            if streams[0].codec_context is None:
                raise MediaError("decode", f"{ext} of {len(data)} bytes: no decoder for its {modality}")
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except av.error.FFmpegError as error:
        raise MediaError("decode", f"{ext} of {len(data)} bytes: {error.strerror or type(error).__name__}") from error


def _moving(container: av.container.InputContainer) -> list[Any]:
    """The streams of moving images; a cover is none."""
    import av

    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def map_video_frames(data: bytes, function: Callable[[av.VideoFrame], T]) -> tuple[list[T], Timeline]:
    """(function of every frame in time order, when they are shown). Only one frame is held at a time. Raises MediaError."""
    found: list[T] = []
    times: list[float | None] = []
    last_s = 0.0
    with _opened(data, "video") as (container, stream):
        hz = _frames_hz(stream)
        for frame in _frames(container, stream):
            found.append(function(frame))
            times.append(frame.time)
            last_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        listed_s = _listed_s(stream)
    if not found:
        raise MediaError("decode", f"clip of {len(data)} bytes: no frame")
    return found, Timeline.of(times, hz, last_s, listed_s)


def _listed_s(stream: Any) -> float:
    """How long a track is by its own header, 0 when that does not say."""
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0


def _frames_hz(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _frames(container: av.container.InputContainer, stream: Any) -> Iterator[av.VideoFrame]:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise MediaError("too_large", f"{width} x {height} pixels, the limit is {MAX_PIXELS}")
    for index, frame in enumerate(container.decode(stream)):
        if index >= MAX_VIDEO_FRAMES:
            raise MediaError("too_large", f"more than {MAX_VIDEO_FRAMES} frames")
        yield frame


def _probe_video(data: bytes, ext: str) -> Probe:
    shown, timeline = map_video_frames(data, lambda frame: (upright_size(frame), frame.time or 0.0))
    (width, height), rate = shown[-1][0], timeline.frames_hz
    last = max(time for _, time in shown)
    even_s = max(last + 1 / rate, len(shown) / rate if last == 0 else 0.0)
    return Probe(ext=ext, width=width, height=height, duration_s=round(even_s if timeline.is_even else timeline.end_s, 3))


def decode_video_frames(data: bytes, frames: int, start_s: float = 0.0, end_s: float | None = None) -> list[Image.Image]:
    """`frames` RGB images, from the middles of as many equal parts of the video (or of its span), in time order. Raises MediaError.

    A video with fewer frames than asked for repeats some. Only the sampled frames are converted to RGB.
    """
    return choose_video_frames(
        data, lambda count, hz: [first + int((i + 0.5) * (last - first) / frames) for first, last in [span(count, hz, start_s, end_s)] for i in range(frames)]
    )


def choose_video_frames(data: bytes, choose: Callable[[int, float], Sequence[int]]) -> list[Image.Image]:
    """RGB images at the indices that `choose` gives for (number of frames, frames per second), in its order, turned upright. Raises MediaError.

    Of a video of variable frame rate, frames are those it would have at the constant rate of FINE_HZ.
    """
    times: list[float | None] = []
    latest, last_s = -1.0, 0.0
    with _opened(data, "video") as (container, stream):
        for packet in container.demux(stream):
            if packet.size:
                time = None if packet.pts is None or packet.time_base is None else float(packet.pts * packet.time_base)
                times.append(time)
                if time is not None and time >= latest:
                    latest, last_s = time, float(packet.duration * packet.time_base) if packet.duration and packet.time_base else 0.0
        expected = Timeline.of(times, _frames_hz(stream), last_s, _listed_s(stream))
    picked, seen = pick_video_frames(data, [expected.frame_of(slot) for slot in choose(expected.count, expected.hz)])
    if seen != len(times) or not seen:  # packets that give no image, or images without a packet of their own
        _, timeline = map_video_frames(data, lambda frame: None)
        picked, _ = pick_video_frames(data, [timeline.frame_of(slot) for slot in choose(timeline.count, timeline.hz)])
    return picked


def span(count: int, hz: float, start_s: float, end_s: float | None) -> tuple[int, int]:
    """First and last (exclusive) frame of a span of a video of `count` frames at `hz` per second; never empty."""
    first = min(int(start_s * hz), max(0, count - 1))
    return first, count if end_s is None else max(first + 1, min(count, round(end_s * hz)))


def pick_video_frames(data: bytes, wanted: Sequence[int]) -> tuple[list[Image.Image], int]:
    """(RGB images, upright, at those of the wanted indices that there are, in the given order; frames seen in all). Raises MediaError."""
    found: dict[int, Image.Image] = {}
    seen = 0
    with _opened(data, "video") as (container, stream):
        for index, frame in enumerate(_frames(container, stream)):
            seen = index + 1
            if index in wanted:
                found[index] = upright(frame)
    return [found[i] for i in wanted if i in found], seen


def decode_audio(data: bytes, hz: int, max_seconds: float, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """float32 mono samples at `hz` of the audio or its span, at most `max_seconds`, about -1..1. Raises MediaError; NoTrackError for a silent video file.

    Of several tracks it is the first, on the video's own time: second 0 is the first image, so a track that starts later begins with silence. Channels are
    averaged with equal weights; the mix of libswresample would drop the low-frequency channel and make stereo 3 dB louder than mono.
    """
    return _decode_samples(data, hz, max_seconds, start_s, end_s)[0]


def decode_waveform(data: bytes, max_seconds: float, start_s: float = 0.0, end_s: float | None = None) -> tuple[np.ndarray, int]:
    """(samples as decode_audio gives them, their rate in Hz) at the rate they are stored with. Raises MediaError; NoTrackError for a silent video file."""
    return _decode_samples(data, None, max_seconds, start_s, end_s)


def _decode_samples(data: bytes, hz: int | None, max_seconds: float, start_s: float, end_s: float | None) -> tuple[np.ndarray, int]:
    """(samples, rate); hz None: as stored."""
    with _opened(data, "audio") as (container, stream):
        rate = hz or int(stream.rate)
        limit = max(0, round((max_seconds if end_s is None else min(max_seconds, end_s - start_s)) * rate))
        frames = container.decode(stream)
        head = next(frames, None)
        at = round((_delay_s(container, head) - start_s) * rate)  # of the next sample, counted from the start of the span
        pieces = [np.zeros(min(max(at, 0), limit), np.float32)]
        for piece in mono(frames if head is None else chain([head], frames), rate):
            if at + piece.size > 0:
                pieces.append(piece[max(0, -at) :])
            at += piece.size
            if at >= limit:
                break
    samples = np.concatenate(pieces)[:limit].astype(np.float32, copy=False)
    if samples.size <= pieces[0].size:
        raise MediaError("decode", f"sound of {len(data)} bytes: no samples")
    if not np.isfinite(samples).all():
        raise MediaError("decode", f"sound of {len(data)} bytes: samples are not finite")
    return samples, rate


def _delay_s(container: av.container.InputContainer, head: Any) -> float:
    """Seconds from a video's first image to its first audio (`head`, a frame); 0 for a file without moving images."""
    images = next(iter(_moving(container)), None)
    if images is None or images.start_time is None or images.time_base is None or head is None or head.time is None:
        return 0.0
    return float(head.time - images.start_time * images.time_base)


def _probe_audio(data: bytes, ext: str) -> Probe:
    samples, rate = 0, 0
    with _opened(data, "audio") as (container, stream):
        for frame in container.decode(stream):
            samples, rate = samples + frame.samples, frame.sample_rate
            if samples > MAX_AUDIO_S * rate:
                raise MediaError("too_large", f"longer than {MAX_AUDIO_S:.0f} s")
    if samples == 0:
        raise MediaError("decode", f"{ext} of {len(data)} bytes: no samples")
    if ext == "flac" and samples < flac_samples(data):
        raise MediaError("truncated", f"flac with {samples} of {flac_samples(data)} samples")
    return Probe(ext=ext, duration_s=round(samples / rate, 3))
