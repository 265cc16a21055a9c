"""Storage: how bytes are published so that a kill, a crash or a second process can never leave half a thing behind.

Owns atomic files, atomic directories, digests and store entries on the local disk, and `Remote`, the same contract on
any fsspec file system. Everything is written temp -> fsync -> rename -> fsync of the parent; the record goes last.

Object stores have no rename, no lock and no mmap: `Remote` puts every object once and the record last, so double work
must give equal bytes, and readers go through a local cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
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


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: temp beside it, fsync, rename, fsync of the directory.

    Raises AnyloomError when the disk is full.
    """
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


def list_files(directory: Path) -> list[str]:
    """Relative POSIX paths of all files below `directory`, sorted. Raises AnyloomError on a symbolic link to a directory or nothing."""
    found = []
    for folder, _, names in os.walk(directory, followlinks=False):
        for name in names:
            path = Path(folder, name)
            if not path.is_file():
                raise AnyloomError(f"{path} is not a regular file: an artifact holds plain files only")
            found.append(path.relative_to(directory).as_posix())
    return sorted(found)


def digest_tree(directory: Path, skip: Iterable[str] = NOT_DIGESTED) -> str:
    """Hash of every file's relative path and bytes below `directory`; top-level names in `skip` are left out."""
    skipped = set(skip)
    total = hashlib.sha256()
    for relative in list_files(directory):
        if relative.split("/", 1)[0] not in skipped:
            total.update(f"{relative}\0{sha256_file(directory / relative)}\n".encode())
    return total.hexdigest()


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum((directory / relative).stat().st_size for relative in list_files(directory))


def new_staging(near: Path) -> Path:
    """A fresh directory on the same file system as `near`, to be published or thrown away."""
    staging = near.parent / f".staging-{near.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
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


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises AnyloomError naming the file when it is damaged, FileNotFoundError when it is absent."""
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnyloomError(f"{path} is damaged ({error}): remove its directory and run again") from error


def commit_entry(final: Path, staging: Path, record: dict[str, Any]) -> str:
    """Publish a store entry: `record` plus the digest of its files, then the directory, atomically. Returns the digest.

    An entry that is already committed is kept, and must hold the same bytes (AnyloomError otherwise): entries are immutable.
    """
    digest = digest_tree(staging)
    write_atomic(staging / RECORD, json.dumps({**record, "digest": digest}, sort_keys=True, indent=1))
    existing = read_entry(final)
    if existing is None and final.exists():
        shutil.rmtree(final)  # a directory without a record is nobody's
    publish_dir(staging, final)
    existing = read_entry(final)
    if existing is None or existing["digest"] != digest:
        raise AnyloomError(
            f"{final} already holds other bytes than this run made: the work is not reproducible here; remove that directory to use the new bytes"
        )
    return digest


def read_entry(path: Path) -> dict[str, Any] | None:
    """The record of a committed store entry, or None when it has none (then it does not exist for a reader)."""
    try:
        record = read_json(path / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("digest"), str):
        raise AnyloomError(f"{path / RECORD} has no digest: remove {path} and run again")
    return record


class Remote:
    """Published directories on any fsspec file system (s3://, gs://, memory:// …): objects once, record last, local cache to read.

    url: where the directories live; cache: local directory that holds downloaded copies.
    """

    def __init__(self, url: str, cache: Path, **options: Any):
        import fsspec

        self.fs, self.base = fsspec.core.url_to_fs(url, **options)
        self.cache = cache

    def exists(self, relative: str, record: str) -> bool:
        """True when the directory's record object is there."""
        return bool(self.fs.exists(f"{self.base}/{relative}/{record}"))

    def push(self, local: Path, relative: str, record: str) -> None:
        """Upload a published directory; the record object last. An object that is already there is written again with equal bytes."""
        names = [name for name in list_files(local) if name != record]
        for name in [*names, record]:
            target = f"{self.base}/{relative}/{name}"
            self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self.fs.put_file(str(local / name), target)

    def pull(self, relative: str, record: str) -> Path:
        """Local copy of a remote directory (downloaded once). Raises AnyloomError when its record is absent or names escape."""
        local = self.cache / relative
        if (local / record).exists():
            return local
        if not self.exists(relative, record):
            raise AnyloomError(f"{self.base}/{relative} has no {record}: it was never completed there")
        staging = new_staging(local)
        root = f"{self.base}/{relative}"
        stripped = self.fs._strip_protocol(root).rstrip("/")
        for remote_path in sorted(self.fs.find(root)):
            name = self.fs._strip_protocol(remote_path)[len(stripped) + 1 :]
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise AnyloomError(f"{remote_path} would be written outside its directory: refuse")
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(remote_path, str(staging / name))
        publish_dir(staging, local)
        return local


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
