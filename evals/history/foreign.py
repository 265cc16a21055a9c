"""Foreign files: JSON that somebody else's program wrote, read without trusting it.

Owns the reading of regular files of a bounded size, and the types of single fields. Input: paths, parsed records. Output: values of the type that was asked
for. Raises AnyloomError, one line that names the file, the line and the field, for everything else: pipes, devices, folders and loops of links in the place
of files, what is no UTF-8 or no JSON, nesting too deep to parse, and fields of another type.

Numbers: true and false are 1 and 0; NaN and infinities are no number (None); a whole number that no float64 reaches is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.step import AnyloomError

MAX_JSON, MAX_LINE, MAX_LINES = 1 << 28, 1 << 26, 1 << 32
"""Bytes of a JSON file, of a line, and of a file of lines: 256 MB, 64 MB and 4 GB."""
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISSOCK, "a socket"))
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands: a file, and a line or a field of it."""

    path: Path
    where: str = ""

    def wrong(self, what: str) -> AnyloomError:
        """The error of this place."""
        return AnyloomError(f"{self.path}{f', {printable(self.where)}' if self.where else ''}: {printable(what)}")

    def at(self, field: str) -> Place:
        """A field of this place."""
        return Place(self.path, f"{self.where}, {field}" if self.where else field)


@contextmanager
def regular(path: Path, most: int) -> Iterator[io.BufferedReader]:
    """An open regular file of at most `most` bytes; a pipe is not waited for. Raises AnyloomError for anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise AnyloomError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): give a folder of plain files") from error
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            what = next((name for test, name in _KINDS if test(state.st_mode)), "no plain file")
            raise AnyloomError(f"{path} is {what}, not a file: give a folder of plain files")
        if state.st_size > most:
            raise AnyloomError(f"{path} is {state.st_size / 1e9:.1f} GB large, and such a file has at most {most / 1e9:.1f}: it is none of lmms-eval's")
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise AnyloomError(f"{path} cannot be read ({error.strerror or error}): copy the folder again") from error
    finally:
        os.close(handle)


def read_record(path: Path) -> tuple[dict[str, Any], str]:
    """(the JSON object in a file, sha256 of the file)."""
    with regular(path, MAX_JSON) as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise AnyloomError(f"{path} grows while it is read: copy the folder first")
    found = _parsed(data, Place(path), "")
    if not isinstance(found, dict):
        raise AnyloomError(f"{path} has no results: it is {kind_of(found)}, not an object")
    return found, hashlib.sha256(data).hexdigest()


def read_lines(path: Path, digest: Any) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, JSON object) of every line that is not blank. digest: a hashlib object that is given all bytes."""
    with regular(path, MAX_LINES) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            digest.update(line)
            place = Place(path, f"line {number}")
            if len(line) > MAX_LINE:
                raise AnyloomError(f"{path}, line {number} is longer than {MAX_LINE >> 20} MB: it is no samples file of lmms-eval")
            if line.strip():
                row = _parsed(line, place, f"line {number}")
                if not isinstance(row, dict):
                    raise AnyloomError(f"{path}, line {number} is no object: it is not a samples file of lmms-eval")
                yield place, row


def _parsed(data: bytes, place: Place, where: str) -> Any:
    at = f"{place.path}, {where}" if where else str(place.path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise AnyloomError(f"{at} is damaged (byte {error.start} is no UTF-8): copy the folder again") from error
    except json.JSONDecodeError as error:
        raise AnyloomError(f"{at} is damaged ({error.msg}): copy the folder again") from error
    except RecursionError as error:
        raise AnyloomError(f"{at} is nested too deeply: it is none of lmms-eval's") from error
    except ValueError as error:  # a whole number of more digits than Python reads
        raise AnyloomError(f"{at} holds a number that is too long: it is none of lmms-eval's") from error


def printable(text: str) -> str:
    """A text with everything that is no visible character escaped, so that it stays on one line."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words, with its beginning where it is a plain one."""
    if value is None:
        return "null"
    for kinds, name in (((dict,), "an object"), ((list,), "a list")):
        if isinstance(value, kinds):
            return name
    said = ascii(value) if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else _digits(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"


def _digits(value: Any) -> str:
    """A whole number or a truth; a number too long to print by its length."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value.bit_length() < 256 else f"a whole number of {value.bit_length()} bits"


def mapping(record: Mapping[str, Any], key: str, place: Place) -> dict[str, Any]:
    """The object in a field; empty when there is none."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise place.wrong(f"{key} is {kind_of(value)}, not an object")
    return value


def text(record: Mapping[str, Any], key: str, place: Place) -> str | None:
    """The text in a field; None when there is none."""
    value = record.get(key)
    return None if value is None else as_text(value, place.at(key))


def as_text(value: Any, place: Place) -> str:
    """A text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise place.wrong(f"this is {kind_of(value)}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise place.wrong(f"character {error.start} is half of a surrogate pair, which no UTF-8 holds") from error
    return value


def whole(record: Mapping[str, Any], key: str, place: Place) -> int | None:
    """The count in a field, from 0 to 2^63 - 1; None when there is none."""
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise place.wrong(f"{key} is {kind_of(value)}, not a count")
    return value


def number(value: Any, place: Place) -> float | None:
    """A float64; None for null, NaN and infinities. true and false are 1 and 0."""
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise place.wrong(f"this is {kind_of(value)}, not a number")
    try:
        found = float(value)
    except OverflowError as error:
        raise place.wrong(f"this is {kind_of(value)}, more than a float64 holds") from error
    return found if math.isfinite(found) else None


def as_json(value: Any, place: Place) -> str:
    """Any JSON value as text: a text as it is."""
    return as_text(value if isinstance(value, str) else json.dumps(value), place)
