"""Scenes: on real H.264 clips every scene is seen, a clip without cuts gives the uniform choice, and what cannot be sampled is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from data_steps import mp4
from PIL import Image
from safetensors.torch import save_file

from mmcore.encoder_config import TimmVideo, encoder_config
from mmcore.encoders import load_encoder
from mmcore.media.decode import MediaError, decode_video_frames
from mmcore.media.scenes import CHANGE, find_cuts, frame_changes, sample_frames, scene_frames, spread

HZ, SCENES = 12, (30, 8, 20, 14)
EDGES = [0, 30, 38, 58, 72]


def pan(seed: int, count: int, side: int = 96) -> list[Image.Image]:
    """`count` frames of a window that moves over one made-up photo: blurred colour noise, which has detail at several scales."""
    draws = np.random.default_rng(seed)
    photo = np.zeros((2 * side, 4 * side, 3))
    for cells, weight in ((3, 90), (12, 40), (48, 15)):
        coarse = Image.fromarray(draws.integers(0, 255, (cells, 2 * cells, 3), dtype=np.uint8)).resize((4 * side, 2 * side), Image.Resampling.BICUBIC)
        photo += weight * (np.asarray(coarse) / 127.5 - 1)
    picture = Image.fromarray(np.clip(photo + 40 * draws.random(3) + 108, 0, 255).astype(np.uint8))
    return [picture.crop((2 * i, i, 2 * i + side, i + side)) for i in range(count)]


@pytest.fixture(scope="module")
def cut_clip() -> tuple[bytes, list[Image.Image]]:
    """A clip with three cuts, and the pictures it was made of."""
    pictures = [picture for seed, count in enumerate(SCENES) for picture in pan(seed, count)]
    return mp4(pictures, HZ), pictures


@pytest.fixture(scope="module")
def whole_clip() -> bytes:
    return mp4(pan(7, 40), HZ)


def indices(found: list[Image.Image], pictures: list[Image.Image]) -> list[int]:
    """Which of the pictures each found one is (the clip is lossy)."""
    sources = np.stack([np.asarray(picture, np.int16) for picture in pictures])
    return [int(np.abs(sources - np.asarray(picture, np.int16)).mean((1, 2, 3)).argmin()) for picture in found]


def scene_of(index: int) -> int:
    return int(np.searchsorted(EDGES, index, side="right")) - 1


def test_the_cuts_are_found_and_every_scene_is_seen(cut_clip):
    data, pictures = cut_clip
    changes, shown = frame_changes(data)
    hz = shown.hz
    assert len(changes) == 72 and hz == HZ and find_cuts(changes, hz) == EDGES[1:-1]
    assert sorted(changes)[-4] < CHANGE < min(changes[EDGES[1:-1]]) / 2  # far from the threshold
    chosen = indices(sample_frames(data, 4, "scenes"), pictures)
    assert chosen == [15, 34, 48, 65]  # the middle of each scene
    assert {scene_of(i) for i in indices(sample_frames(data, 4), pictures)} == {0, 2, 3}  # uniform: 9, 27, 45, 63
    assert indices(sample_frames(data, 8, "scenes"), pictures) == scene_frames(EDGES, 8) == [5, 15, 25, 34, 43, 53, 61, 68]
    assert indices(sample_frames(data, 2, "scenes"), pictures) == [15, 48]  # the longest two


def test_spans_see_the_scenes_inside_them(cut_clip):
    data, pictures = cut_clip
    found = indices(sample_frames(data, 3, "scenes", 25 / HZ, 50 / HZ), pictures)
    assert found == [27, 34, 44] and [scene_of(i) for i in found] == [0, 1, 2]
    inside = sample_frames(data, 3, "scenes", 0.0, 2.0)  # nothing is cut here
    assert [np.asarray(a).tobytes() for a in inside] == [np.asarray(a).tobytes() for a in decode_video_frames(data, 3, 0.0, 2.0)]


@pytest.mark.parametrize("frames", [1, 3, 4, 64])
@pytest.mark.parametrize("span", [(0.0, None), (1.0, None), (0.5, 2.25), (99.0, None)])
def test_without_cuts_the_choice_is_the_uniform_one(whole_clip, frames, span):
    uniform, scenes = (sample_frames(whole_clip, frames, sampling, *span) for sampling in ("uniform", "scenes"))
    assert len(scenes) == frames and [a.tobytes() for a in uniform] == [a.tobytes() for a in scenes]


def test_short_clips_repeat_frames_and_the_choice_is_always_the_same(cut_clip):
    one = mp4(pan(3, 1), HZ)
    assert [a.tobytes() for a in sample_frames(one, 3, "scenes")] == [decode_video_frames(one, 1)[0].tobytes()] * 3
    jumps = mp4([Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green", "white")], 2)  # a slide show, a picture every half second
    colours = [tuple(value > 100 for value in picture.getpixel((32, 32))) for picture in sample_frames(jumps, 6, "scenes")]
    assert colours == [(1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 1), (0, 1, 0), (1, 1, 1)]
    data = cut_clip[0]
    assert len({b"".join(a.tobytes() for a in sample_frames(data, 5, "scenes")) for _ in range(3)}) == 1


def test_motion_and_flashes_are_no_scenes():
    assert find_cuts(np.full(60, 40.0), 25) == []  # every frame differs as much: motion
    still = np.full(60, 2.0)
    for frames, expected in (([30], [30]), ([30, 31], []), ([10, 12, 40], [40]), ([5, 55], []), ([6, 54], [6, 54]), ([20, 30, 40], [20, 30, 40])):
        changes = still.copy()
        changes[frames] = 90.0
        assert find_cuts(changes, 25) == expected, frames  # flashes, and scenes of less than a quarter of a second, are none
    assert find_cuts(np.where(np.arange(60) % 3 == 0, 40.0, 0.0), 25) == []  # 8 drawings per second, each shown three times
    assert find_cuts(np.zeros(1), 25) == [] and find_cuts(np.array([0.0, 99.0]), 1) == [1]


def test_the_budget_goes_where_a_frame_stands_for_most():
    assert spread([30, 8, 20, 14], 2) == [1, 0, 1, 0]
    assert spread([30, 8, 20, 14], 4) == [1, 1, 1, 1]
    assert spread([90, 10], 10) == [9, 1] and spread([50, 30, 20], 10) == [5, 3, 2]
    assert spread([5, 5], 1) == [1, 0] and spread([7], 3) == [3]
    for frames in range(1, 40):
        assert sum(spread([30, 8, 20, 14], frames)) == frames
        assert scene_frames([5, 72], frames) == [5 + int((i + 0.5) * 67 / frames) for i in range(frames)]
        assert scene_frames(EDGES, frames) == sorted(scene_frames(EDGES, frames))


def test_a_damaged_clip_is_a_media_error(cut_clip):
    data = cut_clip[0]
    with pytest.raises(MediaError, match="truncated"):
        sample_frames(data[: len(data) // 2], 4, "scenes")
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    with pytest.raises(MediaError, match="decode"):
        sample_frames(data[:start] + b"\xff" * (end - start) + data[end:], 4, "scenes")
    with pytest.raises(MediaError, match="not_media"):
        sample_frames(b"GIF89a, no clip", 4, "scenes")


def test_encoders_follow_the_sampling_or_refuse_it(cut_clip, tmp_path: Path):
    torch.manual_seed(0)
    (tmp_path / "encoder").mkdir()
    save_file(timm.create_model("test_efficientnet", pretrained=False).state_dict(), tmp_path / "encoder" / "model.safetensors")
    (tmp_path / "encoder.json").write_text(json.dumps({"arch": "test_efficientnet"}))
    base = {"arch": "test_efficientnet", "width": 256, "grid": 1, "image_size": 32}
    uniform, scenes = (load_encoder(TimmVideo(frames=4, sampling=sampling, **base), tmp_path).prepare(cut_clip[0]) for sampling in ("uniform", "scenes"))
    assert uniform.shape == scenes.shape == (4, 32, 32, 3) and not np.array_equal(uniform, scenes)
    with pytest.raises(ValueError, match="timm_video does not support sampling=shots: use uniform or scenes"):
        load_encoder(TimmVideo(sampling="shots", **base), tmp_path)
    for kind in ("imagebind_video", "timm_image", "vae_video"):
        with pytest.raises(ValueError, match=f"{kind} has no sampling; it has arch, width"):
            encoder_config(kind, {"arch": "a", "width": 4, "sampling": "scenes"})
