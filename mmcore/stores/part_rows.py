"""PartRows: rows of many .npy files, read by position.

Owns the open files of one object, or their values in memory. Input: paths of files [T, E] of one dtype and how many rows of each are used; output:
zero-padded copies of runs of rows. Raises AnyloomError naming the file when one is cut short, missing or laid out in another way.

A call to the kernel costs as much as copying about 10 KB. So rows that fit into KEPT_BYTES all together are kept in memory: a file is read whole when
a row of it is first asked for. The rows of larger sets are read by `preadv` straight into the answer, out of the page cache that all processes of a
machine share; a file that is cut short while it is open gives a short read and an error. An object never holds more than KEPT_BYTES, or one file in
column order, however large the store is.

Shape letters: P files, B items (runs of rows), N rows of the longest item, T rows of a file, E width.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.step import AnyloomError

KEPT_BYTES = 256 * 2**20
"""Most bytes of values that one object keeps in memory: a process reads a few sets, and a machine has some gigabytes per worker."""
RUN_ITEMS = 64
"""Most neighbouring items that one system call reads: the kernel takes 1024 buffers and 2 GiB at a time."""


class PartRows:
    """Rows of files [T, E] in C order; files in column order are read too, each as a whole."""

    def __init__(self, paths: Sequence[Path], rows_P: np.ndarray, width: int, dtype: str):
        """rows_P: rows of each file that may be asked for, from its first. dtype: NumPy type of the values on disk."""
        self._paths, self._rows_P, self._width, self._dtype = paths, rows_P.tolist(), width, np.dtype(dtype)
        self._row_bytes = width * self._dtype.itemsize
        total = int(rows_P.sum())
        self._kept = np.empty((total, width), self._dtype) if total * self._row_bytes <= KEPT_BYTES else None
        self._first_P = np.cumsum(rows_P) - rows_P
        self._missing = set(range(len(paths)))
        self._layouts: dict[int, tuple[int, int, bool]] = {}
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._in_columns: tuple[int, np.ndarray] | None = None
        self._reading = threading.Lock()

    def take(self, part_B: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        """A copy [B, N, E] of rows start to start + length of the files part_B, zero behind the shorter ones.

        The caller knows that the rows are among those that may be asked for.
        """
        longest = int(length_B.max(initial=0))
        ragged = bool((length_B != longest).any())
        with self._reading:  # a file that one thread reads is not closed by another
            if self._kept is not None:
                return self._take_kept(self._kept, part_B, start_B, length_B, longest, ragged)
            taken_BNE = (np.zeros if ragged else np.empty)((len(part_B), longest, self._width), self._dtype)
            if taken_BNE.size:
                self._read_items(taken_BNE, part_B, start_B, length_B)
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

    def _take_kept(self, kept: np.ndarray, part_B: np.ndarray, start_B: np.ndarray, length_B: np.ndarray, longest: int, ragged: bool) -> np.ndarray:
        if self._missing:
            for part in self._missing.intersection(part_B.tolist()):
                self._read_whole(part, kept[self._first_P[part] :][: self._rows_P[part]])
                self._missing.remove(part)
        first_B = self._first_P[part_B] + start_B
        if longest and not ragged and not (first_B % longest).any():
            items = kept[: len(kept) // longest * longest].reshape(-1, longest, self._width)
            return items.take(first_B // longest, axis=0)  # faster than indexing
        taken_BNE = np.zeros((len(part_B), longest, self._width), self._dtype)
        for target, first, length in zip(taken_BNE, first_B.tolist(), length_B.tolist(), strict=True):
            target[:length] = kept[first : first + length]
        return taken_BNE

    def _read_items(self, taken_BNE: np.ndarray, part_B: np.ndarray, start_B: np.ndarray, length_B: np.ndarray) -> None:
        """In the order of the files; items that follow each other in a file are read by one call."""
        order_B = np.lexsort((start_B, part_B))
        parts, starts, lengths = part_B[order_B], start_B[order_B], length_B[order_B]
        apart = (parts[1:] != parts[:-1]) | (starts[1:] != starts[:-1] + lengths[:-1])
        ends = [*(np.flatnonzero(apart) + 1).tolist(), len(order_B)]
        places = (order_B * (taken_BNE.shape[1] * self._row_bytes)).tolist()
        sizes, offsets, where = (lengths * self._row_bytes).tolist(), (starts * self._row_bytes).tolist(), parts.tolist()
        memory, begin = taken_BNE.reshape(-1).view(np.uint8).data, 0
        for end in ends:
            for i in range(begin, end, RUN_ITEMS):
                stop = min(end, i + RUN_ITEMS)
                buffers = [memory[place : place + size] for place, size in zip(places[i:stop], sizes[i:stop], strict=True)]
                self._read(where[i], offsets[i], buffers)
            begin = end

    def _read(self, part: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the bytes that begin `offset` bytes behind a file's first row."""
        descriptor = self._open(part)
        header, rows, in_columns = self._layouts[part]
        if in_columns:
            values = self._column_order(part, descriptor, header, rows).reshape(-1).view(np.uint8).data
            for buffer in buffers:
                buffer[:] = values[offset : offset + len(buffer)]
                offset += len(buffer)
        elif os.preadv(descriptor, buffers, header + offset) != sum(map(len, buffers)):
            raise self._cut_short(part)

    def _read_whole(self, part: int, values_TE: np.ndarray) -> None:
        self._read(part, 0, [values_TE.reshape(-1).view(np.uint8).data])

    def _column_order(self, part: int, descriptor: int, header: int, rows: int) -> np.ndarray:
        """[T, E] in C order of a file in column order; the latest one is kept."""
        if self._in_columns is None or self._in_columns[0] != part:
            values_ET = np.empty((self._width, rows), self._dtype)
            if os.preadv(descriptor, [values_ET.reshape(-1).view(np.uint8).data], header) != values_ET.nbytes:
                raise self._cut_short(part)
            self._in_columns = part, np.ascontiguousarray(values_ET.T)
        return self._in_columns[1]

    def _open(self, part: int) -> int:
        """A descriptor of the file, checked against its header; the file that was not used for longest makes room for it."""
        descriptor = self._descriptors.get(part)
        if descriptor is not None:
            self._descriptors.move_to_end(part)
            return descriptor
        while len(self._descriptors) >= _most_open():
            os.close(self._descriptors.popitem(last=False)[1])
        path = self._paths[part]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise AnyloomError(f"{path} cannot be opened ({error.strerror}): run `anyloom embed verify`") from error
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
            raise AnyloomError(f"{path} is no .npy file ({error}): run `anyloom embed verify`") from error
        if not shape or dtype != self._dtype or int(np.prod(shape[1:])) != self._width:
            raise AnyloomError(f"{path} holds {dtype} of the shape {shape}, not {self._dtype} in rows of {self._width}: run `anyloom embed verify`")
        if shape[0] < self._rows_P[part]:
            raise self._cut_short(part)
        return header, shape[0], in_columns and len(shape) > 1

    def _cut_short(self, part: int) -> AnyloomError:
        return AnyloomError(f"{self._paths[part]} is shorter than its record says: run `anyloom embed verify`")


def _most_open() -> int:
    """Files that one object holds open: an eighth of what the process may, since a run reads several sets of features."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(1, min(4096, allowed // 8))
