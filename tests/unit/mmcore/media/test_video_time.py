"""Videos in time and space: frames are chosen by when they are shown, turned the way a player shows them, and a cover is no video."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_steps import mp4
from PIL import Image

from mmcore.media.decode import MediaError, NoTrackError, choose_video_frames, decode_video_frames, probe
from mmcore.media.scenes import sample_frames
from mmcore.media.timeline import TURNS

CASES = Path(__file__).parents[3] / "cases"


def timed(times_ms: list[int], end_ms: int, form: str = "mp4", codec: str = "libx264", options: dict | None = None) -> bytes:
    """A video whose frame i is shown from times_ms[i] and has the brightness 10 + 4 i."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        stream = out.add_stream(codec, rate=25, options=options or {"bf": "0" if form == "mp4" else "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        ends, packets = [*times_ms[1:], end_ms], []
        lasting = {start: end - start for start, end in zip(times_ms, ends, strict=True)}
        for number, (start, end) in enumerate(zip(times_ms, ends, strict=True)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 + 4 * number, np.uint8), format="rgb24")
            frame.pts, frame.duration, frame.time_base = start, end - start, Fraction(1, 1000)
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            packet.duration = lasting[round(packet.pts * packet.time_base * 1000)]
            out.mux(packet)
    return buffer.getvalue()


def numbers(images: list[Image.Image]) -> list[int]:
    return [round((float(np.asarray(image).mean()) - 10) / 4) for image in images]


BURST = [*range(0, 1000, 40), 1000, 2000, 3000]
"""25 frames in the first second, then one every second."""
SLOW_START = [0, 1000, 2000, *range(3000, 4000, 40)]


@pytest.mark.parametrize("times", [BURST, SLOW_START, [0, 900, 1000, 1100, 3900]])
@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_frames_of_a_variable_rate_are_those_shown_at_the_time(times, form):
    data = timed(times, 4000, form)
    for count, span in ((4, (0.0, None)), (4, (0.0, 2.0)), (3, (1.0, 3.5)), (8, (0.0, None))):
        start, end = span[0], span[1] or 4.0
        wanted = [start + (i + 0.5) * (end - start) / count for i in range(count)]
        shown = [max(n for n, at in enumerate(times) if at / 1000 <= moment + 1e-3) for moment in wanted]
        assert numbers(decode_video_frames(data, count, *span)) == shown
        assert numbers(sample_frames(data, count, "scenes", *span)) == shown
    assert probe(data, "video").duration_s == pytest.approx(4.0, abs=0.11)


@pytest.mark.parametrize("hz", [1, 12, 24, 30])
@pytest.mark.parametrize("length", [1, 2, 7, 48])
def test_frames_of_a_constant_rate_are_chosen_by_number(hz, length):
    data = mp4([Image.new("RGB", (64, 48), (10 + 4 * i,) * 3) for i in range(length)], hz)
    found = []
    images = choose_video_frames(data, lambda count, rate: found.append((count, rate)) or range(count))
    assert found == [(length, hz)] and numbers(images) == list(range(length))
    assert numbers(decode_video_frames(data, 4)) == [int((i + 0.5) * length / 4) for i in range(4)]
    assert probe(data, "video").duration_s == pytest.approx(length / hz, abs=1e-3)


def turned(matrix: tuple[int, ...]) -> bytes:
    """rotated.mp4 with another display matrix in its track header."""
    data = (CASES / "rotated" / "phone_90.mp4").read_bytes()
    old = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    found = data.count(old)
    assert found == 1
    return data.replace(old, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), *TURNS], ids=str)
def test_frames_are_turned_as_a_player_shows_them(matrix):
    flat = np.asarray(decode_video_frames((CASES / "rotated" / "clip.mp4").read_bytes(), 1)[0]).astype(int)
    (image,) = decode_video_frames(turned(matrix), 1)
    height, width = flat.shape[:2]
    a, b, c, d = matrix
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    to_x, to_y = a * x + c * y, b * x + d * y
    wanted = np.zeros((np.ptp(to_y) + 1, np.ptp(to_x) + 1, 3), int)
    wanted[to_y - to_y.min(), to_x - to_x.min()] = flat
    assert np.array_equal(np.asarray(image), wanted)
    found = probe(turned(matrix), "video")
    assert (found.width, found.height) == image.size == (wanted.shape[1], wanted.shape[0])
    assert sample_frames(turned(matrix), 1, "scenes")[0].tobytes() == image.tobytes()


@pytest.mark.parametrize(("name", "turn"), [("phone_90.mp4", Image.Transpose.ROTATE_270), ("phone_180.mp4", Image.Transpose.ROTATE_180)])
def test_videos_of_phones_stand_upright(name, turn):
    flat = decode_video_frames((CASES / "rotated" / "clip.mp4").read_bytes(), 2)
    data = (CASES / "rotated" / name).read_bytes()
    frames = decode_video_frames(data, 2)
    assert [frame.tobytes() for frame in frames] == [frame.transpose(turn).tobytes() for frame in flat]
    assert frames[0].size == (probe(data, "video").width, probe(data, "video").height) == ((48, 64) if "90" in name else (64, 48))


def test_a_cover_is_no_video():
    data = (CASES / "cover" / "song.mp4").read_bytes()
    with pytest.raises(NoTrackError, match="not_media"):
        probe(data, "video")
    with pytest.raises(MediaError, match="not_media"):
        decode_video_frames(data, 2)
    assert probe(data, "audio").duration_s > 0


@pytest.mark.parametrize("form", ["mp4", "mov"])
@pytest.mark.parametrize("first", [True, False])
def test_a_video_with_a_cover_is_its_moving_images(form, first):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        for codec in ("mjpeg", "libx264") if first else ("libx264", "mjpeg"):
            stream = out.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = (300, 300, "yuvj420p") if codec == "mjpeg" else (64, 48, "yuv420p")
            if codec == "mjpeg":
                stream.disposition = av.stream.Disposition.attached_pic.value
        for stream in out.streams:
            image = Image.new("RGB", (stream.width, stream.height), "red" if stream.name == "mjpeg" else "blue")
            for packet in [
                packet for _ in range(1 if stream.name == "mjpeg" else 5) for packet in stream.encode(av.VideoFrame.from_image(image))
            ] + stream.encode():
                out.mux(packet)
    (image,) = decode_video_frames(buffer.getvalue(), 1)
    found = probe(buffer.getvalue(), "video")
    assert (found.width, found.height) == image.size == (64, 48) and found.duration_s == pytest.approx(0.5) and np.asarray(image).mean((0, 1))[2] > 200
