"""Remote: finished artifacts and the store entries they pin, mirrored on any fsspec file system (s3://, gs://, file://, memory:// ...).

Owns the way there and back. Input: a root and an artifact's directory below it; output: the same directories on the other side. Object stores have no rename,
no lock and no mmap: every object is put once and the record last, so double work must give equal bytes, and what is read is a local copy.

Pushed are the entries first, then the artifact; what is there already is left. Pulled is into staging directories: every byte is compared with the digests
before anything is published, entries first, so that a lost connection leaves nothing that looks complete. Raises AnyloomError for what is damaged there or
would be written outside the root, RemoteError when the other side does not answer.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from infra.artifact import ARTIFACT_RECORD, ArtifactRecord, read_record, verify
from infra.entries import Pin, below, damage, inside, pins, read_entry
from infra.garbage import note_entries
from infra.secrets import without_login, without_secrets
from infra.step import AnyloomError
from infra.storage import RECORD, disk_errors, list_files, new_staging, publish_dir, set_aside

TRIES = 6
"""How often a request is made that the other side does not answer as it should."""
FIRST_WAIT_S = 0.1
"""Before the second try; each further one waits three times as long, up to half as long again."""

AT_ONCE = 8
"""Files on the way at the same time."""
OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"))
"""Protocols without directories: none is made there, and no bucket."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp")

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class RemoteError(AnyloomError, OSError):
    """The other side did not answer, or not in full, however often it was asked. Another run may succeed."""

    def __str__(self) -> str:
        return str(self.args[0])


