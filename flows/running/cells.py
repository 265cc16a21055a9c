"""Cells: values of a query as text that other programs, terminals and people can take.

Owns strict JSON of every type that DuckDB hands out, texts that do nothing to a terminal, and texts that a spreadsheet does not run. Input: Python
values. Output: text.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of characters that are not shown: control characters, halves of surrogate pairs, separators of lines and paragraphs."""
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text after them."""
RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a text begins that a spreadsheet takes for a formula, or for the end of the cell before it."""


def visible(text: str, keep: str = "") -> str:
    """The text exactly as it is, with every character that a terminal would obey escaped: ESC as \\x1b, a line break as \\n. keep: characters left alone."""
    return "".join(c if c in keep or not _obeyed(c) else ascii(c)[1:-1] for c in text)


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) in UNSEEN or character in TURNING


def inert(text: str) -> str:
    """The text with an apostrophe before it where a spreadsheet would run it."""
    return f"'{text}" if text.startswith(RUN_BY_SPREADSHEETS) else text


def json_text(value: Any) -> str:
    """One value as strict JSON (RFC 8259) of ASCII characters, at any depth.

    NaN and infinities are null, whole numbers and decimals numbers with all their digits, dates and times ISO 8601 (an interval as P1DT7200S), bytes
    hexadecimal, lists and structs arrays and objects, maps objects whose keys are the keys' text; anything else is its text.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, Decimal) and not value.is_finite()):
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        keys = unique([key if isinstance(key, str) else plain(key) for key in value])
        return "{" + ", ".join(f"{json.dumps(key)}: {json_text(one)}" for key, one in zip(keys, value.values(), strict=True)) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(json_text, value))}]"
    return json.dumps(plain(value))


def json_document(value: Any) -> str:
    """A document as strict JSON, with a line per element of an outermost list or field of an outermost object."""
    if isinstance(value, Mapping) and value:
        lines = [f"{json.dumps(str(key))}: {json_text(one)}" for key, one in value.items()]
        return "{\n " + ",\n ".join(lines) + "\n}"
    if isinstance(value, (list, tuple)) and value:
        return "[\n " + ",\n ".join(map(json_text, value)) + "\n]"
    return json_text(value)


def json_row(columns: Sequence[str], row: Sequence[Any]) -> str:
    """A row as a JSON object. Of columns with one name the later ones are called name_1, name_2, ..."""
    return json_text(dict(zip(unique(columns), row, strict=True)))


def unique(names: Sequence[str]) -> list[str]:
    """Names of which no two are the same: a repeated one gets a number that is free."""
    found: list[str] = []
    for name in names:
        number, free = 0, name
        while free in found or (number and free in names):
            number += 1
            free = f"{name}_{number}"
        found.append(free)
    return found


def plain(value: Any) -> str:
    """A value that is no number as text: as in JSON, but lists, structs and maps as their JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, timedelta):
        size = abs(value)
        seconds = f"{size.seconds}.{size.microseconds:06d}".rstrip("0").rstrip(".") if size.microseconds else str(size.seconds)
        return f"{'-' if value < timedelta() else ''}P{size.days}DT{seconds}S"
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return json_text(value) if isinstance(value, (Mapping, list, tuple)) else str(value)
