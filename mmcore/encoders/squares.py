"""Images made square without losing any of them: bars of one colour at the short sides.

Owns the padding of HfImage.pad, which LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744) and NExT-GPT train with. Input: an image; output: an image.
Raises MediaError for one that does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mmcore.media.decode import MAX_PIXELS, MediaError

MAX_PADDED = 8 * MAX_PIXELS
"""Pixels of a padded image."""
MAX_RATIO = 400
"""Longer side of an image in shorter sides, for an encoder that scales the shorter one."""


def refuse_thin(image: Image.Image) -> Image.Image:
    """The image as it is. Raises MediaError (too_large) for a strip that would be scaled to more pixels than there is room for."""
    if max(image.size) > MAX_RATIO * min(image.size):
        raise MediaError("too_large", f"a strip of {image.width} x {image.height} pixels; its sides may differ by a factor of {MAX_RATIO}")
    return image


def padded_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """RGB of any size -> RGB of its longer side, the image in the middle. mean: the encoder's mean colour, red, green, blue in 0..1 (cut to whole 255ths).

    Raises MediaError (too_large).
    """
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    if side * side > MAX_PADDED:
        raise MediaError("too_large", f"{width} x {height} pixels, padded to {side} x {side}; the limit is {MAX_PADDED} pixels")
    red, green, blue = (int(255 * value) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
