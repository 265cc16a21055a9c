"""Errors: why the bytes behind a media uri could not be had. Owns FetchError."""

from __future__ import annotations


class FetchError(Exception):
    """Bytes that could not be had.

    reason: missing_file, empty_file, not_media, truncated, decode, too_large, http_4xx, http_5xx, timeout (also: unreachable), dns, forbidden_address, bad_uri;
    detail: one line; attempts: how often it was tried; wait_s: how long the server asks to wait before the next try.
    """

    def __init__(self, reason: str, detail: str, attempts: int = 1, wait_s: float | None = None):
        super().__init__(reason, detail, attempts)
        self.reason, self.detail, self.attempts, self.wait_s = reason, detail, attempts, wait_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
