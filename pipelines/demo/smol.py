"""Lists of the smol recipe: real images, audio clips and questions in the formats of CC3M, WebVid, AudioCaps and NExT-GPT.

Owns which asset goes into which dataset, the hold-out and the captions. Input: the `assets` artifact; output: list files by group and
the `media/` tree they point to.

Hold-out: images that share a caption or their bytes form a group; a group goes to one side by a hash of its captions, and takes
its videos, audio clips and spoken descriptions along, and the questions about them. Captions of easy-VQA images say only what the training questions
affirm.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from infra.step import StepContext
from infra.storage import link, write_atomic
from mmcore.concepts.shapes import CONCEPTS, PHRASES, SHAPES, affirmed, caption_of
from pipelines.demo.assets import spoken_name
from pipelines.demo.clips import MOTIONS, encode_mp4, frames
from pipelines.demo.config import SmolListsConfig
from pipelines.demo.converse import converse_records
from pipelines.demo.listfiles import chance, draw_record, in_sentence, question_record, write_audiocaps, write_cc3m, write_instruct, write_webvid
from pipelines.demo.questions import Subject, write_questions
from pipelines.demo.spoken import write_spoken
from pipelines.demo.talk import TALK, talk_record

__all__ = ["SHAPES", "affirmed", "caption_of", "read_questions", "read_stamps", "run"]
Question = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class Stamp:
    """A captioned file of the stamps, without its suffix."""

    stem: str
    caption: str
    heldout: bool
    media: tuple[str, ...]
    """Suffixes present: png, ogg."""
    spoken: tuple[str, ...] = ()
    """Languages in which the caption is spoken."""

    @property
    def split(self) -> str:
        return "heldout" if self.heldout else "train"


def run(ctx: StepContext[SmolListsConfig]) -> dict[str, Any]:
    """Write all lists. Returns rows per dataset and what is left out."""
    config = ctx.config
    assets = ctx.inputs["assets"].path
    left_out: list[str] = []
    languages = tuple(code for code, _ in config.spoken)
    stamps = read_stamps(assets / "stamps", config.heldout, languages) if (assets / "stamps").is_dir() else []
    if not stamps:
        left_out.append("no stamps: stamps_* and sounds_* are empty, clips_* show easy-VQA training pictures")
    ctx.progress(0.05, 1, "easy-VQA")
    train, test = (read_questions(assets / "easy_vqa" / split) for split in ("train", "test"))
    train = {n: train[n] for n in sorted(sorted(train, key=lambda n: (chance(f"easyvqa {n}"), n))[: config.pictures])}
    captions = {image: caption_of(questions) for image, questions in train.items()}
    counts = _easy_vqa(ctx, assets, train, test, captions)
    ctx.progress(0.2, 1, "stamps")
    counts |= _stamps(ctx.output, assets, stamps, config)
    counts["talk_train"] = write_instruct(ctx.output, "talk_train", [talk_record(number) for number in range(len(TALK))])
    counts["draw_train"] = _draw(ctx.output, stamps, captions, config)
    counts |= _videos(ctx, _video_images(assets, stamps, captions, config), config)
    voice = assets / "voice"
    if not voice.is_dir():
        left_out.append("no voice: spoken_train and speak_train are empty")
    counts |= write_spoken(ctx.output, voice if voice.is_dir() else None, config.speak_per_caption, config.restate)
    known = {number: caption for number, caption in captions.items() if caption}
    shown = {number: train[number] for number in known}
    uris = {number: _image("train", number) for number in known}
    conversations = converse_records(shown, known, uris, config.converse_per_concept, voice.is_dir(), config.restate)
    counts["converse_train"] = write_instruct(ctx.output, "converse_train", conversations)
    unknown = sum(caption == "" for caption in captions.values())
    if unknown:
        left_out.append(f"easyvqa_captions: {unknown} pictures whose questions affirm neither shape nor colour")
    return {"rows": dict(sorted(counts.items())), "left_out": left_out}


# ---- easy-VQA -------------------------------------------------------------------------------------------------------


def read_questions(folder: Path) -> dict[int, list[Question]]:
    """Image number -> its (line number in questions.json, question, answer)s, both in the file's order."""
    out: dict[int, list[Question]] = defaultdict(list)
    for number, (question, answer, image) in enumerate(json.loads((folder / "questions.json").read_text(encoding="utf-8"))):
        out[image].append((number, question, answer))
    return dict(sorted(out.items()))


def _image(split: str, number: int) -> str:
    return f"media/easyvqa/{split}/{number}.png"


