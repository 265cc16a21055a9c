"""Lists of the tiny recipe: the datasets of smol in the same formats, generated in about a second.

Owns the generated images (coloured shapes, 48 x 48), tones, videos and questions. Input: a seed; output: list files by group and the
`media/` tree. It is data for tests: nothing learned from it means anything.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from infra.step import AnyloomError, StepContext
from pipelines.demo.clips import AUDIO_HZ, MOTIONS, encode_mp4, frames
from pipelines.demo.config import TinyListsConfig
from pipelines.demo.listfiles import draw_record, question_record, write_audiocaps, write_cc3m, write_instruct, write_webvid
from pipelines.demo.questions import Subject, write_questions

COLOURS = {
    "black": (20, 20, 20),
    "blue": (40, 60, 220),
    "brown": (130, 80, 40),
    "gray": (128, 128, 128),
    "green": (30, 160, 60),
    "red": (220, 40, 40),
    "teal": (0, 150, 150),
    "yellow": (240, 210, 40),
}
SHAPES = ("circle", "rectangle", "triangle")
TONES = {"low": 220.0, "middle": 440.0, "high": 880.0}
"""Hz."""
WAVES = ("sine", "square")
MAX_QUESTIONS = 18


@dataclass(frozen=True, slots=True)
class Shape:
    """What a generated image shows."""

    colour: str
    shape: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape}"


def run(ctx: StepContext[TinyListsConfig]) -> dict[str, Any]:
    """Write all lists. Returns rows per dataset; nothing is ever left out."""
    config = ctx.config
    counts: dict[str, int] = {}
    train = _images(ctx.output, "easyvqa/train", config.easyvqa_train, config)
    test = _images(ctx.output, "easyvqa/test", config.easyvqa_test, config)
    counts["easyvqa_captions"] = write_cc3m(ctx.output, "easyvqa_captions", [(shape.caption, uri) for uri, shape in train])
    for split, images in (("train", train), ("test", test)):
        draws = random.Random(f"{config.seed} questions {split}")
        records, number = [], 0
        for position, (uri, shape) in enumerate(images):
            asked = [(number + i, question, answer) for i, (question, answer) in enumerate(questions(shape, config.questions, draws))]
            records.append(question_record(f"easyvqa_{split}_{position}", uri, asked))
            number += len(asked)
        counts[f"easyvqa_{split}"] = write_instruct(ctx.output, f"easyvqa_{split}", records)
    stamps = {}
    for split, size in (("train", config.stamps_train), ("heldout", config.stamps_heldout)):
        stamps[split] = _images(ctx.output, f"stamps/{split}", size, config)
        counts[f"stamps_{split}"] = write_cc3m(ctx.output, f"stamps_{split}", [(f"{s.caption.capitalize()}.", uri) for uri, s in stamps[split]])
    counts["draw_train"] = write_instruct(
        ctx.output,
        "draw_train",
        [draw_record(f"draw_{n}", shape.caption, uri, n) for n, (uri, shape) in enumerate((train + stamps["train"])[: config.draw_train])],
    )
    counts |= _videos(ctx.output, stamps, config)
    counts |= _audio(ctx.output, config)
    ctx.progress(1, 1, "done")
    return {"rows": dict(sorted(counts.items())), "left_out": []}


def questions(shape: Shape, count: int, draws: random.Random) -> list[tuple[str, str]]:
    """(question, answer)s about one image in easy-VQA's wording: the shape, the colour, then yes/no ones."""
    if count > MAX_QUESTIONS:
        raise AnyloomError(f"tiny lists: {count} questions per image, at most {MAX_QUESTIONS} can differ; lower `questions`")
    out = [("what shape is present?", shape.shape), (f"what color is the {shape.shape}?", shape.colour)]
    while len(out) < count:
        word = draws.choice((shape.shape, draws.choice(SHAPES), f"{shape.colour} shape", f"{draws.choice(sorted(COLOURS))} shape"))
        negated = draws.random() < 0.5
        question = f"is there not a {word} in the image?" if negated else f"is there a {word}?"
        inside = word in (shape.shape, f"{shape.colour} shape")
        if question not in [asked for asked, _ in out]:
            out.append((question, "yes" if inside != negated else "no"))
    return out[:count]


def image_of(shape: Shape, side: int, draws: random.Random) -> Image.Image:
    """side x side RGB: the shape at a random place and size on a light background."""
    background = tuple(draws.randrange(232, 256) for _ in range(3))
    image = Image.new("RGB", (side, side), background)
    radius = draws.uniform(0.18, 0.34) * side
    x, y = (draws.uniform(radius, side - radius) for _ in range(2))
    draw, fill = ImageDraw.Draw(image), COLOURS[shape.colour]
    if shape.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape.shape == "rectangle":
        draw.rectangle((x - radius, y - 0.6 * radius, x + radius, y + 0.6 * radius), fill=fill)
    else:
        draw.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=fill)
    return image


