"""WebVid lists: comma-separated with header videoid,contentUrl,duration,page_dir,name.

Input: a .csv; output: one video Row per record. Only videoid, contentUrl and name are needed; a media template may use any column
(`videos/{page_dir}/{videoid}.mp4`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.readers.rows import DEFAULTS, Media, ReadOptions, Row, csv_records, place, texts

COLUMNS = ("videoid", "contentUrl", "name")


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order. Raises AnyloomError naming file, line and column."""
    for line, record in csv_records(list_path, COLUMNS):
        uri = place(options.media_template, record, record["contentUrl"].strip(), f"{list_path}, line {line}")
        yield Row(media=(Media(role="input", modality="video", uri=uri),), texts=texts(record["name"]))
