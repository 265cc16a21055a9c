"""Fetch: a media uri of a manifest -> its bytes, from below a base directory or over http(s).

Owns what may be reached of the disk (no path outside the base and the roots that the user names), and how often a download is tried;
pipelines.shards.download makes one try. Input: uri, base, FetchPolicy; output: bytes; every failure is a FetchError with a reason of the closed set.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from infra.secrets import shown_address
from pipelines.shards.download import FetchPolicy, download
from pipelines.shards.errors import FetchError

TRANSIENT = ("timeout", "dns", "http_5xx", "truncated")
"""Reasons of a failed download that may pass; so may `http_4xx` of one of PASSING."""
PASSING = ("HTTP 408", "HTTP 425", "HTTP 429")
LONGEST_WAIT_S = 20.0
"""Longest wait before another try, whatever the server asks for."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say nothing about the file."""


def fetch(uri: str, base: Path, policy: FetchPolicy = FetchPolicy()) -> bytes:
    """The bytes behind `uri`: a path below `base` or one of the policy's roots, or http(s). Raises FetchError."""
    return fetch_counted(uri, base, policy)[0]


def fetch_counted(uri: str, base: Path, policy: FetchPolicy = FetchPolicy()) -> tuple[bytes, int]:
    """(bytes, attempts). Raises FetchError, whose `attempts` says how often it was tried."""
    if not is_remote(uri):
        return read_local(uri, base, policy.max_bytes, policy.roots), 1
    for attempt in range(1, policy.attempts + 1):
        try:
            return download(uri, policy), attempt
        except FetchError as error:
            if attempt == policy.attempts or not may_pass(error.reason, error.detail):
                raise FetchError(error.reason, error.detail, attempt) from error
            time.sleep(min(LONGEST_WAIT_S, max(error.wait_s or 0.0, policy.backoff_s * 2 ** (attempt - 1))))
    raise FetchError("bad_uri", "the policy allows no attempt", 0)


def may_pass(reason: str, detail: str) -> bool:
    """True for the failure of a download that another try may not meet."""
    return reason in TRANSIENT or (reason == "http_4xx" and detail in PASSING)


def is_remote(uri: str) -> bool:
    """True for http(s) uris."""
    return uri.lower().startswith(("http://", "https://"))


def resolve_local(uri: str, base: Path, roots: Sequence[Path] = ()) -> Path:
    """The path of a relative uri: below `base`, or where nothing is there below the first of `roots` that has it; with roots an absolute one too.

    Raises FetchError: bad_uri when it leaves `base` and the roots, also through a symbolic link, missing_file when the system takes no such path.
    """
    is_absolute = uri.startswith("/")
    if not uri or "\0" in uri or "\\" in uri or _SCHEME.match(uri) or (is_absolute and not roots) or ".." in PurePosixPath(uri).parts:
        kinds = f"a relative path below the list root{', a path below one of media_roots' if roots else ''}"
        raise FetchError("bad_uri", f"'{shown_address(uri)}' is neither {kinds} nor http(s)")
    places = [Path(uri)] if is_absolute else [place / uri for place in (base, *roots)]
    try:
        path = next((place for place in places if len(places) > 1 and os.path.lexists(place)), places[0])
        real = path.resolve()
        inside = any(real.is_relative_to(place.resolve()) for place in (base, *roots))
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise _unreadable(uri, error, roots) from error
    except ValueError as error:
        raise FetchError("bad_uri", f"{uri!r} is no file name") from error
    if not inside:
        raise FetchError("bad_uri", f"'{shown_address(uri)}' leads outside {_where(roots)}")
    return path


def _where(roots: Sequence[Path]) -> str:
    return "the list root and media_roots" if roots else "the list root"


def read_local(uri: str, base: Path, max_bytes: int, roots: Sequence[Path] = ()) -> bytes:
    """Bytes of a regular file below `base` or one of `roots`. Raises FetchError: bad_uri, missing_file, empty_file, too_large."""
    path = resolve_local(uri, base, roots)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # O_NONBLOCK: a FIFO must not hang us
        try:
            data = _read_regular(handle, uri, max_bytes)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise _unreadable(uri, error, roots) from error
    if not data:
        raise FetchError("empty_file", "0 bytes")
    return data


def _read_regular(handle: int, uri: str, max_bytes: int) -> bytes:
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        raise FetchError("missing_file", f"'{shown_address(uri)}' is not a regular file")
    if info.st_size > max_bytes:
        raise FetchError("too_large", f"{info.st_size} bytes, the limit is {max_bytes}")
    with open(handle, "rb", closefd=False) as file:
        return file.read()


def _unreadable(uri: str, error: OSError | RuntimeError, roots: Sequence[Path]) -> FetchError:
    """missing_file, with what the system says."""
    uri = shown_address(uri)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return FetchError("missing_file", f"no file '{uri}' below {_where(roots)}")
    if isinstance(error, PermissionError):
        return FetchError("missing_file", f"no permission to read '{uri}'")
    if isinstance(error, OSError) and error.errno in (errno.ENXIO, errno.EOPNOTSUPP):
        return FetchError("missing_file", f"'{uri}' is not a regular file")
    return FetchError("missing_file", f"'{uri[:100]}' cannot be read: {error.strerror if isinstance(error, OSError) else 'a loop of symbolic links'}")