def _easy_vqa(
    ctx: StepContext[SmolListsConfig], assets: Path, train: dict[int, list[Question]], test: dict[int, list[Question]], captions: dict[int, str]
) -> dict[str, int]:
    for split, questions in (("train", train), ("test", test)):
        for number in questions:
            link(assets / "easy_vqa" / split / "images" / f"{number}.png", ctx.output / _image(split, number))
    counts = {"easyvqa_captions": write_cc3m(ctx.output, "easyvqa_captions", [(c, _image("train", n)) for n, c in captions.items() if c])}
    for split, questions in (("train", train), ("test", test)):
        records = [question_record(f"easyvqa_{split}_{n}", _image(split, n), asked) for n, asked in questions.items()]
        counts[f"easyvqa_{split}"] = write_instruct(ctx.output, f"easyvqa_{split}", records)
    return counts


# ---- stamps ---------------------------------------------------------------------------------------------------------


def read_stamps(root: Path, heldout: float, languages: tuple[str, ...] = ()) -> list[Stamp]:
    """Every captioned stamp, sorted by path, with its side of the hold-out."""
    found = []
    for text in sorted(root.rglob("*.txt")):
        with open(text, encoding="utf-8-sig") as handle:
            caption = " ".join(handle.readline().split())
        media = tuple(suffix for suffix in ("png", "ogg") if text.with_suffix(f".{suffix}").is_file())
        if caption and media:
            found.append((text.relative_to(root).with_suffix("").as_posix(), caption, media))
    group = _groups(root, found)
    return [
        Stamp(
            stem,
            caption,
            chance("heldout " + group[stem]) < heldout,
            media,
            tuple(language for language in languages if (root / spoken_name(stem, language)).is_file()),
        )
        for stem, caption, media in found
    ]


