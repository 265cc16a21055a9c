"""Seals: a sha256 that every Parquet file of the history carries of itself.

Owns the seal's place in the file and its check. Input: tables, files. Output: bytes, and whether they are what was written. Raises OSError for a file that
cannot be read.

The seal is a value in the file's footer: the sha256 of all its bytes, taken while 64 zeros stand in its place.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SEAL = b"anyloom_sha256"
_BLANK = b"0" * 64
_BEFORE_VALUE = b"\x18\x40"  # Thrift's compact form: field 2 is a string, of 64 bytes
_BLOCK = 1 << 22


def sealed(table: pa.Table) -> bytes:
    """The bytes of a Parquet file with its seal."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({SEAL.decode(): _BLANK.decode()})
    data = bytearray(buffer.getvalue())
    place = _place_of_seal(data, len(data))
    assert place is not None and data[place : place + len(_BLANK)] == _BLANK
    data[place : place + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def seal_holds(path: Path) -> bool | None:
    """Whether a file has the bytes that were sealed; None when it has no seal."""
    with open(path, "rb") as handle:
        size = handle.seek(0, io.SEEK_END)
        place = _place_of_seal(_tail(handle, size), size)
        if place is None:
            return None
        handle.seek(place)
        stated = handle.read(len(_BLANK))
        digest = hashlib.sha256()
        handle.seek(0)
        for part in _parts(handle, place):
            digest.update(part)
        digest.update(_BLANK)
        handle.seek(place + len(_BLANK))
        for part in _parts(handle, size):
            digest.update(part)
    return digest.hexdigest().encode() == stated


def _tail(handle: io.BufferedReader, size: int) -> bytes:
    """The footer and what follows it; empty when its length cannot be right."""
    handle.seek(max(0, size - 8))
    length = int.from_bytes(handle.read(8)[:4], "little")
    if length + 12 > size:
        return b""
    handle.seek(size - 8 - length)
    return handle.read()


def _place_of_seal(tail: bytes | bytearray, size: int) -> int | None:
    """Where in a file of `size` bytes its seal's value begins, by its last bytes; None without one."""
    key = tail.rfind(SEAL + _BEFORE_VALUE)
    return None if key < 0 else size - len(tail) + key + len(SEAL) + len(_BEFORE_VALUE)


def _parts(handle: io.BufferedReader, end: int) -> Iterator[bytes]:
    """What stands from here to `end`, in blocks."""
    while (left := end - handle.tell()) > 0:
        part = handle.read(min(_BLOCK, left))
        if not part:
            return
        yield part
