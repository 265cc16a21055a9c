"""Classes of fuzz_lists: a medium that is damaged, is not there, or must not be read. Input and output as in sound_lists."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from sound_lists import CSV, IMAGES, JSON, KINDS, MODALITY, TAKEN, Fixed, Given, jpeg, left_out, medium, png, sound

Make = Callable[[random.Random, Path], Given]


def of_bytes(change: Callable[[bytes, random.Random], bytes], kinds: tuple[str, ...] = KINDS) -> Make:
    """Other bytes in the file of one record."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        number = rng.randrange(len(given.records))
        path = given.folder / given.address(number)
        path.write_bytes(change(path.read_bytes(), rng))
        given.changed = {number}
        return given

    return make


def instead(put: Callable[[Path], object]) -> Make:
    """Something else in the place of the file of one record."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box)
        number = rng.randrange(len(given.records))
        path = given.folder / given.address(number)
        path.unlink()
        put(path)
        given.changed = {number}
        return given

    return make


def at(address: Callable[[str, random.Random], str], kinds: tuple[str, ...] = KINDS) -> Make:
    """Another address in one record."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        number = rng.randrange(len(given.records))
        given.set_address(number, address(given.address(number), rng))
        given.changed = {number}
        given.write()
        return given

    return make


def one_of(*addresses: str) -> Callable[[str, random.Random], str]:
    """One of these addresses."""
    return lambda address, rng: rng.choice(addresses)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning of a file, with its first bytes."""
    return data[: rng.randrange(60, len(data) - 20)]


def flipped(data: bytes, rng: random.Random, first: int, last: int) -> bytes:
    """Some bits of a range of bytes are others; at least one."""
    out = bytearray(data)
    for at in rng.sample(range(first, last), rng.randint(1, min(8, last - first))):
        out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def beginning(rng: random.Random, box: Path) -> Given:
    """A file that begins as one of the formats, promises more than it holds, and goes on with anything."""
    rest = rng.randbytes(rng.randint(0, 300)).translate(None, b"I\xff")
    first, modalities = rng.choice(BEGINNINGS)
    given = of_bytes(lambda data, rng: first + rest)(rng, box)
    given.fixed = None if MODALITY[given.kind] in modalities else left_out("not_media")
    return given


def huge_png(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(3000))) + chunk(b"IEND", b"")


def huge_jpeg(side: int) -> bytes:
    """A JPEG whose frame header promises side x side pixels."""
    data = bytearray(jpeg(0))
    at_frame = data.index(b"\xff\xc0")
    data[at_frame + 5 : at_frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def huge_gif(side: int) -> bytes:
    """A GIF whose screen is side x side pixels."""
    screen = struct.pack("<HH", side, side)
    return b"GIF89a" + screen + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + screen + b"\0\x02\x02\x44\x01\0;"


def huge_bmp(side: int) -> bytes:
    """A BMP whose header promises side x side pixels."""
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 100, 1, 1, 0, 0) + bytes(100)


HUGE: tuple[Callable[[int], bytes], ...] = (huge_png, huge_jpeg, huge_gif, huge_bmp)
BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", ("image",)),
    (b"\xff\xd8\xff\xe0", ("image",)),
    (b"RIFF\xff\xff\0\0WEBP", ("image",)),
    (b"RIFF\xff\xff\0\0WAVE", ("audio",)),
    (b"RIFF\xff\xff\0\0AVI ", ("video", "audio")),
    (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1\0\0\x7fxmoov", ("video", "audio")),
)
"""(The first bytes of a format, the modalities that it may hold.)"""
NEVER = ("/etc/hostname", "/dev/zero", "//etc/hostname", "/proc/self/environ", "../own/media/x.png", "..", "media/../../x.png", "media/../media/0.png")
SCHEMES = (
    "file:///etc/hostname",
    "FILE:/etc/hostname",
    "s3://bucket/x.png",
    "ftp://a/x.png",
    "data:image/png;base64,AAAA",
    "gopher://a/1",
    "c:\\x.png",
    "javascript:0",
)
HERE = (
    "127.0.0.1",
    "127.0.0.1:9",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "2130706433",
    "0x7f.1",
    "0",
    "10.0.0.1",
    "169.254.169.254",
    "[fe80::1]",
    "127.1",
)
CLASSES: dict[str, tuple[Make, Fixed]] = {
    "medium: 0 bytes": (of_bytes(lambda data, rng: b""), left_out("empty_file")),
    "medium: cut short": (of_bytes(cut), left_out("truncated")),
    "medium: half a JPEG": (of_bytes(lambda data, rng: cut(jpeg(rng.randrange(4)), rng), IMAGES), left_out("truncated")),
    "medium: too many pixels": (of_bytes(lambda data, rng: rng.choice(HUGE)(rng.choice((9_000, 20_000, 32_000))), IMAGES), left_out("too_large")),
    "medium: too many bytes": (of_bytes(lambda data, rng: data + bytes(rng.randint(200_000, 900_000))), left_out("too_large")),
    "medium: a text": (
        of_bytes(lambda data, rng: rng.choice((b"not a medium at all\n", b"<!doctype html><p>404", b'{"error": 404}', b"\n", b"\0" * 99))),
        left_out("not_media"),
    ),
    "medium: another modality": (of_bytes(lambda data, rng: medium("audio", 1)[0], (*IMAGES, "webvid")), left_out("not_media")),
    "medium: an image where another modality should be": (of_bytes(lambda data, rng: medium("image", rng.randrange(4))[0], CSV), left_out("not_media")),
    "medium: the first bytes of one, then anything": (beginning, left_out("truncated")),
    "medium: random bytes": (of_bytes(lambda data, rng: b"\x01" + rng.randbytes(rng.randint(1, 300))), left_out("not_media")),
    "medium: a bit of a PNG's size is another": (of_bytes(lambda data, rng: flipped(png(rng.randrange(4)), rng, 16, 29), IMAGES), left_out("decode")),
    "medium: bits of samples are others": (of_bytes(lambda data, rng: flipped(data, rng, 44, len(data)), ("audiocaps",)), TAKEN),
    "medium: bits of a JPEG's resolution are others": (of_bytes(lambda data, rng: flipped(jpeg(rng.randrange(4)), rng, 14, 18), IMAGES), TAKEN),
    "medium: bytes after its end": (of_bytes(lambda data, rng: data + rng.randbytes(rng.randint(1, 40)), IMAGES), TAKEN),
    "medium: not there": (instead(lambda path: None), left_out("missing_file")),
    "medium: a folder": (instead(Path.mkdir), left_out("missing_file")),
    "medium: a pipe": (instead(os.mkfifo), left_out("missing_file")),
    "medium: a loop of links": (instead(lambda path: path.symlink_to(path.name)), left_out("missing_file")),
    "medium: a link to nothing": (instead(lambda path: path.symlink_to("gone.png")), left_out("missing_file")),
    "medium: a link that leads outside": (instead(lambda path: path.symlink_to("/etc/hostname")), left_out("bad_uri")),
    "medium: a link to a device": (instead(lambda path: path.symlink_to("/dev/zero")), left_out("bad_uri")),
    "address: outside the folder of the list": (at(one_of(*NEVER)), left_out("bad_uri")),
    "address: another scheme": (at(one_of(*SCHEMES)), left_out("bad_uri")),
    "address: of this machine and its network": (
        at(lambda address, rng: f"http{rng.choice('s ').strip()}://{rng.choice(HERE)}/x.png"),
        left_out("forbidden_address"),
    ),
    "address: with a login": (at(one_of("http://user:secret@127.0.0.1/x.png", "https://user@[::1]/x.png")), left_out("bad_uri")),
    "address: of http, but none": (
        at(one_of("http://", "http:///x", "http://[::1/x", "http://a:99999999/x", "https://?", "http://#", "http://[/")),
        left_out("bad_uri"),
    ),
    "address: empty": (at(one_of("", " ", "\u3000"), ("cc3m", *CSV)), left_out("bad_uri")),
    "address: a name that is too long": (at(lambda address, rng: "x" * rng.choice((256, 300, 4000, 50_000)) + ".png"), left_out("missing_file")),
    "address: a long path outside": (at(lambda address, rng: "../" * rng.choice((99, 20_000)) + "x.png"), left_out("bad_uri")),
    "address: many folders": (at(lambda address, rng: "y/" * rng.choice((40, 3000)) + "x.png"), left_out("missing_file")),
    "address: a folder": (at(one_of("media", "media/", ".", "./")), left_out("missing_file")),
    "address: below a file": (at(lambda address, rng: f"{address}/x.png"), left_out("missing_file")),
    "address: other case": (at(lambda address, rng: address.upper()), left_out("missing_file")),
    "address: escaped": (at(lambda address, rng: address.replace("/", "%2f")), left_out("missing_file")),
    "address: of a home": (at(one_of("~/x.png", "$HOME/x.png", "`id`.png", "*.png", "media/*")), left_out("missing_file")),
    "address: characters that do something to a terminal": (
        at(one_of("a\x1b[2Jb.png", "a\u202eb.png", "a\x85b.png", "a\x07b.png", "a\u2028b.png")),
        left_out("missing_file"),
    ),
    "address: a line end inside": (at(one_of("a\nb.png", "a\r\nb.png", "media/a\nb.png"), (*CSV, *JSON)), left_out("missing_file")),
    "address: a line end inside one that is none": (at(one_of("../a\nb.png", "file:\na", "http:\n//a/"), (*CSV, *JSON)), left_out("bad_uri")),
    "address: a zero byte": (at(one_of("a\0b.png", "\0", "media/0.png\0"), JSON), left_out("bad_uri")),
    "address: half a character": (at(one_of("\ud83d.png", "media/\udc38"), JSON), left_out("bad_record")),
    "address: the same in other words": (at(lambda address, rng: rng.choice(("./", ".//", "././")) + address.replace("/", rng.choice(("/", "//")))), TAKEN),
    "address: spaces around it": (at(lambda address, rng: f" {address}  "), TAKEN),
}
