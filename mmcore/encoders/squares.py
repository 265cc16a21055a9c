"""Images made square without losing any of them: bars of one colour at the short sides.

Owns the padding of HfImage.pad, which LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744) and NExT-GPT train with. Input: an image; output: an image.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def padded_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """RGB of any size -> RGB of its longer side, the image in the middle. mean: the encoder's mean colour, red, green, blue in 0..1 (cut to whole 255ths)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    red, green, blue = (int(255 * value) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
