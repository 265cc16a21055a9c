"""Errors: why the bytes behind a media uri could not be had, and the one line about a row that is left out. Owns FetchError and as_detail."""

from __future__ import annotations

BEGINNING, ENDING = 350, 150
"""Characters of a long detail that are kept."""


class FetchError(Exception):
    """Bytes that could not be had.

    reason: missing_file, empty_file, not_media, truncated, decode, too_large, http_4xx, http_5xx, http_other (another status
    than 200), timeout (also: unreachable), dns, forbidden_address, bad_uri; detail: one line; attempts: how often it was tried; wait_s: how long the server
    asks to wait before the next try.
    """

    def __init__(self, reason: str, detail: str, attempts: int = 1, wait_s: float | None = None):
        super().__init__(reason, detail, attempts)
        self.reason, self.detail, self.attempts, self.wait_s = reason, detail, attempts, wait_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def as_detail(text: str) -> str:
    """A detail as the ledger keeps it, whatever names a list holds: one line, what is no visible character escaped, a long one without its middle."""
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return shown if len(shown) <= BEGINNING + ENDING else f"{shown[:BEGINNING]}…{shown[-ENDING:]}"
