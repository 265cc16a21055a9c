"""Gallery: media in one self-contained HTML sheet, each with its score, key and caption.

Owns the small previews: a thumbnail of an image, a few frames of a video, a player for an audio clip that is small enough. Input: raw media bytes.
Output: HTML text that loads nothing; every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from evals.pages.page import document, paragraph, section
from mmcore.media.decode import decode_image, decode_video_frames, sniff

if TYPE_CHECKING:
    from PIL import Image

SIDE = 240
"""Longest side of a preview in pixels."""
FRAMES = 4
"""Frames shown of a video, in two rows."""
MAX_AUDIO_BYTES = 400_000
"""A larger audio file is named, not put into the sheet."""
AUDIO_TYPES = {"ogg": "audio/ogg", "flac": "audio/flac", "wav": "audio/wav", "mp3": "audio/mpeg", "m4a": "audio/mp4", "webm": "audio/webm"}
STYLE = """<style>.card img{height:170px;image-rendering:auto}
.card .audio{display:flex;align-items:center;height:170px;margin:0;padding:0 10px;
border-bottom:1px solid var(--rule)}
.audio audio{width:100%}
.card code{font-size:11px}.card .rank{float:right;margin-left:8px;color:var(--soft);font-variant-numeric:tabular-nums}</style>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One medium of the sheet."""

    key: str
    modality: str
    """image, video or audio."""
    caption: str
    score: float
    data: bytes
    """The original file."""
    start_s: float = 0.0
    end_s: float | None = None
    """Span of a video in seconds."""


def sheet(title: str, about: str, items: Sequence[Shown]) -> str:
    """The whole page. Raises MediaError for a medium that cannot be decoded."""
    cards = "".join(_card(rank, item) for rank, item in enumerate(items, 1))
    body = f"<h1>{escape(title)}</h1>{paragraph(about, 'soft')}{section('Nearest first', f'<div class={chr(34)}cards{chr(34)}>{cards}</div>')}"
    return document(title, STYLE + body)


def preview(item: Shown) -> str:
    """HTML of one medium."""

    if item.modality == "image":
        return _image(decode_image(item.data), item.caption)
    if item.modality == "video":
        return _image(_montage(decode_video_frames(item.data, FRAMES, item.start_s, item.end_s)), item.caption)
    kind = AUDIO_TYPES.get(sniff(item.data)[0], "")
    if len(item.data) > MAX_AUDIO_BYTES or not kind:
        return f'<p class="audio soft">audio of {len(item.data) / 1e6:.1f} MB: too large to be played here</p>'
    return f'<p class="audio"><audio controls preload="metadata" src="data:{kind};base64,{base64.b64encode(item.data).decode()}"></audio></p>'


def _card(rank: int, item: Shown) -> str:
    text = f"<span class='rank'>{rank}</span><b>{escape(item.caption) or '<i>no caption</i>'}</b>"
    return f'<div class="card">{preview(item)}<div>{text}{item.score:.3f} · {escape(item.modality)}<br><code>{escape(item.key)}</code></div></div>'


def _image(image: Image.Image, caption: str) -> str:
    """A PIL image as a small JPEG inside the page."""
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _montage(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames in time order, two beside each other."""
    from PIL import Image

    width, height = frames[0].size
    together = Image.new("RGB", (2 * width, -(-len(frames) // 2) * height), (255, 255, 255))
    for number, frame in enumerate(frames):
        together.paste(frame, (number % 2 * width, number // 2 * height))
    return together
