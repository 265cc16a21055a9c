"""Stand-ins: the demo's own images as MMBench and TextVQA questions, in their exact schemas.

Owns stamps_as_mmbench (which caption fits a held-out stamp? four options, all rotations) and words_as_textvqa (words written on held-out stamps).
Input: the held-out captions and images of the shards, made from the recipe's list or the user's; output: one Parquet file that lmms-eval's packaged task
reads. It is data in the shape of a benchmark, not the benchmark. Stamps of which no question can be made are left out.

A stamp that is transparent is put on white first, because the packaged tasks would show its hidden colours; `aliases` says which medium it was.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.config import HELDOUT
from evals.suites.hub_parquet import write_rows
from infra.step import AnyloomError
from mmcore.media.decode import decode_image
from mmcore.stores.shards import ShardSet

if TYPE_CHECKING:
    from PIL import Image

ROTATION = 10**6
"""MMBench's rotation k of a question has its index + k * ROTATION."""
LETTERS = "ABCD"
WORD = re.compile(r"[A-Za-z]{3,10}")
STRINGS = "list of string"
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "stamps_as_mmbench": {
        "index": "int64",
        **dict.fromkeys(("question", "hint", "answer", *LETTERS, "category"), "string"),
        "image": "image",
        **dict.fromkeys(("source", "L2-category", "comment", "split"), "string"),
    },
    "words_as_textvqa": {
        "image_id": "string",
        "question_id": "int32",
        "question": "string",
        "question_tokens": STRINGS,
        "image": "image",
        "image_width": "int32",
        "image_height": "int32",
        "flickr_original_url": "string",
        "flickr_300k_url": "string",
        "answers": STRINGS,
        "image_classes": STRINGS,
        "set_name": "string",
        "ocr_tokens": STRINGS,
    },
}
"""The official columns, in their order."""
QUESTION = "Which caption fits the picture?"
WORD_QUESTION = "what word is written in the picture?"


@dataclass(slots=True)
class StandIn:
    """A written file."""

    rows: int = 0
    aliases: dict[str, str] = field(default_factory=dict)
    """sha256 of an image in the file -> sha256 of the medium with the same pixels in the shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """A held-out image."""

    key: str
    uri: str
    caption: str


def write_stand_in(task: str, shards: ShardSet, target: Path, seed: int, without: Container[str] = ()) -> StandIn:
    """Write the Parquet file of a stand-in, from every held-out stamp but for the samples `without`. Raises AnyloomError when there are too few of them."""
    makers: dict[str, Callable[..., list[dict[str, Any]]]] = {"stamps_as_mmbench": _stamps, "words_as_textvqa": _words}
    if task not in makers:
        raise AnyloomError(f"{task} is no stand-in; there are: {', '.join(makers)}")
    stamps = [stamp for stamp in heldout_stamps(shards) if stamp.key not in without]
    captions = sorted({stamp.caption.casefold() for stamp in stamps})
    if len(captions) < len(LETTERS):
        raise AnyloomError(f"{HELDOUT} has {len(captions)} different captions; {task} needs {len(LETTERS)}: hold more out of training")
    draws = random.Random(f"{seed} {task}")
    made = StandIn()
    rows = makers[task](stamps, shards, draws, made)
    write_rows(target, rows, COLUMNS[task])
    made.rows = len(rows)
    return made


def heldout_stamps(shards: ShardSet) -> list[Stamp]:
    """Every held-out stamp, in list order."""
    metas = shards.metas(shards.keys(source=HELDOUT, duplicates=True))
    return [
        Stamp(key=meta["key"], uri=next(str(medium["uri"]) for medium in meta["media"]), caption=meta["texts"][0])
        for meta in metas
        if meta["texts"] and shards.media_sha(meta["key"])
    ]


def _stamps(stamps: list[Stamp], shards: ShardSet, draws: random.Random, made: StandIn) -> list[dict[str, Any]]:
    """Four rows per stamp: its caption and three others, in every rotation."""
    by_uri: dict[str, set[str]] = {}
    for stamp in stamps:
        by_uri.setdefault(stamp.uri, set()).add(stamp.caption.casefold())
    captions = sorted({stamp.caption.casefold(): stamp.caption for stamp in stamps}.values())
    rows = []
    for number, stamp in enumerate(stamps):
        wrong = [other for other in captions if other.casefold() not in by_uri[stamp.uri]]
        if len(wrong) < len(LETTERS) - 1:
            continue
        options = draws.sample([stamp.caption, *draws.sample(wrong, len(LETTERS) - 1)], len(LETTERS))
        data = _on_white(shards.media(stamp.key), made)
        parts = stamp.uri.split("/")
        for turn in range(len(LETTERS)):
            turned = options[turn:] + options[:turn]
            row: dict[str, Any] = {"hint": "nan", "comment": "nan"} | dict(zip(LETTERS, turned, strict=True))
            row |= {"index": number + turn * ROTATION, "question": QUESTION, "answer": LETTERS[turned.index(stamp.caption)]}
            row |= {"image": {"bytes": data, "path": stamp.uri}, "category": parts[2] if len(parts) > 3 else "stamps"}
            row |= {"L2-category": "caption choice", "source": "held-out stamps", "split": "dev"}
            rows.append(row)
    return rows


def _words(stamps: list[Stamp], shards: ShardSet, draws: random.Random, made: StandIn) -> list[dict[str, Any]]:
    """One row per stamp: a word of another stamp's caption, written on it in Pillow's own typeface."""
    vocabulary = sorted({word.lower() for stamp in stamps for word in WORD.findall(stamp.caption)})
    rows = []
    for number, stamp in enumerate(stamps):
        own = {word.lower() for word in WORD.findall(stamp.caption)}
        others = [word for word in vocabulary if word not in own]
        if not others:
            continue
        word = draws.choice(others)
        image = _written(decode_image(shards.media(stamp.key)), word, draws)
        row: dict[str, Any] = {
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "question": WORD_QUESTION,
            "question_tokens": WORD_QUESTION.rstrip("?").split(),
            "set_name": "val",
        }
        row |= {"image_id": f"word-{number}", "question_id": number, "image": {"bytes": _png(image), "path": f"word-{number}.png"}}
        row |= {"image_width": image.width, "image_height": image.height, "answers": [word] * 10, "image_classes": [], "ocr_tokens": [word]}
        rows.append(row)
    return rows


def _written(image: Image.Image, word: str, draws: random.Random) -> Image.Image:
    """The image in a square of 224 pixels with a word on a white band near its lower edge."""
    from PIL import Image, ImageDraw, ImageFont

    side = 224
    canvas = Image.new("RGB", (side, side), "white")
    image.thumbnail((side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=draws.randint(28, 40))
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
    x, y = draws.randint(4, max(4, side - 8 - int(right - left))), side - 12 - int(bottom - top)
    draw.rectangle((x - 4, y - 4, x + right - left + 4, y + bottom - top + 4), fill="white")
    draw.text((x - left, y - top), word, fill="black", font=font)
    return canvas


def _on_white(data: bytes, made: StandIn) -> bytes:
    """The file's own bytes when it is opaque, else a PNG of it on white, which `made` notes as an alias."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.mode in ("RGB", "L") and "transparency" not in image.info:
            return data
    shown = _png(decode_image(data))
    made.aliases[hashlib.sha256(shown).hexdigest()] = hashlib.sha256(data).hexdigest()
    return shown


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
