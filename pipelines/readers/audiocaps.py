"""AudioCaps lists: comma-separated with header audiocap_id,youtube_id,start_time,caption.

Input: a .csv and a media template, because the list names videos, not files; output: one audio Row per record.
Files are usually cut to the span already (`{youtube_id}_{start_time}.wav`); for whole soundtracks ReadOptions.span_s takes that many seconds from start_time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infra.step import AnyloomError
from pipelines.readers.rows import DEFAULTS, Media, ReadOptions, Row, csv_records, number, place, texts

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order. Raises AnyloomError naming file, line and column, or the absent template."""
    if not options.media_template:
        raise AnyloomError(f"{list_path}: AudioCaps names YouTube ids, not files; set media_template, e.g. media/audio/{{youtube_id}}.wav")
    for line, record in csv_records(list_path, COLUMNS):
        where = f"{list_path}, line {line}"
        start_s = number(record["start_time"], where, "start_time")
        uri = place(options.media_template, record, "", where)
        span = (start_s, start_s + options.span_s) if options.span_s else (None, None)
        yield Row(media=(Media(role="input", modality="audio", uri=uri, start_s=span[0], end_s=span[1]),), texts=texts(record["caption"]))