def tone(pitch_hz: float, shape: str, seconds: float) -> bytes:
    """A 16 kHz mono Ogg FLAC file that fades in and out; the same bytes every time."""
    import av

    frame = av.AudioFrame.from_ndarray(_samples(pitch_hz, shape, seconds)[None], format="s16", layout="mono")
    frame.sample_rate = AUDIO_HZ
    out = io.BytesIO()
    with av.open(out, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=AUDIO_HZ, layout="mono")
        assert isinstance(stream, av.AudioStream)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            if packet.size:  # FLAC's last packet only repeats the header, which Ogg cannot hold
                container.mux(packet)
    return out.getvalue()


def _samples(pitch_hz: float, shape: str, seconds: float) -> np.ndarray:
    """int16 samples of a tone at AUDIO_HZ."""
    times = np.arange(int(seconds * AUDIO_HZ)) / AUDIO_HZ
    samples = np.sin(2 * np.pi * pitch_hz * times)
    if shape == "square":
        samples = np.copysign(0.5, samples)
    return (12_000 * samples * np.minimum(1.0, 10 * np.minimum(times, seconds - times) / seconds)).astype(np.int16)


def _images(output: Path, folder: str, count: int, config: TinyListsConfig) -> list[tuple[str, Shape]]:
    """`count` images with their uris; colours and shapes in turn, so that every pair appears."""
    draws = random.Random(f"{config.seed} {folder}")
    pairs = [Shape(colour, shape) for colour in sorted(COLOURS) for shape in SHAPES]
    draws.shuffle(pairs)
    out = []
    for number in range(count):
        shape, uri = pairs[number % len(pairs)], f"media/{folder}/{number}.png"
        encoded = io.BytesIO()
        image_of(shape, config.side, draws).save(encoded, "PNG")
        _write(output / uri, encoded.getvalue())
        out.append((uri, shape))
    return out


def _videos(output: Path, stamps: dict[str, list[tuple[str, Shape]]], config: TinyListsConfig) -> dict[str, int]:
    """Half-second videos of the stamps of the same split, in motion; every other one with a tone."""
    counts, pitches = {}, tuple(TONES.values())
    for split, size in (("train", config.clips_train), ("heldout", config.clips_heldout)):
        rows, shown = [], []
        for number in range(size):
            uri, shape = stamps[split][number % len(stamps[split])]
            motion, name = MOTIONS[number % len(MOTIONS)], f"{split}_{number:03d}"
            audio = None if number % 2 else _samples(pitches[number // 2 % len(pitches)], "sine", 0.5)
            with Image.open(output / uri) as opened:
                _write(output / "media" / "clips" / f"{name}.mp4", encode_mp4(frames(opened, motion, 6, 2 * config.side), 12, audio))
            rows.append((name, f"media/clips/{name}.mp4", 1, f"{shape.caption}, {motion}"))
            shown.append(Subject(what="clip", stem=name, uri=f"media/clips/{name}.mp4", name=shape.caption, motion=motion))
        counts[f"clips_{split}"] = write_webvid(output, f"clips_{split}", rows)
        if config.media_questions:
            counts[f"clips_questions_{split}"] = write_questions(output, f"clips_questions_{split}", shown)
    return counts


def _audio(output: Path, config: TinyListsConfig) -> dict[str, int]:
    """Tones; those of the two splits differ in length, so no file is in both."""
    kinds: Sequence[tuple[str, str]] = [(pitch, shape) for pitch in TONES for shape in WAVES]
    counts = {}
    for split, size, base_s in (("train", config.sounds_train, 0.40), ("heldout", config.sounds_heldout, 0.35)):
        rows, heard = [], []
        for number in range(size):
            pitch, shape = kinds[number % len(kinds)]
            name = f"{split}_{number:03d}"
            _write(output / "media" / "audio" / f"{name}.ogg", tone(TONES[pitch], shape, base_s + 0.02 * number))
            rows.append((name, f"the sound of a {pitch} {shape} tone"))
            heard.append(Subject(what="sound", stem=name, uri=f"media/audio/{name}.ogg", name=f"a {pitch} {shape} tone"))
        counts[f"sounds_{split}"] = write_audiocaps(output, f"sounds_{split}", rows)
        if config.media_questions:
            counts[f"sounds_questions_{split}"] = write_questions(output, f"sounds_questions_{split}", heard)
    return counts


def _write(path: Path, data: bytes) -> None:
    """Plain write: the step's output directory is published as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
