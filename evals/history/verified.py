"""Verification: whether the files of a history still are what was written.

Owns the check of every file by its seal, and of a run's files by the sha256 that the run's row names. Input: files. Output: what is wrong, in words.
Raises AnyloomError for a file that cannot be read. Files of schema versions before SEALED_SINCE have no digest: they are read, and counted as unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from evals.history.seals import seal_holds
from evals.history.tables import version_of
from infra.step import AnyloomError
from infra.storage import sha256_file

SEALED_SINCE = 6
REMEDY = "restore it from a copy, or remove it to accept the loss; `anyloom history check` names every damaged file"


def wrong_with(path: Path) -> str | None:
    """What is wrong with a file by its own seal, "" when nothing is, None when it has none because it is older than seals.

    Raises AnyloomError for a file that cannot be read.
    """
    try:
        holds = seal_holds(path)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    if holds is None:
        return None if version_of(path) < SEALED_SINCE else "it has lost its digest"
    return "" if holds else "its bytes are not those that were written"


def verify(path: Path) -> bool:
    """Raises AnyloomError when the file's bytes are not those that were written. Returns False for one that is older than seals."""
    wrong = wrong_with(path)
    if wrong:
        raise damaged(path, wrong)
    return wrong is not None


def damaged(path: Path, wrong: str) -> AnyloomError:
    """The error of a file with which something is wrong."""
    return AnyloomError(f"{path} is damaged ({wrong}): {REMEDY}")


def named_files(path: Path) -> dict[str, str] | None:
    """Table -> sha256 of its file, as the row in a file of `run` says; None where it says nothing."""
    if "files" not in pq.read_schema(path).names:
        return None
    (said,) = pq.ParquetFile(path).read(columns=["files"], use_threads=False)["files"].to_pylist()
    return None if said is None else dict(json.loads(said))


def unlike(run: Path, files: Mapping[str, Path]) -> tuple[list[tuple[str, str]], int]:
    """((table, what is wrong) of every file of a run that is not what its row says, how many files have nothing to be checked by).

    run: its file of `run`; files: table -> where its file would be.
    """
    wrong = wrong_with(run)
    if wrong:
        return [("run", str(damaged(run, wrong)))], 0
    named = named_files(run)
    found, unchecked = [], int(wrong is None)
    for table, path in files.items():
        there = path.exists()
        if named is None and there:
            own = wrong_with(path)
            unchecked += own is None
            found += [(table, str(damaged(path, own)))] if own else []
        elif named is not None and table in named and not there:
            found.append((table, f"{path} is gone, though {run} names it: {REMEDY}"))
        elif named is not None and there and table not in named:
            found.append((table, f"{path} is not named by {run}, so it is of an unfinished writing: remove it"))
        elif named is not None and there and sha256_file(path) != named[table]:
            found.append((table, str(damaged(path, f"its bytes are not those that {run} names"))))
    return found, unchecked
