"""Classes of fuzz_lists: a list file that is damaged as a whole, or is no plain file. Input and output as in sound_lists."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sound_lists import CSV, JSON, KINDS, MALFORMED, REFUSED, TAKEN, Fixed, Given, sound

TABLES = ("cc3m", *CSV)
Make = Callable[[random.Random, Path], Given]


def of_bytes(change: Callable[[bytes, random.Random], bytes], kinds: tuple[str, ...] = KINDS, plain: bool = False) -> Make:
    """A list with other bytes."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        given.write(plain)
        given.path.write_bytes(change(given.path.read_bytes(), rng))
        return given

    return make


def of_text(change: Callable[[str, random.Random], str], kinds: tuple[str, ...] = KINDS) -> Make:
    """A list with another text."""
    return of_bytes(lambda data, rng: change(data.decode(), rng).encode(), kinds)


def instead(put: Callable[[Path], object]) -> Make:
    """Something else in the place of the list."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box)
        given.path.unlink()
        put(given.path)
        return given

    return make


def named(name: Callable[[random.Random], str]) -> Make:
    """A sound list of another name."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box)
        given.path = given.path.rename(given.folder / name(rng))
        return given

    return make


def too_long(rng: random.Random, box: Path) -> Given:
    """A list whose name no file system takes."""
    given = sound(rng, box)
    given.path = given.folder / ("x" * rng.randint(256, 3000))
    return given


def below_a_file(rng: random.Random, box: Path) -> Given:
    """A list below a file."""
    given = sound(rng, box)
    given.path = given.path / "more.tsv"
    return given