def _groups(root: Path, found: list[tuple[str, str, tuple[str, ...]]]) -> dict[str, str]:
    """stem -> name of its group: stamps with the same caption or the same image bytes are one group (named by its lowest caption)."""
    parent: dict[str, str] = {}

    def leader(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for stem, caption, media in found:
        tokens = ["c " + caption.casefold()]
        tokens += [f"p {hashlib.sha256((root / f'{stem}.{suffix}').read_bytes()).hexdigest()}" for suffix in media]
        roots = sorted(leader(token) for token in tokens)
        for other in roots[1:]:
            parent[other] = roots[0]
    return {stem: leader("c " + caption.casefold()) for stem, caption, _ in found}


def is_noun_phrase(caption: str, max_words: int) -> bool:
    """Short enough to stand inside a sentence, and a thing rather than a statement: "A frog.", not "Remember to flush!"."""
    inner = caption.rstrip(".!")
    return caption.split(" ")[0] in ("A", "An", "The") and len(caption.split()) <= max_words and not re.search(r"[.!?;:] ", inner)


def _flat(stem: str) -> str:
    return stem.replace("/", "__")


def _stamps(output: Path, assets: Path, stamps: list[Stamp], config: SmolListsConfig) -> dict[str, int]:
    counts = {}
    for split in ("train", "heldout"):
        mine = [stamp for stamp in stamps if stamp.split == split]
        images = [stamp for stamp in mine if "png" in stamp.media]
        effects = [stamp for stamp in mine if "ogg" in stamp.media and is_noun_phrase(stamp.caption, config.max_words)]
        voices = _spoken(stamps, split, config)
        audio = [(f"{s.stem}.ogg", f"the sound of {in_sentence(s.caption)}") for s in effects]
        audio += [(name, f"a voice names {what} in {language}") for name, what, language in voices]
        for stamp in images:
            link(assets / "stamps" / f"{stamp.stem}.png", output / "media" / "stamps" / f"{stamp.stem}.png")
        for name, _ in audio:
            link(assets / "stamps" / name, output / "media" / "audio" / _flat(name))
        counts[f"stamps_{split}"] = write_cc3m(output, f"stamps_{split}", [(s.caption, f"media/stamps/{s.stem}.png") for s in images])
        counts[f"sounds_{split}"] = write_audiocaps(output, f"sounds_{split}", [(_flat(n).removesuffix(".ogg"), c) for n, c in audio])
        if config.media_questions:
            asked = [_heard("sound", f"{s.stem}.ogg", in_sentence(s.caption)) for s in effects] + [_heard("voice", *voice) for voice in voices]
            counts[f"sounds_questions_{split}"] = write_questions(output, f"sounds_questions_{split}", asked)
    return counts


def _heard(what: str, name: str, thing: str, language: str = "") -> Subject:
    """An audio clip that is asked about. name: its file among the stamps."""
    return Subject(what=what, stem=_flat(name).removesuffix(".ogg"), uri=f"media/audio/{_flat(name)}", name=thing, language=language)


def _spoken(stamps: list[Stamp], split: str, config: SmolListsConfig) -> list[tuple[str, str, str]]:
    """(file, what it names, language) of the spoken descriptions of one split; of each language the same stamps whatever is added elsewhere."""
    found = []
    for code, language in config.spoken:
        named = [s for s in stamps if code in s.spoken and is_noun_phrase(s.caption, config.max_words)]
        chosen = sorted(named, key=lambda s: (chance(f"spoken {code} {s.stem}"), s.stem))[: config.spoken_each]
        found += [(spoken_name(s.stem, code), in_sentence(s.caption), language) for s in chosen if s.split == split]
    return sorted(found)


def _draw(output: Path, stamps: list[Stamp], captions: dict[int, str], config: SmolListsConfig) -> int:
    """Requests for easy-VQA shapes (each caption in turn with its images; half of them say it in other words) and for the stamps of the training side."""
    by_caption: dict[str, list[int]] = defaultdict(list)
    for number, caption in captions.items():
        if " " in caption and not caption.endswith("shape"):
            by_caption[caption].append(number)
    said = {concept.caption: tuple(map(concept.worded, PHRASES)) for concept in CONCEPTS}
    wanted = [
        (caption, _image("train", numbers[turn % len(numbers)]), said[caption][turn // 2 % len(PHRASES)] if turn % 2 and caption in said else "")
        for caption, numbers in sorted(by_caption.items())
        for turn in range(config.draw_per_caption)
    ]
    wanted += [
        (in_sentence(s.caption), f"media/stamps/{s.stem}.png", "")
        for s in stamps
        if not s.heldout and "png" in s.media and is_noun_phrase(s.caption, config.max_words)
    ]
    records = [draw_record(f"draw_{n}", caption, uri, n + n // 2, said=words, restate=config.restate) for n, (caption, uri, words) in enumerate(wanted)]
    return write_instruct(output, "draw_train", records)


# ---- videos ----------------------------------------------------------------------------------------------------------


def _video_images(assets: Path, stamps: list[Stamp], captions: dict[int, str], config: SmolListsConfig) -> list[tuple[str, Path, str, str]]:
    """(name, image, caption inside a sentence, split) of each video, in an order given by a hash of the name."""
    images = [
        (_flat(s.stem), assets / "stamps" / f"{s.stem}.png", in_sentence(s.caption), s.split)
        for s in stamps
        if "png" in s.media and is_noun_phrase(s.caption, config.max_words)
    ]
    if not stamps:
        images = [
            (f"easyvqa_{n}", assets / "easy_vqa" / "train" / "images" / f"{n}.png", caption, "heldout" if chance(f"clip {n}") < config.heldout else "train")
            for n, caption in captions.items()
            if caption
        ]
    return sorted(images, key=lambda item: (chance("clip order " + item[0]), item[0]))[: config.clips]


def _videos(ctx: StepContext[SmolListsConfig], images: list[tuple[str, Path, str, str]], config: SmolListsConfig) -> dict[str, int]:
    """Render every video (kept in ctx.work, so a killed run continues) and write the lists."""
    rows: dict[str, list[tuple[str, str, int, str]]] = {"train": [], "heldout": []}
    shown: dict[str, list[Subject]] = {"train": [], "heldout": []}
    seconds = round(config.clip_frames / config.clip_rate_hz)
    for number, (name, image, caption, split) in enumerate(images):
        ctx.progress(0.25 + 0.75 * number / len(images), 1, "videos")
        motion = MOTIONS[number % len(MOTIONS)]
        made = ctx.work / "clips" / f"{name}.mp4"
        if not made.exists():
            with Image.open(image) as opened:
                write_atomic(made, encode_mp4(frames(opened, motion, config.clip_frames, config.clip_side), config.clip_rate_hz))
        uri = f"media/clips/{name}.mp4"
        link(made, ctx.output / uri)
        rows[split].append((name, uri, seconds, f"{caption}, {motion}"))
        shown[split].append(Subject(what="clip", stem=name, uri=uri, name=caption, motion=motion))
    ctx.progress(1, 1, "done")
    counts = {f"clips_{split}": write_webvid(ctx.output, f"clips_{split}", sorted(found)) for split, found in rows.items()}
    if config.media_questions:
        counts |= {f"clips_questions_{split}": write_questions(ctx.output, f"clips_questions_{split}", found) for split, found in shown.items()}
    return counts