class Remote:
    """Directories below a URL. options: as the file system's class takes them."""

    def __init__(self, url: str, **options: Any):
        import fsspec

        try:
            self.fs, self.base = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise AnyloomError(f"--remote {without_login(url)}: {without_secrets(str(error))} (for s3:// install the extra: anyloom[s3])") from None
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self.url, self._made = without_login(url).rstrip("/"), set[str]()
        self._local, self._flat = "file" in protocols, bool(protocols & OBJECT_STORES)

    def exists(self, relative: str) -> bool:
        """True when there is such an object."""

        def ask() -> bool:
            try:
                self.fs.info(f"{self.base}/{relative}")
            except FileNotFoundError:
                return False
            return True

        return self._asked(relative, ask)

    def read(self, relative: str) -> bytes | None:
        """The bytes of an object, None when there is none."""

        def get() -> bytes | None:
            try:
                size = self.fs.info(f"{self.base}/{relative}")["size"]
                data: bytes = self.fs.cat_file(f"{self.base}/{relative}")
            except FileNotFoundError:
                return None
            if len(data) != size:
                raise EOFError(f"{len(data)} of {size} bytes came")
            return data

        return self._asked(relative, get)

    def put(self, source: Path, relative: str) -> None:
        """Upload one file; it appears whole or not at all."""
        target = f"{self.base}/{relative}"
        parent = target.rsplit("/", 1)[0]

        def send() -> None:
            if not self._flat and parent not in self._made:
                self.fs.makedirs(parent, exist_ok=True)
                self._made.add(parent)
            if not self._local:
                self.fs.put_file(str(source), target)
                return
            temporary = f"{parent}/.{uuid.uuid4().hex[:8]}.tmp"
            self.fs.put_file(str(source), temporary)
            self.fs.mv(temporary, target)

        self._asked(relative, send)

    def remove(self, relative: str) -> None:
        """Delete one object."""
        self._asked(relative, lambda: self.fs.rm_file(f"{self.base}/{relative}"))

    def names(self, relative: str) -> dict[str, int]:
        """Name -> bytes of every object below a directory. Raises AnyloomError for a name that leads out of it."""
        root = f"{self.base}/{relative}"
        start = self.fs._strip_protocol(root).rstrip("/") + "/"

        def ask() -> dict[str, int]:
            self.fs.invalidate_cache()
            found = self.fs.find(root, detail=True)
            return {self.fs._strip_protocol(path): int(about["size"]) for path, about in found.items() if about.get("type") != "directory"}

        found = {}
        for path, size in self._asked(relative, ask).items():
            name = path[len(start) :] if path.startswith(start) else f"/{path}"
            if not _TEMPORARY.fullmatch(name.rpartition("/")[2]):
                found[inside(name, f"{self.url}/{relative}")] = size
        return found

    def download(self, relative: str, into: Path) -> None:
        """Every object below a directory, into an empty local one."""

        def get(item: tuple[str, int]) -> None:
            target = below(into, item[0], f"{self.url}/{relative}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._asked(f"{relative}/{item[0]}", lambda: self._get(f"{relative}/{item[0]}", target, item[1]))

        side_by_side(get, self.names(relative).items())

    def _get(self, relative: str, target: Path, size: int) -> None:
        with disk_errors(target):
            self.fs.get_file(f"{self.base}/{relative}", str(target))
        if target.stat().st_size != size:
            raise EOFError(f"{target.stat().st_size} of {size} bytes came")

    def _asked(self, relative: str, request: Callable[[], Answer]) -> Answer:
        """What a request gives, made again when it fails. Raises RemoteError when it fails every time."""
        for attempt in range(1, TRIES + 1):
            try:
                return request()
            except (AnyloomError, FileNotFoundError, TypeError):
                raise  # no answer of the network
            except PermissionError as error:
                raise AnyloomError(f"{self.url}/{relative}: access was denied ({without_secrets(str(error))}): check the credentials") from None
            except Exception as error:  # every file system has errors of its own
                if attempt == TRIES:
                    said = f"{type(error).__name__}: {without_secrets(str(error))}"
                    raise RemoteError(f"{self.url}/{relative} cannot be reached ({said}), tried {TRIES} times") from None  # its message holds the whole address
                time.sleep(FIRST_WAIT_S * 3 ** (attempt - 1) * random.uniform(1, 1.5))
        raise AssertionError


def side_by_side(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Do `work` for every item, AT_ONCE of them at the same time. Raises what the first of them in order raised; those not begun are left out."""
    with ThreadPoolExecutor(AT_ONCE, "mirror") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def push_artifact(remote: Remote, root: Path, final: Path, say: Callable[[str], None], anew: bool = False) -> None:
    """Upload an artifact and the entries it pins, unless it is there. anew: in place of what is there.

    What is damaged here is not uploaded, and said through `say`; so is an artifact whose entries are there with other bytes.
    """
    relative = final.relative_to(root).as_posix()
    if not anew and remote.exists(f"{relative}/{ARTIFACT_RECORD}"):
        return
    problem = _push_entries(remote, root, final, anew) or _not_whole(final)
    if problem:
        say(f"{final.parent.name}: not mirrored: {problem}")
        return
    _push(remote, final, relative, ARTIFACT_RECORD)


def _push_entries(remote: Remote, root: Path, final: Path, anew: bool) -> str:
    """Upload the entries that an artifact pins. Returns why not all of them are there now, or ""."""
    for pin in pins(final):
        entry, there = below(root / "stores", pin.path, final), None if anew else remote.read(f"stores/{pin.path}/{RECORD}")
        if there is None:
            problem = damage(entry, pin.digest)
            if problem:
                return problem
            _push(remote, entry, f"stores/{pin.path}", RECORD)
        elif _digest(there) != pin.digest:
            return f"{remote.url}/stores/{pin.path} holds other bytes"
    return ""


def _digest(record: bytes) -> str:
    """The digest that the record of an entry says."""
    try:
        return str(json.loads(record)["digest"])
    except (ValueError, KeyError, TypeError):
        return "none, for its record is damaged"


def _not_whole(final: Path) -> str:
    record = read_record(final)
    if record is None:
        return f"{final} was removed"
    try:
        verify(final, record, once=True)
    except AnyloomError as error:
        return str(error)
    return ""


def _push(remote: Remote, local: Path, relative: str, record: str) -> None:
    """Upload a published directory in place of what is there: its record goes first and comes last."""
    names = [name for name in list_files(local) if name != record]
    stale = remote.names(relative).keys() - set(names)
    for name in sorted(stale, key=lambda name: name != record):
        remote.remove(f"{relative}/{name}")
    side_by_side(lambda name: remote.put(local / name, f"{relative}/{name}"), names)
    remote.put(local / record, f"{relative}/{record}")


def pull_artifact(remote: Remote, root: Path, final: Path, fingerprint: str) -> ArtifactRecord | None:
    """Fetch an artifact that another machine finished, and the entries it pins; None when it is not there. Call with the step's lock held.

    Raises AnyloomError when it is damaged there: nothing of it is kept.
    """
    relative = final.relative_to(root).as_posix()
    if not remote.exists(f"{relative}/{ARTIFACT_RECORD}"):
        return None
    with _staged(final) as staging:
        remote.download(relative, staging)
        try:
            record = read_record(staging)
            if record is None or record.fingerprint != fingerprint:
                raise AnyloomError("its record is of another artifact")
            verify(staging, record)
            entries = pins(staging)
        except AnyloomError as error:
            raise _refused(remote, relative, str(error).partition(";")[0], final) from None
        note_entries(root / "work" / final.parent.name / final.name, root / "stores", [root / "stores" / pin.path for pin in entries])
        for pin in entries:
            _pull_entry(remote, root, pin, final)
        _publish(staging, final, ARTIFACT_RECORD)
    return record


def _pull_entry(remote: Remote, root: Path, pin: Pin, final: Path) -> None:
    """Fetch a store entry, unless it is here."""
    entry = below(root / "stores", pin.path, f"{remote.url}/{final.relative_to(root).as_posix()}")
    here = read_entry(entry)
    if here is not None:
        if here["digest"] != pin.digest:
            raise AnyloomError(
                f"{entry} holds other bytes ({here['digest'][:12]}) than {final.parent.name} of {remote.url} pins ({pin.digest[:12]}): "
                f"run {final.parent.name} again with --force {final.parent.name}, or remove {entry}"
            )
        return
    with _staged(entry) as staging:
        remote.download(f"stores/{pin.path}", staging)
        problem = damage(staging, pin.digest)
        if problem:
            raise _refused(remote, f"stores/{pin.path}", problem.replace(f"{staging}", "it"), final)
        _publish(staging, entry, RECORD)


def _refused(remote: Remote, relative: str, problem: str, final: Path) -> AnyloomError:
    step = final.parent.name
    return AnyloomError(
        f"{remote.url}/{relative} is damaged ({problem}) and was not taken: run {step} again with --force {step}, which makes it here and puts it there anew"
    )


@contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """A staging directory that is gone afterwards, unless it was published."""
    staging = new_staging(final)
    try:
        yield staging
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _publish(staging: Path, final: Path, record: str) -> None:
    if final.exists() and not (final / record).exists():
        set_aside(final)  # a directory without a record is nobody's
    publish_dir(staging, final)


def mirror(remote: Remote, root: Path, artifacts: Iterable[Path], say: Callable[[str], None]) -> None:
    """Upload what is not there of finished artifacts."""
    for final in artifacts:
        push_artifact(remote, root, final, say)
