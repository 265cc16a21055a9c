"""What the command line says of a failure that no step foresaw.

Input: the arguments and the exception; output: one line on stderr and the traceback in a log. No address in either holds a login or a signature.
"""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
from pathlib import Path

from flows.cli.options import settings_of
from flows.running.cells import visible
from infra.logs import one_line
from infra.machine import existing, free_bytes
from infra.secrets import without_secrets
from infra.settings import private_directory


def unexpected(args: argparse.Namespace, error: Exception) -> int:
    """A failure that no step foresaw: one line with the step and what else is known of the place (training step, sample), the remedy where the machine is full
    or closed to us, and the whole traceback in a log. No address in either holds a login or a signature."""
    import traceback

    root = settings_of(args).root.absolute()
    told = without_secrets("".join(traceback.format_exception(error)))
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(("step ", "at ", "sample "))]  # libraries have notes of their own
    where = ", ".join(reversed(notes))
    what = f"{where + ': ' if where else ''}{type(error).__name__}: {without_secrets(one_line(error))[:300]}"
    what = visible(" ".join(what.split()))
    logs = [root / "logs" / "errors.log"] if root.is_dir() else []  # a command that only reads makes no root
    for log in (*logs, private_directory() / "errors.log"):
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a") as handle:
                handle.write(told)
        except OSError:
            continue
        print(f"anyloom: {what}; {remedy(error, root)}the traceback is in {log}", file=sys.stderr)
        return 1
    print(f"{told}anyloom: {what}; {remedy(error, root)}no log could be written", file=sys.stderr)
    return 1


def remedy(error: BaseException | None, root: Path) -> str:
    """What helps when a disk is full or cannot be written; "" for anything else. Libraries lose the error's number, but not its words."""
    while error is not None:
        number, text = getattr(error, "errno", None), str(error)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text or "Disk quota exceeded" in text:
            free = ", ".join(f"{place}: {free_bytes(place) / 1e6:,.0f} MB free" for place in (existing(root), Path(tempfile.gettempdir())))
            return f"a disk is full ({free}): make room, or take another --root or TMPDIR, and run the same command again; "
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            return f"{getattr(error, 'filename', None) or root} cannot be written or read by this user: take another --root, or mend its rights; "
        error = error.__cause__ or error.__context__
    return ""
