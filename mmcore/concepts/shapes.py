"""The world of the small image decoder: 3 shapes in 8 colours, in crops around the shape.

Owns the concepts, the words for them, what questions and captions say about an image, and the crop. Input: shards whose images hold one
shape on a plain background (easy-VQA); output: crops with their concept. It is a world of 24 concepts: nothing that is learned from it says anything about
images at large.

Shape letters: N images, H, W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from infra.step import AnyloomError
from mmcore.chat.places import asked_texts
from mmcore.media.decode import decode_image
from mmcore.stores.shards import ShardSet

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
BACKGROUND_STEP = 24
"""A pixel belongs to the shape when a channel differs from the background by more than this, of 255."""

WORDINGS = (
    "a {c} {s}",
    "{c} {s}",
    "draw a {c} {s}",
    "please draw a {c} {s}",
    "can you draw a {c} {s}?",
    "show me a picture of a {c} {s}",
    "make a picture of a {c} {s}",
    "create an image of a {c} {s}",
    "paint a {c} {s}",
    "i would like to see a {c} {s}",
    "a {s} that is {c}",
    "the {s} is {c}",
    "a {s} in {c}",
    "one {c} {s} on a plain background",
    "a photo of a {c} {s}",
    "there is a {c} {s}",
    "a small {c} {s}",
    "a big {c} {s}",
    "a drawing of a {c} {s}",
    "{s}, {c}",
    "the picture shows a {c} {s}",
    "give me a {c} {s}",
    "a {s} coloured {c}",
    "a {s} with the color {c}",
)
"""Ways to ask for a concept that the decoder learns from; {c}: colour, {s}: shape. The first is the lists' caption."""
NEW_WORDINGS = (
    "could you sketch a {c} {s} for me",
    "an illustration with a single {c} {s} in it",
    "i want a {s}, and it must be {c}",
    "let there be a {c} {s}",
    "a {s} painted {c}",
    "just a {c} {s}, nothing else",
)
"""Ways that no training prompt has: what is judged."""


PHRASES = (
    "a {s} that is {c}",
    "a {s} in {c}",
    "a {s} coloured {c}",
    "a {s} with the color {c}",
    "a {s}, which should be {c}",
    "a {s}. its color is {c}",
    "a {s} filled with {c}",
    "something {c}: a {s}",
)
"""The caption of a concept in other words, for requests in training lists."""


@dataclass(frozen=True, slots=True)
class Concept:
    """What an image shows."""

    colour: str
    shape: str

    @property
    def caption(self) -> str:
        """The caption that the lists give such an image."""
        return WORDINGS[0].format(c=self.colour, s=self.shape)

    def worded(self, wording: str) -> str:
        """The concept in one of the WORDINGS."""
        return wording.format(c=self.colour, s=self.shape)


CONCEPTS = tuple(Concept(colour, shape) for colour in COLOURS for shape in SHAPES)


def affirmed(question: str, answer: str) -> set[str]:
    """Words (a colour, a shape) that a question and its answer together say are in the image."""
    named = set(re.findall(rf"\b(?:{'|'.join((*SHAPES, *COLOURS))})\b", question))
    if question.startswith("what"):
        return named | {answer}
    negated = re.search(r"\b(?:not|no)\b", question) is not None
    return named if (answer == "yes") != negated else set()


def caption_of(questions: Sequence[tuple[int, str, str]]) -> str:
    """Caption from what (number, question, answer)s affirm: "a red circle", "a red shape", "a circle" or "" when nothing is known.

    Raises AnyloomError when they contradict each other.
    """
    known: set[str] = set().union(*(affirmed(question, answer) for _, question, answer in questions))
    shapes, colours = sorted(known & set(SHAPES)), sorted(known - set(SHAPES))
    if len(shapes) > 1 or len(colours) > 1:
        raise AnyloomError(f"easy-VQA: questions {questions[0][0]}..{questions[-1][0]} affirm {shapes} and {colours} of one image")
    return f"a {' '.join([*colours, *(shapes or ['shape'])])}" if known else ""


_NUMBER = {concept.caption: number for number, concept in enumerate(CONCEPTS)}


