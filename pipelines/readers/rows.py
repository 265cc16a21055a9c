"""Rows: what every reader of a source list yields, and the checks they share.

Owns Row, Media, reader options and decoding of list files. Input: files people really have (BOM, CRLF, quotes, lines that are broken); output: text and
records. A line that is no record is a refused Row that names file, line and reason; a list of which no line is a record, or whose header lacks a column, is
an AnyloomError.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.secrets import shown_template
from infra.step import AnyloomError
from mmcore.chat.records import says_nothing

BAD_RECORD = "bad_record"
"""Reason of a record or line whose fields are not what they should be."""
NOT_UTF8 = "not UTF-8; convert the list, e.g. iconv -f latin1 -t utf-8"
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
"""A NUL, or a byte that was not UTF-8 (as `read_text` decodes it)."""


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

    dataset: str = "DATASET"
    """Name of the list's dataset, for messages that say how an option is given."""
    media_template: str = field(default="", repr=False)
    """Where a record's file lies, with the record's columns in braces, e.g. `media/audio/{youtube_id}.ogg`; "": the list's own uri column.
    For instruction lists `{uri}` is the record's own value, e.g. `coco/{uri}`."""
    span_s: float = 0.0
    """AudioCaps: seconds taken from start_time of the named file; 0: the files are already cut."""

    def how_to_set(self, name: str, value: str) -> str:
        """An option as it is typed."""
        return f"--set 'datasets.{self.dataset}.{name}={value}'"


DEFAULTS = ReadOptions()


class BadLine(ValueError):
    """A line that is no record; the message says why."""


def refused(path: Path, line: int, problem: str) -> Row:
    """The Row of a line that is no record. line: from 1."""
    return Row(refused=(BAD_RECORD, f"{path.name}, line {line}: {problem}"))


def some_readable(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows. Raises AnyloomError with the first reason when there are some and every one is refused: the file is another kind of list."""
    first, readable = "", False
    for row in rows:
        readable = readable or row.refused is None
        first = first or ("" if row.refused is None else row.refused[1])
        yield row
    if first and not readable:
        raise AnyloomError(f"{path.parent / first}; no line of the file is a record of such a list")


def read_text(path: Path) -> str:
    """A list file as text, without byte-order mark. Line ends stay as they are; a byte that is not UTF-8 becomes half a character (U+DC80 to U+DCFF), which
    `check_characters` finds. Raises AnyloomError when the file is absent."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise AnyloomError(f"{path}: no such list file; check the dataset's path") from None
    return data.decode("utf-8-sig", "surrogateescape")


def check_characters(text: str) -> None:
    """Raises BadLine for a NUL and for bytes that were not UTF-8."""
    found = _UNREADABLE.search(text)
    if found is not None:
        raise BadLine("holds a NUL character; remove it" if found[0] == "\0" else NOT_UTF8)


class _Lines:
    """The lines of a text, of which those behind the first one of a record can be given back."""

    def __init__(self, text: str):
        self._lines, self._again = iter(io.StringIO(text, newline="")), deque[str]()
        self.taken: list[str] = []
        """Lines of the record that is being read."""
        self.number = 0
        """Of the last line taken, from 1."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def give_back(self) -> None:
        """All but the first line of the record are read again."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]


def csv_records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line, record) of a comma-separated list with a header that has at least `columns`; of a line that is no record (line, why). Quoted line ends belong to
    their value; behind a quote that does not end, or ends in the wrong place, the next line is a record again. Raises AnyloomError for a wrong header."""
    lines = _Lines(read_text(path))
    rows = csv.reader(lines, strict=True)
    header = _header(path, rows, columns)
    while True:
        line = lines.number + 1
        lines.taken.clear()
        try:
            values = next(rows)
            check_characters("".join(lines.taken))
            if values and len(values) != len(header):
                raise BadLine(f"{len(values)} values for the {len(header)} columns {', '.join(header)}; quote values that hold commas")
        except StopIteration:
            return
        except (csv.Error, BadLine) as error:
            lines.give_back()
            yield line, str(error) if isinstance(error, BadLine) else f"{error}; check the quotes of this line"
        else:
            if values:
                yield line, dict(zip(header, values, strict=True))


def _header(path: Path, rows: Iterator[list[str]], columns: tuple[str, ...]) -> list[str]:
    try:
        header = [name.strip() for name in next(rows, [])]
        check_characters("".join(header))
    except (csv.Error, BadLine) as error:
        raise AnyloomError(f"{path}, line 1: {error}; it must be the header, with {', '.join(columns)}") from None
    for column in columns:
        if column not in header:
            raise AnyloomError(f"{path}, line 1: column '{column}' is missing (found {', '.join(header)[:200] or 'nothing'}); add it to the header")
    return header


def place(options: ReadOptions, record: Mapping[str, str], default: str, where: str) -> str:
    """The media uri of a record: the template filled with the record's columns, or `default` without a template. Raises AnyloomError for a template that names
    a column which the list does not have."""
    template = options.media_template

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in record:
            how = options.how_to_set("media_template", "...")
            raise AnyloomError(
                f"{where}: the media template '{shown_template(template)}' names column '{name}', the list has {', '.join(record)}; change {how}"
            )
        return record[name].strip()

    return re.sub(r"\{(\w+)\}", fill, template) if template else default


def texts(caption: str) -> tuple[str, ...]:
    """A caption as the texts of a row; blank: none."""
    return () if says_nothing(caption) else (caption.strip(),)


def number(text: str, column: str) -> float:
    """A finite number, not negative. Raises BadLine."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadLine(f"column '{column}' is {text[:40]!r}, expected seconds >= 0; correct the value")
    return value
