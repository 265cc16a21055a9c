"""CC3M lists: tab-separated `caption <tab> url` without a header; quotes are plain characters.

Input: a .tsv; output: one image Row per line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infra.step import AnyloomError
from pipelines.readers.rows import DEFAULTS, Media, ReadOptions, Row, place, read_text, texts

HEADER = ("caption", "url")


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order; blank lines do not count. A first line `caption<tab>url` (added by hand for other tools) is a header.

    Raises AnyloomError when a line has not exactly two columns.
    """
    for line, text in enumerate(read_text(list_path).split("\n"), 1):
        text = text.rstrip("\r")
        values = text.split("\t")
        if not text.strip() or (line == 1 and tuple(value.strip().lower() for value in values) == HEADER):
            continue
        if len(values) != len(HEADER):
            problem = "column 'url' is missing" if len(values) == 1 else f"{len(values)} columns instead of 2 (caption, url)"
            raise AnyloomError(f"{list_path}, line {line}: {problem}; separate caption and url by exactly one tab")
        caption, url = values
        uri = place(options.media_template, {"caption": caption, "url": url}, url.strip(), f"{list_path}, line {line}")
        yield Row(media=(Media(role="input", modality="image", uri=uri),), texts=texts(caption))
