"""What ImageBind sees: images, videos, audio clips and text as its authors prepare them.

Owns sizes, crops, clip times, normalisation. Input: decoded media; output: float32 tensors of one item. Follows `imagebind/data.py` of the public code with
two differences: audio clips with several channels are averaged instead of cut to the first; the mean is taken off each span of an audio clip by itself (the
public code does it in place, which leaves a step in every span that overlaps an earlier one: audio clips shorter than 6 s). A text that is too long keeps its
end token, as in the public code since November 2025; older copies, NExT-GPT's among them, lose it and pool a wrong position.

Shape letters: S clips of one item, T frames of a clip, H/W pixels, F frames of audio, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from mmcore.encoders.imagebind.kaldi import fbank

SIDE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_S = 2.0
VIDEO_CLIPS, VIDEO_FRAMES, CROPS = 5, 2, 3
AUDIO_CLIPS, AUDIO_HZ, AUDIO_FRAMES, AUDIO_MEAN, AUDIO_STD = 3, 16000, 204, -4.268, 9.138
CONTEXT = 77


def clip_starts(seconds: float, clips: int, clip_s: float = CLIP_S) -> list[float]:
    """Start times in seconds of clips spread evenly over a medium; all 0 when it is shorter than one clip."""
    last = max(seconds - clip_s, 0.0)
    return [last * i / max(clips - 1, 1) for i in range(clips)]


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    """[…, 3, H, W] in 0..1."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _short_side(width: int, height: int) -> tuple[int, int]:
    """(width, height) with the short side SIDE, the long one cut to whole pixels."""
    return (SIDE, int(SIDE * height / width)) if width <= height else (int(SIDE * width / height), SIDE)


def image(shown: Image.Image) -> torch.Tensor:
    """RGB -> [3, SIDE, SIDE]: short side to SIDE (bicubic), centre crop, CLIP's normalisation."""
    width, height = _short_side(*shown.size)
    if (width, height) != shown.size:
        shown = shown.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    pixels = torch.from_numpy(np.array(shown.crop((left, top, left + SIDE, top + SIDE))))
    return _normalised(pixels.permute(2, 0, 1).float() / 255)


def frame_indices(frames: int, hz: float, clips: int = VIDEO_CLIPS) -> list[int]:
    """Indices of VIDEO_FRAMES frames of each of the clips: first, last and evenly between; clips may share frames."""
    found: list[int] = []
    for start in clip_starts(frames / hz, clips):
        first = min(math.ceil(start * hz), frames - 1)
        last = max(first, min(math.ceil((start + CLIP_S) * hz), frames) - 1)
        found += torch.linspace(first, last, VIDEO_FRAMES).long().tolist()
    return found


def clip(frames: Sequence[Image.Image]) -> torch.Tensor:
    """VIDEO_CLIPS * VIDEO_FRAMES frames in time order -> [S, 3, T, SIDE, SIDE], S = clips * CROPS: of each clip left, centre, right (or top to bottom)."""
    pixels = torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]).permute(0, 3, 1, 2).float() / 255
    width, height = frames[0].size
    if width < height:
        size = (math.floor(height / width * SIDE), SIDE)
    else:
        size = (SIDE, math.floor(width / height * SIDE))
    pixels = _normalised(functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False))
    height, width = size
    cropped = []
    for clip_TCHW in pixels.split(VIDEO_FRAMES):
        for part in range(CROPS):
            top, left = math.ceil((height - SIDE) / 2), math.ceil((width - SIDE) / 2)
            if height > width:
                top = (0, top, height - SIDE)[part]
            else:
                left = (0, left, width - SIDE)[part]
            cropped.append(clip_TCHW[:, :, top : top + SIDE, left : left + SIDE].transpose(0, 1))
    return torch.stack(cropped)


def sound(samples: np.ndarray) -> torch.Tensor:
    """Mono samples at AUDIO_HZ -> [S, 1, M, F]: AUDIO_CLIPS spectrograms of CLIP_S, zero-padded or cut to AUDIO_FRAMES, normalised."""
    waveform = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    made = []
    for start in clip_starts(len(waveform) / AUDIO_HZ, AUDIO_CLIPS):
        piece = waveform[int(start * AUDIO_HZ) : int((start + CLIP_S) * AUDIO_HZ)]
        mel_MF = fbank(piece - piece.mean(), AUDIO_HZ).T
        mel_MF = functional.pad(mel_MF, (0, max(0, AUDIO_FRAMES - mel_MF.shape[1])))[:, :AUDIO_FRAMES]
        made.append(((mel_MF - AUDIO_MEAN) / AUDIO_STD)[None])
    return torch.stack(made)


def text(caption: str, tokenize: Callable[[str], Sequence[int]], start: int, end: int) -> torch.Tensor:
    """Ids [CONTEXT]: start token, the words' ids, end token, zeros. A text that is too long loses words, never its end token."""
    words = list(tokenize(caption))[: CONTEXT - 2]
    ids = torch.zeros(CONTEXT, dtype=torch.long)
    ids[: len(words) + 2] = torch.tensor([start, *words, end])
    return ids