def socket_at(path: Path) -> None:
    """A socket; its path may have 107 bytes, so it is made from its directory."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def no_utf8(rng: random.Random, box: Path) -> Given:
    """Bytes that are no UTF-8 in the text of one record."""
    given = sound(rng, box)
    number = rng.randrange(len(given.records))
    given.set_text(number, "before @ after")
    given.write()
    given.path.write_bytes(given.path.read_bytes().replace(b"@", rng.choice((b"\xff", b"\xc0", b"\xfe\xff", b"\xed\xa0\x80", b"\xe9"))))
    given.changed = {number}
    return given


def latin_1(rng: random.Random, box: Path) -> Given:
    """All letters beyond ASCII as Latin-1; there is one in every address."""
    given = sound(rng, box)
    for number in range(len(given.records)):
        given.set_text(number, "d\xe9j\xe0 vu")
    given.write(plain=True)
    given.path.write_bytes(given.path.read_bytes().decode().encode("latin-1", "replace"))
    given.changed = set(range(len(given.records)))
    given.fixed = REFUSED if given.kind in TABLES else MALFORMED  # a table of which no line is a record is none
    return given


def cut(data: bytes, rng: random.Random) -> bytes:
    """JSON that ends early."""
    return data[: rng.randrange(1, len(data.rstrip()) - 1)]


def first_half(rng: random.Random, box: Path) -> Given:
    """A table that ends inside its last record, before the last column."""
    given = sound(rng, box, TABLES)
    whole = given.path.read_text().rstrip("\n")
    last = whole.rfind("\n") + 1
    given.path.write_text(whole[: rng.randint(last + 1, whole.index("\t" if given.kind == "cc3m" else ",", last) - 1)])
    given.changed = {len(given.records) - 1}
    return given


def page(rng: random.Random, box: Path) -> Given:
    """A page of HTML where captions and addresses should be."""
    given = sound(rng, box, ("cc3m",))
    given.path.write_text(PAGE)
    return given


def lines(rng: random.Random, box: Path) -> Given:
    """A record a line."""
    given = sound(rng, box, JSON)
    given.path = given.path.with_suffix(".jsonl")
    given.path.write_text("".join(json.dumps(record) + "\n" for record in given.records))
    return given


Line = Callable[[bytes, random.Random], bytes]


def of_line(change: Line) -> Make:
    """A record a line, one of them changed."""

    def make(rng: random.Random, box: Path) -> Given:
        given = lines(rng, box)
        said, number = given.path.read_bytes().splitlines(), rng.randrange(len(given.records))
        said[number] = change(said[number], rng)
        given.path.write_bytes(b"\n".join(said) + b"\n")
        given.changed = {number}
        return given

    return make


def all_lines(change: Line) -> Make:
    """A record a line, all of them changed."""

    def make(rng: random.Random, box: Path) -> Given:
        given = lines(rng, box)
        given.path.write_bytes(b"\n".join(change(line, rng) for line in given.path.read_bytes().splitlines()) + b"\n")
        given.changed = set(range(len(given.records)))
        return given

    return make


def no_record(line: bytes, rng: random.Random) -> bytes:
    """Something else than a record."""
    others = (b"7", b"null", b"[]", b'"text"', b"{}", b"x", line + b",", line + b"]", line + line, b"[" * 100_000, line[:-1] + b', "n": ' + b"9" * 5000 + b"}")
    return rng.choice(others)


def header_cut(text: str, rng: random.Random) -> str:
    """A table that ends inside its header."""
    return text[: rng.randint(1, text.index("\n") - 1)]


def again(key: str) -> Callable[[str, random.Random], str]:
    """A key that stands twice in each record, with the same value."""

    def change(text: str, rng: random.Random) -> str:
        twice = [json.dumps(record)[:-1] + f', "{key}": {json.dumps(record.get(key))}}}' for record in json.loads(text)]
        return f"[{', '.join(twice)}]"

    return change


def ignored(spelled: str) -> Callable[[str, random.Random], str]:
    """A field that nobody reads, with a value that is spelled so."""
    return lambda text, rng: text.replace("{", f'{{"score": {spelled}, ', 1)


def deep(text: str, rng: random.Random) -> str:
    """A value that is nested more deeply than any parser goes."""
    depth = rng.randint(50_000, 200_000)
    return ignored("[" * depth + "]" * depth)(text, rng)


def of_kind(value: Any) -> Callable[[str, random.Random], str]:
    """Other JSON."""
    return lambda text, rng: json.dumps(value)


PAGE = "<!doctype html>\n<html>\n<body>not found</body>\n</html>\n"
ODD = ("a\nb.tsv", "\x1b[31mred.csv", "\u202egnp.json", "a b;c&d.tsv", "-rf.csv", "%2e%2e.json", "'\".tsv", "猫🐸.csv", "{uri}.json", "\udcff.tsv")
CLASSES: dict[str, tuple[Make, Fixed]] = {
    "file: untouched": (sound, TAKEN),
    "file: with a byte-order mark": (of_bytes(lambda data, rng: b"\xef\xbb\xbf" + data), TAKEN),
    "file: lines end with CR LF": (of_bytes(lambda data, rng: data.replace(b"\n", b"\r\n")), TAKEN),
    "file: no line end at its end": (of_bytes(lambda data, rng: data.rstrip(b"\n")), TAKEN),
    "file: blank lines at its end": (of_bytes(lambda data, rng: data + b"\n" * rng.randint(1, 9)), TAKEN),
    "file: letters as they are": (of_bytes(lambda data, rng: data, plain=True), TAKEN),
    "file: an odd name": (named(lambda rng: rng.choice(ODD)), TAKEN),
    "file: bytes that are no UTF-8 in a text": (no_utf8, MALFORMED),
    "file: Latin-1": (latin_1, MALFORMED),
    "file: UTF-16": (of_bytes(lambda data, rng: data.decode().encode("utf-16")), REFUSED),
    "file: UTF-16 without a mark": (of_bytes(lambda data, rng: data.decode().encode(rng.choice(("utf-16-le", "utf-16-be"))), (*CSV, *JSON)), REFUSED),
    "file: UTF-32": (of_bytes(lambda data, rng: data.decode().encode("utf-32")), REFUSED),
    "file: gzip": (of_bytes(lambda data, rng: gzip.compress(data)), REFUSED),
    "file: random bytes": (of_bytes(lambda data, rng: b"\x80" + rng.randbytes(rng.randint(1, 900))), REFUSED),
    "file: empty": (of_bytes(lambda data, rng: b""), REFUSED),
    "file: blank": (of_bytes(lambda data, rng: rng.choice((b"\n", b" \n\n", b"\r\n", b"\t \n", b"\xef\xbb\xbf\n"))), REFUSED),
    "file: a folder": (instead(Path.mkdir), REFUSED),
    "file: a pipe": (instead(os.mkfifo), REFUSED),
    "file: a socket": (instead(socket_at), REFUSED),
    "file: a device": (instead(lambda path: path.symlink_to("/dev/zero")), REFUSED),
    "file: a loop of links": (instead(lambda path: path.symlink_to(path.name)), REFUSED),
    "file: a link to nothing": (instead(lambda path: path.symlink_to("gone")), REFUSED),
    "file: not there": (instead(lambda path: None), REFUSED),
    "file: a name that is too long": (too_long, REFUSED),
    "file: below a file": (below_a_file, REFUSED),
    "table: ends inside its last record": (first_half, MALFORMED),
    "table: ends inside its header": (of_text(header_cut, CSV), REFUSED),
    "table: semicolons": (of_text(lambda text, rng: text.replace(",", ";"), CSV), REFUSED),
    "table: no header": (of_text(lambda text, rng: text.partition("\n")[2], CSV), REFUSED),
    "table: HTML": (of_text(lambda text, rng: PAGE, CSV), REFUSED),
    "table: HTML for captions": (page, REFUSED),
    "table: nothing but its header": (of_text(lambda text, rng: text.partition("\n")[0] + "\n", CSV), REFUSED),
    "json: cut short": (of_bytes(cut, JSON), REFUSED),
    "json: a record a line": (of_text(lambda text, rng: "".join(json.dumps(one) + "\n" for one in json.loads(text)), JSON), REFUSED),
    "json: a record a line, and the name says so": (lines, TAKEN),
    "lines: one that is no record": (of_line(no_record), MALFORMED),
    "lines: one that is no text": (of_line(lambda line, rng: line.replace(b"a", rng.choice((b"\0", b"\xff", b"\xe9", b"\xed\xa0\x80")), 1)), MALFORMED),
    "lines: one that is cut short": (of_line(lambda line, rng: line[: rng.randrange(1, len(line) - 1)]), MALFORMED),
    "lines: all of them cut short": (all_lines(lambda line, rng: line[: rng.randrange(1, len(line) - 1)]), REFUSED),
    "lines: blank ones between": (all_lines(lambda line, rng: line + rng.choice((b"\n", b"\r\n", b"\n \n", b"\n\n\t"))), TAKEN),
    "json: something after it": (of_text(lambda text, rng: text + rng.choice(("x", "[]", "{}", "]", "\0", "//")), JSON), REFUSED),
    "json: a comma too many": (of_text(lambda text, rng: text.rstrip()[:-1] + ",]", JSON), REFUSED),
    "json: comments": (of_text(lambda text, rng: text.replace("[", "[ // records\n", 1), JSON), REFUSED),
    "json: single quotes": (of_text(lambda text, rng: repr(json.loads(text)), JSON), REFUSED),
    "json: a raw control character": (
        of_text(lambda text, rng: text.replace("is this", rng.choice(("is\0this", "is\x1fthis", "is\nthis"))), ("llava",)),
        REFUSED,
    ),
    "json: HTML": (of_text(lambda text, rng: PAGE, JSON), REFUSED),
    "json: no records": (of_text(of_kind([]), JSON), REFUSED),
    "json: an object": (of_text(of_kind({"records": []}), JSON), REFUSED),
    "json: a text": (of_text(of_kind("records"), JSON), REFUSED),
    "json: a number": (of_text(lambda text, rng: rng.choice(("7", "-0.5", "1e999", "NaN")), JSON), REFUSED),
    "json: null": (of_text(lambda text, rng: rng.choice(("null", "true", "false")), JSON), REFUSED),
    "json: nested too deeply": (of_text(deep, JSON), REFUSED),
    "json: a number of 5000 digits": (of_text(lambda text, rng: ignored("9" * rng.randint(4400, 9000))(text, rng), JSON), REFUSED),
    "json: a number that is no float": (of_text(lambda text, rng: ignored(rng.choice(("1e999", "NaN", "-Infinity", "9" * 400)))(text, rng), JSON), TAKEN),
    "json: a key twice": (of_text(again("conversations"), JSON), TAKEN),
    "json: half a character in a field that nobody reads": (of_text(ignored('"\\ud83d"'), JSON), TAKEN),
    "json: spaces everywhere": (of_text(lambda text, rng: json.dumps(json.loads(text), separators=(" ,\n\t", "\r\n: ")), JSON), TAKEN),
}
