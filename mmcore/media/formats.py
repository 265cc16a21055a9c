"""Formats: the one list of media files that are read, and how their leading bytes tell them.

Owns FORMATS. Input: bytes; output: the file extension, or None. Raises nothing.

Images are what Pillow reads as it is installed, videos and audio what PyAV reads; HEIC needs a decoder that Pillow does not bring, and is known by name only.
"""

from __future__ import annotations

IMAGE, AUDIO, EITHER = ("image",), ("audio",), ("video", "audio")
FORMATS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("png", "jpg", "gif", "bmp", "webp", "avif", "tiff", "jp2"), IMAGE),
    **dict.fromkeys(("mp4", "webm", "avi", "ogg"), EITHER),
    **dict.fromkeys(("wav", "flac", "mp3", "m4a"), AUDIO),
}
"""File extension -> modalities that such a file can hold."""
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"OggS", "ogg"),
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"\x1aE\xdf\xa3", "webm"),
)
_RIFF = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
_AVIF = frozenset((b"avif", b"avis"))
_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_HEIF = frozenset((b"mif1", b"mif2", b"msf1", b"miaf"))


def extension_of(data: bytes) -> str | None:
    """One of FORMATS, `heic`, or None for what is none of them."""
    for magic, ext in _MAGIC:
        if data.startswith(magic):
            return ext
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _of_brands(data)
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06:
        return "mp3"
    return None


def _of_brands(data: bytes) -> str:
    """ISO base media files say in their first box what they are, and what else they can be read as (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), 512)
    major, others = data[8:12], {data[at : at + 4] for at in range(16, end, 4)}
    if major in _AVIF or (major in _HEIF and others & _AVIF):
        return "avif"
    if major in _HEIC or major in _HEIF:
        return "heic"
    return "m4a" if major[:3] == b"M4A" else "mp4"


def listed(modality: str) -> str:
    """The extensions of the files that can hold a modality, for messages."""
    return ", ".join(ext for ext, modalities in FORMATS.items() if modality in modalities)
