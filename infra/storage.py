"""Storage: how bytes are published so that a kill, a crash or a second process can never leave half a thing behind.

Owns atomic files, atomic directories and digests on the local disk. Input: bytes and directories; output: the same, whole or not there at all. Everything
is written temp -> fsync -> rename -> fsync of the parent; the record goes last. Raises AnyloomError for a full disk, a damaged file and a directory that
went away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.step import AnyloomError

RECORD = "record.json"

NOT_DIGESTED = ("info", "artifact.json", RECORD)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into one clear line that names the place. Raises AnyloomError; other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = path if path.exists() else path.parent
        free = shutil.disk_usage(where).free if where.exists() else 0
        raise AnyloomError(
            f"no space left on the disk of {path} ({free / 1e6:.0f} MB free): free some space or choose another --root, "
            "then run the same command again; finished work is kept"
        ) from error


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes | str, make_parent: bool = True) -> None:
    """Write a whole file or nothing: temp beside it, fsync, rename, fsync of the directory.

    Raises AnyloomError when the disk is full; FileNotFoundError without a directory to write into, where it may not be made.
    """
    if make_parent:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with disk_errors(path):
            with open(temporary, "wb") as handle:
                handle.write(data.encode() if isinstance(data, str) else data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_hashed: dict[tuple[int, int], tuple[tuple[int, int, int], str]] = {}
"""What `sha256_known` has hashed: place on the disk -> (size and times of the file there, its sha256)."""
_SETTLED_NS = 50_000_000
"""Times of files are coarse: one that was written so lately may be written again without a trace."""


def sha256_known(path: Path) -> str:
    """Hex sha256 of a file's bytes, read once per process as long as the file's size and times stay."""
    found = path.stat()
    place, looks = (found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    known = _hashed.get(place)
    if known is not None and known[0] == looks:
        return known[1]
    settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
    digest = sha256_file(path)
    if settled:
        _hashed[place] = looks, digest
    return digest


def list_files(directory: Path) -> list[str]:
    """Relative POSIX paths of all files below `directory`, sorted.

    Raises AnyloomError when it is no directory, and for a symbolic link to a directory or to nothing.
    """
    if not directory.is_dir():
        raise AnyloomError(f"{directory} is missing: it went away while it was in use; run the same command again")
    found, folders = [], [""]
    while folders:
        below = folders.pop()
        with os.scandir(directory / below) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{below}{entry.name}/")
                elif entry.is_file():
                    found.append(f"{below}{entry.name}")
                else:
                    raise AnyloomError(f"{entry.path} is not a regular file: an artifact holds plain files only")
    return sorted(found)


def digest_files(directory: Path, skip: Iterable[str] = NOT_DIGESTED, sha256: Callable[[Path], str] = sha256_file) -> dict[str, str]:
    """Relative path -> sha256 of every file below `directory`; top-level names in `skip` are left out. Raises as `list_files` does."""
    skipped = set(skip)
    return {relative: sha256(directory / relative) for relative in list_files(directory) if relative.split("/", 1)[0] not in skipped}


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a directory from the sha256 of its files."""
    total = hashlib.sha256()
    for relative, sha256 in sorted(files.items()):
        total.update(f"{relative}\0{sha256}\n".encode())
    return total.hexdigest()


def digest_tree(directory: Path, skip: Iterable[str] = NOT_DIGESTED) -> str:
    """Hash of every file's relative path and bytes below `directory`; top-level names in `skip` are left out. Raises as `list_files` does."""
    return digest_of(digest_files(directory, skip))


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum((directory / relative).stat().st_size for relative in list_files(directory))


def new_staging(near: Path) -> Path:
    """A fresh directory on the same file system as `near`, to be published or thrown away. Its name says which process of which machine it belongs to."""
    staging = near.parent / f".staging-{near.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
    staging.mkdir(parents=True)
    return staging


def publish_dir(staging: Path, final: Path) -> None:
    """Rename a finished directory into place, durably. If `final` is already there the first one wins and `staging` goes.

    Raises AnyloomError when the disk is full.
    """
    with disk_errors(final):
        for folder, _, names in os.walk(staging):
            for name in names:
                _fsync_file(Path(folder, name))
            fsync_directory(Path(folder))
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(staging, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staging)
    fsync_directory(final.parent)


def write_part(path: Path, data: bytes) -> None:
    """Write a file that a later run goes on from: its sha256 stands beside it, and comes last."""
    write_atomic(path, data)
    write_atomic(path.with_name(f"{path.name}.sha256"), hashlib.sha256(data).hexdigest())


def part_is_there(path: Path) -> bool:
    """True when `write_part` has written a file and its bytes are still the same."""
    beside = path.with_name(f"{path.name}.sha256")
    return path.is_file() and beside.is_file() and beside.read_bytes() == sha256_file(path).encode()


def set_aside(path: Path) -> None:
    """Delete a directory or a file so that no reader sees half of it: rename first, then remove."""
    aside = path.with_name(f".removed-{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(aside)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises AnyloomError naming the file when it is damaged or cannot be read, FileNotFoundError when it is absent."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise AnyloomError(f"{path} is damaged ({reason}): remove its directory and run again") from error


def write_parquet(table: pa.Table, path: Path) -> None:
    """Same table, same bytes."""
    pq.write_table(table, path, compression="zstd", write_statistics=False)


def link(source: Path, target: Path) -> None:
    """Hard link where the file system allows it, else copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, one a line."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
