"""AudioCaps lists: comma-separated with header audiocap_id,youtube_id,start_time,caption.

Input: a .csv and a media template, because the list names videos, not files; output: one audio Row per record, refused where a line is none.
Files are usually cut to the span already (`{youtube_id}_{start_time}.wav`); for whole soundtracks ReadOptions.span_s takes that many seconds from start_time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infra.step import AnyloomError
from pipelines.readers.rows import DEFAULTS, BadLine, Media, ReadOptions, Row, csv_records, number, place, refused, some_readable, texts

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order. Raises AnyloomError for a wrong header, an absent template and a file that is no such list."""
    if not options.media_template:
        how = options.how_to_set("media_template", "{youtube_id}.wav")
        raise AnyloomError(f"{list_path}: AudioCaps names YouTube ids, not files; say how the files are called, e.g. {how}")
    yield from some_readable(list_path, _rows(list_path, options))


def _rows(list_path: Path, options: ReadOptions) -> Iterator[Row]:
    for line, record in csv_records(list_path, COLUMNS):
        if isinstance(record, str):
            yield refused(list_path, line, record)
            continue
        try:
            start_s = number(record["start_time"], "start_time")
        except BadLine as bad:
            yield refused(list_path, line, str(bad))
            continue
        uri = place(options, record, "", f"{list_path}, line {line}")
        span = (start_s, start_s + options.span_s) if options.span_s else (None, None)
        yield Row(media=(Media(role="input", modality="audio", uri=uri, start_s=span[0], end_s=span[1]),), texts=texts(record["caption"]))
