"""Containers: what the bookkeeping of a media file says about its own length, read without decoding anything.

Owns the look for missing bytes at the end. Input: bytes and the file extension that mmcore.media.decode sniffed. Output: True or a count. Raises nothing: a
damaged file is not a short one.
"""

from __future__ import annotations

import struct


def ends_early(data: bytes, ext: str) -> bool:
    """True when the container's own bookkeeping says that bytes are missing at the end."""
    if ext == "png":
        return b"IEND" not in data[-64:]
    if ext == "jpg":
        return b"\xff\xd9" not in data[-64:]
    if ext in ("wav", "webp", "avi"):
        size = int.from_bytes(data[4:8], "little")
        return 0 < size < 0xFFFFFF00 and size + 8 > len(data) + 1
    if ext in ("mp4", "m4a", "avif"):
        return _boxes_end_early(data, frozenset((b"meta",)) if ext == "avif" else frozenset((b"moov", b"mdat")))
    return ext == "ogg" and _last_ogg_page_ends_early(data)


def _boxes_end_early(data: bytes, needed: frozenset[bytes]) -> bool:
    """Walk the top-level boxes of an ISO base media file (ISO/IEC 14496-12): the last one is cut short, or one without which nothing can be shown has not
    come."""
    at, seen = 0, set[bytes]()
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        seen.add(data[at + 4 : at + 8])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return False  # 0: to the end of the file; else damaged, not short
        at += size
    return at > len(data) or not needed <= seen


def _last_ogg_page_ends_early(data: bytes) -> bool:
    """Ogg page (RFC 3533): 27 bytes, a table of segment sizes, the segments."""
    at = data.rfind(b"OggS")
    if at + 27 > len(data):
        return True
    table = data[at + 27 : at + 27 + data[at + 26]]
    return len(table) < data[at + 26] or at + 27 + len(table) + sum(table) > len(data)


def flac_samples(data: bytes) -> int:
    """Total samples that STREAMINFO promises (RFC 9639, section 8.2); 0 means unknown."""
    if len(data) < 26:
        return 0
    return struct.unpack(">Q", data[18:26])[0] & ((1 << 36) - 1)
