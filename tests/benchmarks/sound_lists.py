"""Sound lists of every format that the readers take, with their media, to be damaged by the classes of fuzz_lists, and the outcomes that such a class can fix.

Input: a seeded generator and an empty directory. Output: a Given, whose list file and media lie there. Raises nothing.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))
from data_steps import mp4, png, wav

MODALITY = {"cc3m": "image", "webvid": "video", "audiocaps": "audio", "llava": "image", "nextgpt": "image"}
"""Kind of list -> modality of its input media."""
KINDS = tuple(MODALITY)
CSV, JSON, IMAGES = ("webvid", "audiocaps"), ("llava", "nextgpt"), ("cc3m", "llava", "nextgpt")
SUFFIX = {"cc3m": "tsv", "webvid": "csv", "audiocaps": "csv", "llava": "json", "nextgpt": "json"}
HEADERS = {"webvid": ["videoid", "contentUrl", "duration", "page_dir", "name"], "audiocaps": ["audiocap_id", "youtube_id", "start_time", "caption"]}
COLUMNS = {"cc3m": (1, 0), "webvid": (1, 4), "audiocaps": (1, 3)}
"""Places of the address and of the text in a record of columns."""
TEXTS = (
    'A dog "barks", loudly.',
    "Ein Bär; daneben: déjà vu!",
    "猫が座っている。",
    "one\\two / three",
    "<b>bold</b> & 5 > 3",
    "'quoted' — and a dash",
    "🐸 frog 🐸",
)


@dataclass(frozen=True, slots=True)
class Fixed:
    """The right outcome of a damaged list: it is refused in one line that names it, or the changed records are left out and no others, or all are taken."""

    refused: bool = False
    left_out: str = ""
    """The reason of the changed records."""

    def __str__(self) -> str:
        return "refused" if self.refused else f"left out: {self.left_out}" if self.left_out else "taken"


TAKEN, REFUSED = Fixed(), Fixed(refused=True)


def left_out(reason: str) -> Fixed:
    """The outcome of records that are left out."""
    return Fixed(left_out=reason)


MALFORMED = left_out("bad_record")
"""A line or record that is none."""


@dataclass(slots=True)
class Given:
    """A list and what is known of it."""

    kind: str
    path: Path
    """The list file; its media lie in `media` beside it."""
    records: list[Any]
    """Columns of a line, or an object of JSON."""
    changed: set[int] = field(default_factory=set)
    """Numbers of the records that are not sound."""
    rows: int | None = None
    """How many rows the list has; None: it is not known."""
    fixed: Fixed | None = None
    """Its right outcome; None: that of its class."""

    @property
    def folder(self) -> Path:
        """Where the list lies."""
        return self.path.parent

    def address(self, number: int) -> str:
        """The address of a record's medium."""
        record = self.records[number]
        return str(record["image" if self.kind == "llava" else "input_image"] if self.kind in JSON else record[COLUMNS[self.kind][0]])

    def set_address(self, number: int, address: str) -> None:
        """Name another medium in a record."""
        record = self.records[number]
        record[("image" if self.kind == "llava" else "input_image") if self.kind in JSON else COLUMNS[self.kind][0]] = address

    def set_text(self, number: int, text: str) -> None:
        """Say something else in a record."""
        record = self.records[number]
        if self.kind in JSON:
            record["conversations"][1]["value"] = f"{'<image>' if self.kind == 'nextgpt' else ''}{text}"
        else:
            record[COLUMNS[self.kind][1]] = text

    def write(self, plain: bool = False) -> None:
        """The list file as it should be. plain: letters beyond ASCII as they are, also in JSON."""
        self.path.write_bytes(as_text(self.kind, self.records, plain).encode())


def as_text(kind: str, records: list[Any], plain: bool = False) -> str:
    """A list of a kind."""
    if kind in JSON:
        return json.dumps(records, indent=1, ensure_ascii=not plain) + "\n"
    if kind == "cc3m":
        return "".join("\t".join(record) + "\n" for record in records)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEADERS[kind], *records])
    return out.getvalue()


def sound(rng: random.Random, box: Path, kinds: tuple[str, ...] = KINDS) -> Given:
    """A list of one of the kinds with 2 to 5 records and all their media, written."""
    kind, count = rng.choice(kinds), rng.randint(2, 5)
    folder = box / "own"
    (folder / "media").mkdir(parents=True)
    given = Given(kind, folder / f"my list.{SUFFIX[kind]}", [], rows=count)
    for number in range(count):
        data, ext = medium(MODALITY[kind], rng.randrange(4))
        name = f"media/{number} é.{ext}"
        (folder / name).write_bytes(data)
        given.records.append(record(kind, number, rng.choice(TEXTS), name))
    given.write()
    return given


def record(kind: str, number: int, text: str, address: str) -> Any:
    """One record of a list."""
    if kind == "cc3m":
        return [text, address]
    if kind == "webvid":
        return [str(1000 + number), address, "PT00H00M01S", "page", text]
    if kind == "audiocaps":
        return [str(1000 + number), address, "0", text]
    if kind == "llava":
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": text}]
        return {"id": f"{number:09d}", "image": address, "conversations": turns}
    turns = [{"from": "human", "value": f"<image>\nDraw it again, as {text}"}, {"from": "gpt", "value": "<image>"}]
    return {"input_image": address, "output_image": "made.png", "image_captions": [text], "conversations": turns}


@cache
def medium(modality: str, seed: int) -> tuple[bytes, str]:
    """(bytes, file extension) of a small sound medium."""
    if modality == "audio":
        return wav(seed, 0.1), "wav"
    if modality == "video":
        return mp4([Image.new("RGB", (32, 32), (50 * seed, 10 * n, 90)) for n in range(4)]), "mp4"
    return (png(seed), "png") if seed % 2 else (jpeg(seed), "jpg")


@cache
def jpeg(seed: int) -> bytes:
    """A small JPEG."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png(seed))).save(out, "JPEG")
    return out.getvalue()
