"""Many .npy files read as one array: each is mapped where its rows fall into line with those of the others.

Owns one stretch of reserved address space per object, and the maps inside it. Input: files [T, E] of one dtype, whose rows come in items of one
length; output: copies of items of any of them by one NumPy indexing call, without a Python step per item. Raises for files that differ from the first one in
header, dtype or width.

A map begins at a page, and the values of a file begin behind its header. So the files are placed at multiples of both a page and an item, which
puts every item of every file a whole number of items behind the first. Linux and macOS; `AVAILABLE` says whether this machine can.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

AVAILABLE = sys.platform in ("linux", "darwin") and sys.maxsize > 2**32
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40
_FAILED = ctypes.c_void_p(-1).value


class NotInLine(ValueError):
    """A file's values do not lie as those of the others do; it can only be read on its own."""


class MappedRows:
    """Files of [T, E], read in items of `length` rows; a file is mapped when an item of it is first asked for."""

    def __init__(self, paths: Sequence[Path], length: int):
        """paths: at least one .npy file, C order; length: at least 1.

        Raises NotInLine when the first file is no such array, ValueError when it is cut short, OSError when a file is missing or there is no
        address space left.
        """
        first, self._header = _open(paths[0])
        self._paths, self._width, self.dtype = paths, first.shape[1], first.dtype
        item = length * self._width * first.dtype.itemsize
        step = math.lcm(mmap.PAGESIZE, item)
        self._pitch = -(-max(path.stat().st_size for path in paths) // step) * step
        self._libc = _libc()
        size = self._pitch * len(paths)
        self._start = _map(self._libc, None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANON | _MAP_NORESERVE, -1)
        self._unmap = weakref.finalize(self, self._libc.munmap, self._start, size)
        whole = (ctypes.c_uint8 * (size - self._header)).from_address(self._start + self._header)
        count = len(whole) // item
        self._items = np.frombuffer(memoryview(whole), np.uint8, count * item).view(self.dtype).reshape(count, length, self._width)
        self._items_per_file = self._pitch // item
        self._mapped, self._whole = np.zeros(len(paths), bool), False

    def places(self, files: np.ndarray, items: np.ndarray) -> np.ndarray:
        """int64: where the items[i]-th item of file files[i] stands in the line, for `take`. The caller knows that the items exist."""
        return files.astype(np.int64) * self._items_per_file + items

    def take(self, places_B: np.ndarray) -> np.ndarray:
        """A copy [B, length, E] of the items at these places.

        Raises NotInLine when a file is not like the first one, ValueError when it is cut short, OSError when it cannot be mapped.
        """
        if not self._whole:
            for file in set((places_B // self._items_per_file).tolist()):
                self._map_file(file)
            self._whole = bool(self._mapped.all())
        return self._items.take(places_B, axis=0)  # faster than indexing

    def _map_file(self, file: int) -> None:
        if self._mapped[file]:
            return
        path = self._paths[file]
        array, header = _open(path)
        size = path.stat().st_size
        if (array.shape[1:], array.dtype, header) != ((self._width,), self.dtype, self._header) or size > self._pitch:
            raise NotInLine(f"{path} is not laid out like {self._paths[0]}")
        if size > header:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _map(self._libc, self._start + file * self._pitch, size, mmap.PROT_READ, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor)
            finally:
                os.close(descriptor)
        self._mapped[file] = True


def _open(path: Path) -> tuple[np.ndarray, int]:
    """(the array, bytes before its values). Raises ValueError for a file that is cut short, NotInLine for one that is not [T, E] in C order."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(array, np.memmap) or array.ndim != 2 or not array.shape[1] or not array.flags.c_contiguous:
        raise NotInLine(f"{path} does not hold rows [T, E] in C order")
    return array, int(array.offset)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _map(libc: ctypes.CDLL, address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    """mmap(2). Raises OSError."""
    found = libc.mmap(address, size, protection, flags, descriptor, 0)
    if found is None or found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"{size} bytes could not be mapped: {os.strerror(code)}")
    return int(found)
