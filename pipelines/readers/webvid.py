"""WebVid lists: comma-separated with header videoid,contentUrl,duration,page_dir,name.

Input: a .csv; output: one video Row per record, refused where a line is none. Only videoid, contentUrl and name are needed; a media template may use any
column (`videos/{page_dir}/{videoid}.mp4`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.readers.rows import DEFAULTS, Media, ReadOptions, Row, csv_records, place, refused, some_readable, texts

COLUMNS = ("videoid", "contentUrl", "name")


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order. Raises AnyloomError for a wrong header and a file that is no such list."""
    yield from some_readable(list_path, _rows(list_path, options))


def _rows(list_path: Path, options: ReadOptions) -> Iterator[Row]:
    for line, record in csv_records(list_path, COLUMNS):
        if isinstance(record, str):
            yield refused(list_path, line, record)
            continue
        uri = place(options, record, record["contentUrl"].strip(), f"{list_path}, line {line}")
        yield Row(media=(Media(role="input", modality="video", uri=uri),), texts=texts(record["name"]))
