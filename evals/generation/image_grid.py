"""Grids: many small images in one PNG, each in a frame that says whether it is right.

Owns the layout only. Input: images as arrays, marks and labels; output: PNG bytes, the same for the same input. Every image that is handed in is shown,
failures included.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SCALE, FRAME, GAP = 2, 3, 2
LABEL_WIDTH, LABEL_HEIGHT = 64, 16
"""Pixels of the margins on the left and at the top where labels stand."""
RIGHT, WRONG, UNMARKED = (30, 150, 70), (210, 40, 40), (190, 190, 190)


def grid_png(
    images: np.ndarray, marks: Sequence[bool | None], columns: int, row_labels: Sequence[str] = (), column_labels: Sequence[tuple[int, str]] = ()
) -> bytes:
    """images uint8 [N, 3, S, S], row by row from the top left; marks: True in a green frame, False in a red one, None in a grey one.

    column_labels: (column it begins at, text). Raises ValueError unless there is one mark for each image.
    """
    if len(images) != len(marks) or not len(images):
        raise ValueError(f"a grid needs one mark for each image and at least one image, not {len(marks)} and {len(images)}")
    cell = images.shape[-1] * SCALE + 2 * (FRAME + GAP)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * cell, LABEL_HEIGHT + rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, mark) in enumerate(zip(images, marks, strict=True)):
        x, y = LABEL_WIDTH + number % columns * cell + GAP, LABEL_HEIGHT + number // columns * cell + GAP
        colour = UNMARKED if mark is None else RIGHT if mark else WRONG
        draw.rectangle((x, y, x + cell - 2 * GAP - 1, y + cell - 2 * GAP - 1), fill=colour)
        shown = Image.fromarray(image.transpose(1, 2, 0)).resize((image.shape[-1] * SCALE,) * 2, Image.Resampling.NEAREST)
        sheet.paste(shown, (x + FRAME, y + FRAME))
    for row, text in enumerate(row_labels):
        draw.text((4, LABEL_HEIGHT + row * cell + cell // 2 - 6), text, fill="black")
    for column, text in column_labels:
        draw.text((LABEL_WIDTH + column * cell + GAP, 2), text, fill="black")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
