"""Rows: what every reader of a source list yields, and the checks they share.

Owns Row, Media, reader options and decoding of list files. Input: files people really have (BOM, CRLF, quotes); output: text and records.
A malformed list is an AnyloomError that names file, line or record, and column.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.step import AnyloomError


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """One file of a sample."""

    role: str
    """`input` (the model sees it) or `output` (the model is asked for it)."""
    modality: str
    uri: str
    start_s: float | None = None
    end_s: float | None = None
    """Span in seconds; None: the whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record of a list. texts and conversations both empty, or refused: a record that the shards step writes to its ledger."""

    media: tuple[Media, ...] = ()
    texts: tuple[str, ...] = ()
    conversations: tuple[tuple[str, str], ...] = ()
    """(from, value) with from = human or gpt; the first may be of system."""
    refused: tuple[str, str] | None = None
    """(reason, detail) of a record that does not fit, whose other fields are empty; None for one that does."""

    @property
    def modality(self) -> str:
        """Modality of the first input medium, else text."""
        return next((m.modality for m in self.media if m.role == "input"), "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a list does not say about itself."""

    media_template: str = ""
    """Where a record's file lies, with the record's columns in braces, e.g. `media/audio/{youtube_id}.ogg`; "": the list's own uri column.
    For instruction lists `{uri}` is the record's own value, e.g. `coco/{uri}`."""
    span_s: float = 0.0
    """AudioCaps: seconds taken from start_time of the named file; 0: the files are already cut."""


DEFAULTS = ReadOptions()


def read_text(path: Path) -> str:
    """A list file as text, without byte-order mark. Line ends stay as they are. Raises AnyloomError when it is absent or not UTF-8."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise AnyloomError(f"{path}: no such list file; check the dataset's path") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AnyloomError(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the list, e.g. iconv -f latin1 -t utf-8") from None


def csv_records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, record) of a comma-separated list with a header that has at least `columns`. Quoted line ends belong to their value."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    line = 1
    try:
        header = [name.strip() for name in next(rows, [])]
        for column in columns:
            if column not in header:
                raise AnyloomError(f"{path}, line 1: column '{column}' is missing (found {', '.join(header) or 'nothing'}); add it to the header")
        line = rows.line_num + 1
        for values in rows:
            if values:
                if len(values) != len(header):
                    raise AnyloomError(
                        f"{path}, line {line}: {len(values)} values for the {len(header)} columns {', '.join(header)}; quote values that hold commas"
                    )
                yield line, dict(zip(header, values, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise AnyloomError(f"{path}, line {line}: {error}; check the quotes of this line") from None


def place(template: str, record: Mapping[str, str], default: str, where: str) -> str:
    """The media uri of a record: the template filled with the record's columns, or `default` without a template."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in record:
            raise AnyloomError(f"{where}: the media template '{template}' names column '{name}', the list has {', '.join(record)}; change media_template")
        return record[name].strip()

    return re.sub(r"\{(\w+)\}", fill, template) if template else default


def texts(caption: str) -> tuple[str, ...]:
    """A caption as the texts of a row; blank: none."""
    return (caption.strip(),) if caption.strip() else ()


def number(text: str, where: str, column: str) -> float:
    """A finite number, not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise AnyloomError(f"{where}: column '{column}' is '{text}', expected seconds >= 0; correct the value")
    return value
