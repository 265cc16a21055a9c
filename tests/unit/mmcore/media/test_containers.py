"""Containers: a file that is cut short is known as such wherever it is cut, and a whole one never is."""

from __future__ import annotations

import av
import numpy as np
import pytest
from data_steps import mp4, png, wav
from PIL import Image

from mmcore.media.containers import ends_early
from mmcore.media.decode import MediaError, probe


def index_first(path) -> bytes:
    """An mp4 whose index stands before its frames."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def index_last(path) -> bytes:
    return mp4([Image.new("RGB", (32, 32), (10 * n, 0, 90)) for n in range(4)])


@pytest.mark.parametrize("make", [index_first, index_last])
def test_an_mp4_cut_anywhere_is_truncated(make, tmp_path):
    data = make(tmp_path / "made.mp4")
    assert not ends_early(data, "mp4") and not ends_early(data + b"\n\n\n", "mp4") and probe(data, "video").width == 32
    whole = [size for size in range(8, len(data)) if not ends_early(data[:size], "mp4")]
    assert whole == []
    for size in range(24, len(data), max(1, len(data) // 40)):
        with pytest.raises(MediaError) as caught:
            probe(data[:size], "video")
        assert caught.value.reason == "truncated", size


@pytest.mark.parametrize("ext, data", [("png", png(0)), ("wav", wav(0, 0.1))])
def test_an_image_and_an_audio_clip_cut_before_their_last_bytes_are_truncated(ext, data):
    for size in range(60, len(data) - 20, max(1, len(data) // 60)):
        with pytest.raises(MediaError) as caught:
            probe(data[:size], "image" if ext == "png" else "audio")
        assert caught.value.reason == "truncated", size
