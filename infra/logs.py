"""Logs: quiet libraries, one log file per run, errors in one clear line."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from infra.secrets import without_secrets

NOISY = ("ray", "prefect", "httpx", "transformers", "datasets", "lmms_eval", "urllib3", "asyncio", "filelock", "fsspec", "timm", "peft", "torch", "uvicorn")


class _Discreet(logging.Formatter):
    """Lines without the logins and signatures of the addresses in them: the libraries below us write whole ones."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def quiet(log_file: Path | None = None) -> None:
    """Send library messages (warnings and up) to `log_file` instead of the terminal."""
    warnings.simplefilter("ignore")
    root = logging.getLogger()
    root.handlers.clear()
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_file, delay=True)
        handler.setFormatter(_Discreet("%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"))
        root.addHandler(handler)
    else:
        root.addHandler(logging.NullHandler())
    root.setLevel(logging.WARNING)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def one_line(error: BaseException) -> str:
    """An exception as a single line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
