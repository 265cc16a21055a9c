"""Base weights: the language model of an exported directory, in it or by reference and digest.

An export that is to be taken away need not carry the weights of its language model, which its reader may have already: BASE then names each file that was left
behind, with its sha256. Input: an exported directory and, for such a one, a directory with these files; output: a directory that transformers opens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from infra.step import AnyloomError
from infra.storage import list_files, read_json, sha256_file, write_atomic

LM, BASE, WEIGHTS = "lm", "base.json", ".safetensors"


def leave_behind(lm: Path) -> list[str]:
    """Remove the weights of an `lm/` directory and name them in BASE instead. Returns their names."""
    names = [name for name in list_files(lm) if name.endswith(WEIGHTS)]
    write_atomic(lm / BASE, json.dumps({"sha256": {name: sha256_file(lm / name) for name in names}}, indent=1, sort_keys=True))
    for name in names:
        (lm / name).unlink()
    return names


def _left_behind(record: Path) -> dict[str, str]:
    """name -> sha256 of the files that BASE names. Raises AnyloomError for a name that is none of `leave_behind`: it could lead anywhere."""
    wanted: dict[str, str] = read_json(record)["sha256"]
    for name in wanted:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.suffix != WEIGHTS:
            raise AnyloomError(f"{record} names {name!r}, which is no {WEIGHTS} file below its directory: take the packed model from its maker again")
    return wanted


@contextmanager
def language_model(directory: Path, base: Path | None = None) -> Iterator[Path]:
    """The `lm/` of an exported directory, with its weights. base: where they are when the export names them only.

    Raises AnyloomError when they are needed and not given, or are other files, and for names that lead out of the directory.
    """
    lm = directory / LM
    if not (lm / BASE).is_file():
        yield lm
        return
    wanted = _left_behind(lm / BASE)
    if base is None:
        raise AnyloomError(f"{directory} comes without the weights of its language model ({', '.join(wanted)}): give the directory that holds them with --base")
    for name, digest in wanted.items():
        if not (base / name).is_file():
            raise AnyloomError(f"--base {base}: it has no {name}, which {lm / BASE} names")
        if sha256_file(base / name) != digest:
            raise AnyloomError(f"--base {base / name}: these are other weights (sha256 differs from the {digest[:12]}… in {lm / BASE})")
    with tempfile.TemporaryDirectory(prefix="anyloom-lm-") as name:
        whole = Path(name)
        for relative, source in [(relative, lm) for relative in list_files(lm)] + [(relative, base) for relative in wanted]:
            (whole / relative).parent.mkdir(parents=True, exist_ok=True)
            (whole / relative).symlink_to((source / relative).absolute())
        yield whole
