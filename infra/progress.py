"""Progress across processes: a worker writes where it is into a small file, the driver reads it. Throttled, never an error."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from infra.step import Progress


class FileProgress:
    """A Progress that can travel to another process."""

    def __init__(self, path: Path, every_s: float = 0.25):
        self.path, self.every_s, self._last = path, every_s, 0.0

    def __call__(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last < self.every_s and done < total:
            return
        self._last = now
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps([done, total, note]))
        os.replace(temporary, self.path)


def relay(path: Path, progress: Progress) -> None:
    """Pass what `path` says on to `progress`; nothing when it is not there yet."""
    try:
        done, total, note = json.loads(path.read_text())
    except FileNotFoundError:
        return
    progress(done, total, note)
