"""PartRows: rows of many .npy files, read by position.

Owns the open files of one object and what it keeps of them in memory. Input: paths of files [T, E] of one dtype and how many rows of each are used;
output: zero-padded copies of runs of rows. Raises AnyloomError naming the file when one is cut short, missing or laid out in another way.

Rows are read by `preadv` straight into the answer, and nothing is mapped: a file that is cut short while it is open gives a short read and an error. A
call to the kernel costs as much as copying CALL_BYTES, so a file whose rows were asked for as often as it would have cost to read it whole is read whole
and kept: few rows of a large store stay cheap, many are copied from memory. KEPT_BYTES of values are kept on every machine, more as long as half of the
machine's memory stays free (mmcore.stores.memory). What does not fit is read by `preadv` for ever, out of the page cache.

Shape letters: P files, B items (runs of rows), N rows of the longest item, T rows of a file, E width.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.step import AnyloomError
from mmcore.stores.memory import spare_memory

KEPT_BYTES = 256 * 2**20
"""Most bytes of values that one object keeps in memory however little of it is free: a process reads a few sets."""
CALL_BYTES = 10 * 2**10
"""How many bytes are copied in the time of a call to the kernel."""


class PartRows:
    """Rows of files [T, E] in C order; files in column order are read too, each as a whole."""

    def __init__(
        self,
        paths: Sequence[Path],
        rows_P: np.ndarray,
        width: int,
        dtype: str,
        item_rows: int | None = None,
        check: Callable[[Path], object] = lambda path: None,
    ):
        """rows_P: rows of each file that may be asked for, from its first. dtype: NumPy type of the values on disk. item_rows: length of every item.
        check: looks at a file before its first row is read, and raises when it is damaged."""
        self._check, self._paths, self._rows_P, self._width, self._dtype, self._item_rows = check, paths, rows_P.tolist(), width, np.dtype(dtype), item_rows
        self._row_bytes = width * self._dtype.itemsize
        self._kept = self._room(int(rows_P.sum()))
        self._kept_rows = 0
        self._not_kept = len(paths)
        self._first_P = np.full(len(paths), -1)  # where a file's rows begin in _kept; -1: they are not there
        self._due_P = rows_P * self._row_bytes  # bytes that may still be read row by row before a file is read whole
        self._layouts: dict[int, tuple[int, int, bool]] = {}
        self._descriptors: dict[int, int] = {}
        self._in_columns: tuple[int, np.ndarray] | None = None
        self._reading = threading.Lock()

    def take(self, part_B: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        """A copy [B, N, E] of rows start to start + length of the files part_B, zero behind the shorter ones.

        The caller knows that the rows are among those that may be asked for.
        """
        longest, ragged = self._item_rows or 0, False
        if self._item_rows is None or not len(length_B):
            longest = int(length_B.max(initial=0))
            ragged = bool((length_B != longest).any())
        if not longest:
            return np.empty((len(part_B), 0, self._width), self._dtype)
        with self._reading:  # a file that one thread reads is not closed by another
            if self._not_kept:
                self._keep_due(part_B, length_B)
            first_B = self._first_P.take(part_B)
            if not self._not_kept or first_B.min() >= 0:
                return self._take_kept(first_B + start_B, length_B, longest, ragged)
            here, away = np.flatnonzero(first_B >= 0), np.flatnonzero(first_B < 0)
            taken_BNE = (np.zeros if ragged else np.empty)((len(part_B), longest, self._width), self._dtype)
            if len(here):
                taken_BNE[here] = self._take_kept(first_B[here] + start_B[here], length_B[here], longest, ragged)
            memory = taken_BNE.reshape(-1).view(np.uint8).data
            begins, offsets, sizes = away * (longest * self._row_bytes), start_B[away] * self._row_bytes, length_B[away] * self._row_bytes
            for part, offset, begin, end in zip(part_B[away].tolist(), offsets.tolist(), begins.tolist(), (begins + sizes).tolist(), strict=True):
                self._read(part, offset, memory[begin:end])
            return taken_BNE

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_descriptors"):
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("PartRows hold open files: open the parts again in the other process")

    def _room(self, rows: int) -> np.ndarray:
        """Memory for the rows that may be kept; the machine gives it when it is written."""
        for size in (max(KEPT_BYTES, spare_memory()), KEPT_BYTES):
            try:
                return np.empty((min(rows, size // self._row_bytes), self._width), self._dtype)
            except MemoryError:  # the process may not address that much
                continue
        return np.empty((0, self._width), self._dtype)

    def _keep_due(self, part_B: np.ndarray, length_B: np.ndarray) -> None:
        """Count what reading these items costs; read the files whole whose rows have cost as much, if there is room."""
        np.subtract.at(self._due_P, part_B, CALL_BYTES + length_B * self._row_bytes)
        for part in set(part_B[(self._due_P[part_B] <= 0) & (self._first_P[part_B] < 0)].tolist()):
            rows, size = self._rows_P[part], self._rows_P[part] * self._row_bytes
            fits = self._kept_rows + rows <= len(self._kept)
            if fits and ((self._kept_rows + rows) * self._row_bytes <= KEPT_BYTES or size <= spare_memory()):
                values_TE = self._kept[self._kept_rows :][:rows]
                self._read(part, 0, values_TE.reshape(-1).view(np.uint8).data)
                os.close(self._descriptors.pop(part))
                self._first_P[part], self._kept_rows, self._not_kept = self._kept_rows, self._kept_rows + rows, self._not_kept - 1
            self._due_P[part] = size

    def _take_kept(self, first_B: np.ndarray, length_B: np.ndarray, longest: int, ragged: bool) -> np.ndarray:
        if longest == 1 and not ragged:
            return self._kept[:, None].take(first_B, axis=0)  # faster than indexing
        if not ragged and not (first_B % longest).any():
            items = self._kept[: len(self._kept) // longest * longest].reshape(-1, longest, self._width)
            return items.take(first_B // longest, axis=0)
        taken_BNE = np.zeros((len(first_B), longest, self._width), self._dtype)
        for target, first, length in zip(taken_BNE, first_B.tolist(), length_B.tolist(), strict=True):
            target[:length] = self._kept[first : first + length]
        return taken_BNE

    def _read(self, part: int, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes that begin `offset` bytes behind a file's first row."""
        descriptor = self._descriptors.get(part)
        if descriptor is None:
            descriptor = self._open(part)
        header, rows, in_columns = self._layouts[part]
        if in_columns:
            buffer[:] = self._column_order(part, descriptor, header, rows).reshape(-1).view(np.uint8).data[offset : offset + len(buffer)]
        else:
            self._read_bytes(part, descriptor, header + offset, buffer)

    def _read_bytes(self, part: int, descriptor: int, offset: int, buffer: memoryview) -> None:
        done = os.preadv(descriptor, [buffer], offset)
        while done < len(buffer):  # the kernel gives 2 GiB at most
            more = os.preadv(descriptor, [buffer[done:]], offset + done)
            if not more:
                raise self._cut_short(part)
            done += more

    def _column_order(self, part: int, descriptor: int, header: int, rows: int) -> np.ndarray:
        """[T, E] in C order of a file in column order; the latest one is kept."""
        if self._in_columns is None or self._in_columns[0] != part:
            values_ET = np.empty((self._width, rows), self._dtype)
            self._read_bytes(part, descriptor, header, values_ET.reshape(-1).view(np.uint8).data)
            self._in_columns = part, np.ascontiguousarray(values_ET.T)
        return self._in_columns[1]

    def _open(self, part: int) -> int:
        """A descriptor of the file, checked against its header; the file that was opened first makes room for it."""
        while len(self._descriptors) >= _most_open():
            os.close(self._descriptors.pop(next(iter(self._descriptors))))
        path = self._paths[part]
        if part not in self._layouts:
            self._check(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise AnyloomError(f"{path} cannot be opened ({error.strerror}): run `anyloom artifacts verify`") from error
        self._descriptors[part] = descriptor
        try:
            if part not in self._layouts:
                self._layouts[part] = self._layout(part, descriptor)
            header, rows, _ = self._layouts[part]
            if os.fstat(descriptor).st_size < header + rows * self._row_bytes:
                raise self._cut_short(part)
        except AnyloomError:
            os.close(self._descriptors.pop(part))
            raise
        return descriptor

    def _layout(self, part: int, descriptor: int) -> tuple[int, int, bool]:
        """(bytes before the values, T, whether they lie in column order)."""
        path = self._paths[part]
        try:
            with open(descriptor, "rb", closefd=False) as handle:
                version = np.lib.format.read_magic(handle)
                read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, in_columns, dtype = read_header(handle)
                header = handle.tell()
        except ValueError as error:
            raise AnyloomError(f"{path} is no .npy file ({error}): run `anyloom artifacts verify`") from error
        if not shape or dtype != self._dtype or int(np.prod(shape[1:])) != self._width:
            raise AnyloomError(f"{path} holds {dtype} of the shape {shape}, not {self._dtype} in rows of {self._width}: run `anyloom artifacts verify`")
        if shape[0] < self._rows_P[part]:
            raise self._cut_short(part)
        return header, shape[0], in_columns and len(shape) > 1

    def _cut_short(self, part: int) -> AnyloomError:
        return AnyloomError(f"{self._paths[part]} is shorter than its record says: run `anyloom artifacts verify`")


def _most_open() -> int:
    """Files that one object holds open: an eighth of what the process may, since a run reads several sets of features."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(1, min(4096, allowed // 8))
