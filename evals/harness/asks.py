"""Asks: the requests of a task as the model sees them, cut into batches, and the image files among a task's documents.

Input: asks, or a data set of the harness. Output: batches of asks that depend on nothing but the asks, and readers of undecoded images. The harness itself is
known to evals.harness.adapter only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

BUCKET = 64
"""Images whose questions are within this many characters of each other are answered together."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as the model sees it."""

    key: str
    shown: str
    """Identity of the image that is shown; "" without one."""
    text: str
    until: tuple[str, ...]
    max_new_tokens: int


def batches_of(asks: Sequence[Ask], chunk: int, bucket: int) -> list[list[Ask]]:
    """Distinct asks cut into chunks. Images with equally many questions, about as long, stand together: their rows are equally long."""
    by_key = {ask.key: ask for ask in asks}
    num_asked, characters = Counter[str](), Counter[str]()
    for ask in by_key.values():
        num_asked[ask.shown] += 1
        characters[ask.shown] += len(ask.text)

    def order(ask: Ask) -> tuple[int, int, int, str, str]:
        length = characters[ask.shown] if ask.shown else len(ask.text)
        return ask.max_new_tokens, num_asked[ask.shown], length // bucket if bucket else 0, ask.shown, ask.text

    distinct = sorted(by_key.values(), key=order)
    batches: list[list[Ask]] = []
    for ask in distinct:
        if not batches or len(batches[-1]) == chunk or batches[-1][0].max_new_tokens != ask.max_new_tokens:
            batches.append([])
        batches[-1].append(ask)
    return batches


def image_files(documents: Any) -> Callable[[int], list[Callable[[], bytes]]]:
    """Document number -> how to read the image files in it, undecoded; none when its images are not plain columns."""
    from datasets import Image

    features = getattr(documents, "features", None) or {}
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not columns:
        return lambda _: []
    undecoded = documents.select_columns(columns)
    for name in columns:
        undecoded = undecoded.cast_column(name, Image(decode=False))

    def read(number: int, name: str) -> bytes:
        cell = undecoded[number][name]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    def files(number: int) -> list[Callable[[], bytes]]:
        row = undecoded[number]
        return [partial(read, number, name) for name in columns if row[name] is not None]

    return files
