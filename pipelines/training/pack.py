"""Packing: an exported model as a directory to take away, with or without the weights of its language model.

Input: an export; output: a directory that `anyloom generate`, `chat` and lmms-eval open (with --base when the weights stayed behind). The export is not
changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from infra.artifact import refuse_damaged
from infra.step import AnyloomError
from infra.storage import NOT_DIGESTED, new_staging, publish_dir, tree_bytes
from mmcore.lm.base_weights import BASE, LM, leave_behind


def pack(export: Path, out: Path, bundle: bool) -> str:
    """Write `out`. Returns what was written, in a line. Raises AnyloomError when it exists, for a damaged export, and for bundling what
    came without the weights."""
    if out.exists():
        raise AnyloomError(f"--out {out}: it exists already; name a new directory")
    if bundle and (export / LM / BASE).is_file():
        raise AnyloomError(f"{export} came without the weights of its language model, so they cannot be bundled: pack the export that was trained")
    refuse_damaged(export)
    staging = new_staging(out.absolute())
    try:
        shutil.copytree(export, staging, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(*NOT_DIGESTED), dirs_exist_ok=True)
        left = [] if bundle or (export / LM / BASE).is_file() else leave_behind(staging / LM)
        size_mb = tree_bytes(staging) / 1e6
        publish_dir(staging, out.absolute())
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    without = f", without {', '.join(left)} of the language model (--base gives them back)" if left else ""
    return f"{out}: {size_mb:,.1f} MB{without}"
