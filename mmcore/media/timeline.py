"""Timeline: when the frames of a video are shown, and which way up.

Owns the slots in which frames are chosen. Input: the times of the frames in seconds; output: slots of equal length and the frame shown in each. Raises nothing.

A video of constant frame rate has one slot per frame. Any other one has slots of 1 / FINE_HZ s, so that equal parts of it are equal in time, and its span is
the same as that of its audio.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import av

FINE_HZ = 1000.0
"""Slots per second of a video whose frames are not evenly spaced."""
TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""Signs of a, b, c, d of a display matrix, x' = a x + c y and y' = b x + d y (ISO/IEC 14496-12, 8.2.2.3) -> what turns the stored frame upright."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """count slots of 1 / hz s; `frame_of(slot)` is the number of the frame, in time order, that is shown in the middle of the slot."""

    times: np.ndarray
    """float64 [frames], ascending, in seconds from the first frame."""
    frames_hz: float
    """Frames per second, on average."""
    end_s: float
    """When the last frame is over."""
    is_even: bool

    @classmethod
    def of(cls, times: Sequence[float | None], frames_hz: float, last_s: float, listed_s: float = 0.0) -> Timeline:
        """times: of every frame, in any order (None: the file does not say); last_s: how long the last one is shown, 0 when the file does not
        say; listed_s: how long the track is by its header, 0 likewise."""
        known = sorted(time for time in times if time is not None)
        even = np.arange(len(times)) / frames_hz
        if len(known) < len(times) or not known:
            return cls(even, frames_hz, len(times) / frames_hz, True)
        found = np.array(known) - known[0]
        if last_s <= 0 and listed_s > found[-1]:
            last_s = listed_s - float(found[-1])
        elif last_s <= 0:
            last_s = min(1 / frames_hz, float(np.median(np.diff(found))) if len(found) > 1 else 1 / frames_hz)
        end_s = float(found[-1]) + last_s
        return cls(found, frames_hz, end_s, bool((np.abs(found - even) < 0.5 / frames_hz).all()) and end_s < (len(times) + 1) / frames_hz)

    @property
    def hz(self) -> float:
        """Slots per second."""
        return self.frames_hz if self.is_even else FINE_HZ

    @property
    def count(self) -> int:
        """Slots in all, at least one."""
        return len(self.times) if self.is_even else max(1, round(self.end_s * FINE_HZ))

    def frame_of(self, slot: int) -> int:
        """The frame shown in the middle of a slot."""
        if self.is_even:
            return slot
        return max(0, int(np.searchsorted(self.times, (slot + 0.5) / FINE_HZ, side="right")) - 1)

    def slot_of(self, frame: int) -> int:
        """The first slot of a frame."""
        return frame if self.is_even else round(float(self.times[frame]) * FINE_HZ)


def turn_of(frame: av.VideoFrame) -> Image.Transpose | None:
    """What turns a decoded frame upright, by the display matrix that came with it; None: it is upright, or leans by less than a quarter."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    largest = max(abs(a), abs(b), abs(c), abs(d), 1)
    return TURNS.get((round(a / largest), round(b / largest), round(c / largest), round(d / largest)))


def upright(frame: av.VideoFrame) -> Image.Image:
    """A decoded frame as RGB, the way a player shows it."""
    turn = turn_of(frame)
    image = frame.to_image()
    return image if turn is None else image.transpose(turn)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(width, height) of `upright(frame)`."""
    swaps = turn_of(frame) in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE)
    return (frame.height, frame.width) if swaps else (frame.width, frame.height)
