"""Decoding: what the bytes say decides, and every damaged file has its reason."""

from __future__ import annotations

import io
import tempfile
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from data_steps import mp4, tone
from PIL import Image

from mmcore.media import decode as media
from mmcore.media.decode import MediaError, NoTrackError, decode_audio, decode_image, decode_video_frames, decode_waveform, probe


def picture(fmt: str = "PNG", size: tuple[int, int] = (20, 10), mode: str = "RGB", colour: object = (255, 0, 0)) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise) if mode == "RGB" and colour is None else Image.new(mode, size, colour)
    image.save(buffer, fmt)
    return buffer.getvalue()


def sound(seconds: float = 1.0, hz: int = 8000, channels: int = 1) -> bytes:
    wave_hz = np.sin(np.arange(int(seconds * hz)) * 2 * np.pi * 440 / hz) * 12000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(hz)
        out.writeframes(np.repeat(wave_hz.astype("<i2"), channels).tobytes())
    return buffer.getvalue()


def clip(frames: int = 12, side: int = 32, options: dict[str, str] | None = None) -> bytes:
    """Frame i is grey of brightness 20 * i."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:  # faststart reads what it has written
        _write_clip(file.name, frames, side, options or {})
        return file.read()


def _write_clip(path: str, frames: int, side: int, options: dict[str, str]) -> None:
    with av.open(path, "w", format="mp4", options=options) as out:
        stream = out.add_stream("mpeg4", rate=12)
        stream.width = stream.height = side
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 12)
        for i in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.full((side, side, 3), 20 * i, np.uint8), format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


def reason(call, *arguments) -> str:
    with pytest.raises(MediaError) as caught:
        call(*arguments)
    assert "0x" not in caught.value.detail  # no memory addresses: the ledger must be reproducible
    return caught.value.reason


def test_pictures_are_composited_on_white():
    assert decode_image(picture(mode="RGBA", colour=(0, 0, 0, 0))).getpixel((3, 3)) == (255, 255, 255)
    assert decode_image(picture(mode="RGBA", colour=(0, 0, 0, 128))).getpixel((3, 3))[0] == pytest.approx(127, abs=1)
    assert decode_image(picture(mode="LA", colour=(0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(picture(mode="I;16", colour=65535)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(picture()).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("fmt,ext", [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp")])
def test_probe_of_pictures(fmt, ext):
    found = probe(picture(fmt), "image")
    assert (found.ext, found.width, found.height, found.duration_s) == (ext, 20, 10, 0.0)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_pictures_are_truncated(fmt, share):
    data = picture(fmt, (64, 64), colour=None)
    assert reason(probe, data[: int(len(data) * share)], "image") == "truncated"


def test_damaged_and_foreign_bytes():
    data = bytearray(picture(size=(64, 64), colour=None))
    data[60:90] = b"\0" * 30
    assert reason(probe, bytes(data), "image") == "decode"
    assert reason(probe, b"", "image") == "empty_file"
    assert reason(probe, b"<html>404</html>", "image") == "not_media"
    assert reason(probe, sound(), "image") == "not_media"
    assert reason(probe, picture(), "video") == "not_media"
    assert reason(probe, clip(3), "audio") == "not_media"  # no sound in it


def test_pixel_limit(monkeypatch):
    monkeypatch.setattr(media, "MAX_PIXELS", 100)
    assert reason(decode_image, picture()) == "too_large"
    assert reason(decode_video_frames, clip(3), 2) == "too_large"


def test_frames_are_the_middles_of_equal_parts():
    data = clip(12)
    found = [np.asarray(frame).mean() / 20 for frame in decode_video_frames(data, 4)]
    assert np.allclose(found, [1, 4, 7, 10], atol=0.3)
    assert len(decode_video_frames(clip(2), 5)) == 5
    span = [np.asarray(frame).mean() / 20 for frame in decode_video_frames(data, 2, 0.5, 1.0)]
    assert np.allclose(span, [7, 10], atol=0.3)
    assert probe(data, "video") == media.Probe(ext="mp4", width=32, height=32, duration_s=1.0)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_cut_clips_are_truncated(options):
    data = clip(options=options)
    assert reason(probe, data[: int(len(data) * 0.6)], "video") == "truncated"


def test_sounds_are_resampled_and_cut():
    data = sound(1.0, 8000, channels=2)
    samples = decode_audio(data, 16000, 30)
    assert samples.dtype == np.float32 and len(samples) == pytest.approx(16000, abs=40) and 0.2 < np.abs(samples).max() < 0.6
    assert len(decode_audio(data, 16000, 0.5)) == 8000
    assert np.array_equal(decode_audio(data, 16000, 30, 0.25, 0.5), samples[4000:8000])
    assert probe(data, "audio") == media.Probe(ext="wav", duration_s=1.0)
    assert reason(probe, data[:9000], "audio") == "truncated"
    assert reason(decode_audio, data, 16000, 30, 5.0) == "decode"


@pytest.mark.parametrize("codec", ["flac", "libvorbis", "pcm_s16le"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_waveform_keeps_its_rate_and_averages_its_channels(codec, channels):
    hz, t = 22050, np.arange(22050) / 22050
    left = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    planes = np.stack([left, 0.25 * left][:channels])
    out = io.BytesIO()
    with av.open(out, "w", format={"flac": "flac", "libvorbis": "ogg", "pcm_s16le": "wav"}[codec]) as container:
        stream = container.add_stream(codec, rate=hz, layout="stereo" if channels == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=stream.layout.name)
        frame.sample_rate = hz
        converter = av.AudioResampler(format=stream.format, layout=stream.layout, rate=hz)
        for piece in converter.resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    samples, found_hz = decode_waveform(out.getvalue(), 30)
    assert found_hz == hz and samples.dtype == np.float32 and len(samples) == pytest.approx(hz, abs=256)
    np.testing.assert_allclose(samples[2000:12000], planes.mean(axis=0)[2000:12000], atol=0.03 if codec == "libvorbis" else 1e-4)
    cut, _ = decode_waveform(out.getvalue(), 30, 0.25, 0.5)
    np.testing.assert_array_equal(cut, samples[round(0.25 * hz) : round(0.25 * hz) + round(0.25 * hz)])


def channels(count: int, sounding: int, seconds: float = 0.5) -> np.ndarray:
    """float32 [count, samples] at 16 kHz: a tone in one channel, the others silent."""
    samples = np.zeros((count, round(16000 * seconds)), np.float32)
    samples[sounding] = tone(seconds)[0]
    return samples


def pcm(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(len(samples))
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes((samples.T * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def strength(samples: np.ndarray) -> float:
    """Amplitude of a sine of this power."""
    return float(np.sqrt(2 * np.square(samples[1000:-1000]).mean()))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8, 16])
def test_a_sound_in_any_channel_is_in_the_mix(count):
    """Python writes no channel names, so libav takes 6 as 5.1 and 8 as 7.1 with their low-frequency channel, and 3 and 16 as they come."""
    for sounding in range(count):
        for hz in (16000, 8000):
            mixed = decode_audio(pcm(channels(count, sounding)), hz, 30)
            assert mixed.ndim == 1 and len(mixed) == pytest.approx(hz / 2, abs=40) and strength(mixed) == pytest.approx(0.5 / count, rel=0.02)
    loud = decode_audio(pcm(np.repeat(2 * tone(0.5), count, axis=0) * 0.999), 16000, 30)
    assert np.abs(loud).max() <= 1.0  # full scale in every channel stays inside the range


def test_a_sound_in_any_channel_of_5_1_film_sound_is_in_the_mix():
    for sounding in range(6):
        samples = channels(6, sounding)
        if sounding == 3:  # AAC keeps only the lowest frequencies of this channel
            samples[3] = tone(0.5, 60.0)[0]
        mixed = decode_audio(mp4([Image.new("RGB", (32, 32))] * 6, sound=samples, layout="5.1"), 16000, 30)
        assert strength(mixed) > 0.04


def test_the_sound_of_a_clip_is_on_the_clips_own_time():
    shown = [Image.new("RGB", (32, 32))] * 24
    data = mp4(shown, sound=tone(1.0))
    whole = decode_audio(data, 16000, 30)
    assert len(whole) == pytest.approx(16000, abs=1100) and strength(whole[:15000]) == pytest.approx(0.5, rel=0.05)
    assert len(decode_audio(data, 8000, 0.25)) == 2000
    late = mp4(shown, sound=tone(1.0), delay_s=0.5)
    samples = decode_audio(late, 16000, 30)
    assert len(samples) == pytest.approx(24000, abs=1100) and np.abs(samples[:7900]).max() < 0.02 and not samples[:6500].any()
    assert strength(samples[7000:22000]) == pytest.approx(0.5, rel=0.05)
    assert np.array_equal(decode_audio(late, 16000, 30, 0.25, 1.0), samples[4000:16000])
    assert reason(decode_audio, late, 16000, 30, 0.0, 0.25) == "decode"  # nothing sounds yet
    assert reason(decode_audio, data, 16000, 30, 1.5) == "decode"  # nor any more


def mp3(samples: np.ndarray, layout: str, hz: int = 16000) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as out:
        track = out.add_stream("libmp3lame", rate=hz, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = hz
        out.mux(track.encode(frame))
        out.mux(track.encode())
    return buffer.getvalue()


def test_a_track_may_change_its_channels_on_the_way():
    data = mp3(tone(1.0), "mono") + mp3(np.repeat(tone(1.0), 2, axis=0), "stereo")
    samples = decode_audio(data, 16000, 30)
    assert len(samples) == pytest.approx(32000, abs=6000)
    assert strength(samples[2000:14000]) == pytest.approx(0.5, rel=0.05) and strength(samples[-14000:-2000]) == pytest.approx(0.5, rel=0.05)


def test_a_clip_without_a_sound_track_is_a_case_of_its_own():
    with pytest.raises(NoTrackError, match="not_media: mp4 without a audio stream"):
        decode_audio(mp4([Image.new("RGB", (32, 32))] * 3), 16000, 30)
    with pytest.raises(MediaError) as caught:
        decode_audio(picture(), 16000, 30)
    assert not isinstance(caught.value, NoTrackError)


def test_a_librarys_global_switch_does_not_let_half_pictures_in(monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # what importing lmms-eval does
    assert reason(probe, picture("PNG", (64, 64), colour=None)[:400], "image") == "truncated"
