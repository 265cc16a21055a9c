"""CC3M lists: tab-separated `caption <tab> url` without a header; quotes are plain characters.

Input: a .tsv; output: one image Row per line, refused where a line has not exactly two columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.readers.rows import DEFAULTS, BadLine, Media, ReadOptions, Row, check_characters, place, read_text, refused, some_readable, texts

HEADER = ("caption", "url")


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order; blank lines do not count. A first line `caption<tab>url` (added by hand for other tools) is a header.

    Raises AnyloomError when no line is a record.
    """
    yield from some_readable(list_path, _rows(list_path, options))


def _rows(list_path: Path, options: ReadOptions) -> Iterator[Row]:
    for line, text in enumerate(read_text(list_path).split("\n"), 1):
        text = text.rstrip("\r")
        values = text.split("\t")
        if not text.strip() or (line == 1 and tuple(value.strip().lower() for value in values) == HEADER):
            continue
        try:
            caption, url = _columns(text, values)
        except BadLine as bad:
            yield refused(list_path, line, str(bad))
            continue
        uri = place(options, {"caption": caption, "url": url}, url.strip(), f"{list_path}, line {line}")
        yield Row(media=(Media(role="input", modality="image", uri=uri),), texts=texts(caption))


def _columns(text: str, values: list[str]) -> tuple[str, str]:
    """(caption, url). Raises BadLine."""
    check_characters(text)
    if len(values) != len(HEADER):
        problem = "column 'url' is missing" if len(values) == 1 else f"{len(values)} columns instead of 2 (caption, url)"
        raise BadLine(f"{problem}; separate caption and url by exactly one tab")
    return values[0], values[1]
