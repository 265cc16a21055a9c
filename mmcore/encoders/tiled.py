"""Large images as a thumbnail and tiles, through any encoder of images.

Owns the choice of the grid, the cutting and the order: the whole image as the encoder prepares it, then squares of its own size, row by row from the
top left. Input: image bytes; output: features [(1 + tiles) * N, E] of one image, so lengths differ from image to image.

The grid is chosen as LLaVA-NeXT does for images of any resolution (https://llava-vl.github.io/blog/2024-01-30-llava-next/; `select_best_resolution` in
https://github.com/haotian-liu/LLaVA, llava/mm_utils.py): most of the image's own pixels first, then least padding. Here every grid of at most spec.tiles
squares may be chosen, one square meaning none (the thumbnail shows the same), and the padding is white like all of our backgrounds, not black.

Shape letters: N feature tokens of one encoder input, E encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from mmcore.encoder_config import TiledImage
from mmcore.encoders.base import BatchedEncoder, Encoder
from mmcore.media.decode import decode_image


@runtime_checkable
class ImageEncoder(Protocol):
    """What an encoder of images offers beside the bytes' way in. One whose preprocessing cuts off the rim also has prepare_tile."""

    @property
    def side(self) -> int:
        """Pixels per side of what it sees."""
        ...

    def prepare_image(self, image: Image.Image) -> Any:
        """RGB -> one prepared item."""
        ...

    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """See Encoder."""
        ...


class TiledEncoder(BatchedEncoder):
    """One image -> the tokens of its thumbnail, then those of every tile. spec.batch counts encoder inputs, not images."""

    spec: TiledImage

    def __init__(self, spec: TiledImage, inner: Encoder):
        """Raises ValueError for an encoder that takes no decoded images, or sees squares of another size."""
        if not isinstance(inner, ImageEncoder):
            raise ValueError(f"{spec.kind} takes no decoded images: set tiles to 0")
        self.spec, self._inner = spec, inner
        self._prepare_tile = getattr(inner, "prepare_tile", inner.prepare_image)
        side = inner.prepare_image(Image.new("RGB", (inner.side, inner.side))).shape[1]
        if side != inner.side:
            raise ValueError(f"{spec.arch} sees {side} x {side} pixels, the spec says {inner.side}: tiles need image_size {side}")

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> list[Any]:
        """Bytes -> prepared thumbnail and tiles; an image has no span."""
        image = decode_image(data)
        tiles = cut(image, self._inner.side, self.spec.tiles)
        return [self._inner.prepare_image(image), *(self._prepare_tile(tile) for tile in tiles)]

    def forward(self, items: Sequence[list[Any]]) -> list[np.ndarray]:
        """Thumbnail and tiles of each -> features [(1 + tiles) * N, E] each; spec.batch inputs per call of the encoder."""
        together = [one for item in items for one in item]
        features: list[np.ndarray] = []
        for start in range(0, len(together), self.spec.batch):
            features += self._inner.forward(together[start : start + self.spec.batch])
        at = iter(features)
        return [np.concatenate([next(at) for _ in item]) for item in items]


def grid(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """(columns, rows) of at most `most` squares of `side` pixels for an image of width x height; (1, 1) when more would show nothing more.

    The grid in which the fitted image keeps most pixels (never counted beyond its own), then the one with the least padding; then fewest
    squares, then fewest columns.
    """
    best, chosen = (-1, 0), (1, 1)
    for columns, rows in sorted(((c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)), key=lambda shape: (shape[0] * shape[1], shape[0])):
        squares = columns * rows
        scale = min(columns * side / width, rows * side / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        if (kept, kept - squares * side * side) > best:
            best, chosen = (kept, kept - squares * side * side), (columns, rows)
    return chosen


def cut(image: Image.Image, side: int, most: int) -> list[Image.Image]:
    """The tiles of an image, side x side pixels each, row by row from the top left; none for an image that one square holds.

    The image is scaled (bicubic) until it fits its grid in one direction, and centred on white in the other.
    """
    columns, rows = grid(*image.size, side, most)
    if columns * rows == 1:
        return []
    canvas = Image.new("RGB", (columns * side, rows * side), (255, 255, 255))
    across, down = canvas.width / image.width, canvas.height / image.height
    if across < down:
        size = (canvas.width, min(math.ceil(image.height * across), canvas.height))
    else:
        size = (min(math.ceil(image.width * down), canvas.width), canvas.height)
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), ((canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2))
    return [canvas.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for y in range(rows) for x in range(columns)]