def number_of(caption: str) -> int | None:
    """Place in CONCEPTS of what a caption names; None when it names no concept as a whole."""
    return _NUMBER.get(caption)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Crops with what they show, in the order of their keys."""

    keys: list[str]
    sha256: list[str]
    """Of the whole image each was cut from."""
    pixels: np.ndarray
    """uint8 [N, 3, H, W]."""
    shape_mask: np.ndarray
    """bool [N, H, W]: the shape's pixels."""
    concepts: np.ndarray
    """int64 [N]: places in CONCEPTS."""

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, rows: Iterable[int]) -> Crops:
        """Some of them."""
        chosen = list(rows)
        return Crops(
            keys=[self.keys[i] for i in chosen],
            sha256=[self.sha256[i] for i in chosen],
            pixels=self.pixels[chosen],
            shape_mask=self.shape_mask[chosen],
            concepts=self.concepts[chosen],
        )


def crop(image: Image.Image, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [side, side, 3], bool [side, side] of the shape's pixels): the square around the middle of the shape, moved inside the image.

    The background is the most frequent colour. Raises ValueError when the image is smaller than a crop, or shows nothing but background.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        raise ValueError(f"an image of {width} x {height} pixels has no crop of {side} x {side}")
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    background = colours[counts.argmax()].astype(int)
    mask = (np.abs(pixels.astype(int) - background) > BACKGROUND_STEP).any(-1)
    if not mask.any():
        raise ValueError("an image shows nothing but background")
    starts = []
    for axis, size in ((1, height), (0, width)):
        found = np.nonzero(mask.any(axis))[0]
        starts.append(int(np.clip((found[0] + found[-1] + 1 - side) // 2, 0, size - side)))
    rows, columns = slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)
    return pixels[rows, columns], mask[rows, columns]


def captioned_crops(shards: ShardSet, source: str, side: int) -> Crops:
    """Crops of the training images of a dataset whose first caption names a concept, by key. Raises AnyloomError: see `_crops`."""
    metas = shards.metas(sorted(shards.keys(source=source, split="train")))
    return _crops(shards, source, side, [(meta, meta["texts"][0] if meta["texts"] else "") for meta in metas])


def asked_crops(shards: ShardSet, source: str, side: int) -> Crops:
    """Crops of the images of a dataset whose questions together affirm a concept, by key. Raises AnyloomError: see `_crops`."""
    metas = shards.metas(sorted(shards.keys(source=source)))
    return _crops(shards, source, side, [(meta, caption_of(_questions(meta))) for meta in metas])


def asked_concepts(shards: ShardSet, source: str) -> list[tuple[str, int]]:
    """(key, place in CONCEPTS) of every image of a dataset whose questions together affirm a concept, by key; each image once."""
    found: dict[str, tuple[str, int]] = {}
    for meta in shards.metas(sorted(shards.keys(source=source))):
        number, sha256 = number_of(caption_of(_questions(meta))), shards.media_sha(meta["key"])
        if number is not None and sha256:
            found.setdefault(sha256, (meta["key"], number))
    return list(found.values())


def _questions(meta: dict[str, Any]) -> list[tuple[int, str, str]]:
    turns = meta["conversations"]
    turns = json.loads(turns) if isinstance(turns, str) else turns
    questions = asked_texts([turn["value"] for turn in turns if turn["from"] == "human"], "image")
    answers = [turn["value"].strip() for turn in turns if turn["from"] == "gpt"]
    return [(number, *pair) for number, pair in enumerate(zip(questions, answers, strict=False))]


def _crops(shards: ShardSet, source: str, side: int, captioned: list[tuple[dict[str, Any], str]]) -> Crops:
    """Each image once (the lowest key wins). Raises AnyloomError when no image shows a known concept, or one cannot be cropped."""
    keys, pixels, masks, concepts = [], [], [], []
    hashes: dict[str, None] = {}
    for meta, caption in captioned:
        number, sha256 = number_of(caption), shards.media_sha(meta["key"])
        if number is None or not sha256 or sha256 in hashes:
            continue
        try:
            cut, mask = crop(decode_image(shards.media(meta["key"])), side)
        except ValueError as error:
            raise AnyloomError(f"sample {meta['key']}: {error}: choose another `side`, or another `source` than {source}") from error
        keys.append(meta["key"])
        hashes[sha256] = None
        pixels.append(cut.transpose(2, 0, 1))
        masks.append(mask)
        concepts.append(number)
    if not keys:
        raise AnyloomError(f"no image of {source} is known to show a colour and a shape: name a dataset of easy-VQA images in `source`")
    return Crops(keys=keys, sha256=list(hashes), pixels=np.stack(pixels), shape_mask=np.stack(masks), concepts=np.array(concepts, np.int64))
