"""Instruction lists: a JSON list of LLaVA or NExT-GPT records.

Input: records with `conversations` [{from: human|gpt, value}], input media `image|video|audio` or `input_image|input_video|input_audio`, output
media `output_image|output_video|output_audio` (a uri or a list of uris), captions `image_captions|video_captions|audio_captions`;
other fields are ignored. Output: one Row per record.

Placeholders `<image>`, `<video>`, `<audio>` stand in human turns for input media and in gpt turns for output media: their numbers must agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.step import AnyloomError
from pipelines.readers.rows import DEFAULTS, Media, ReadOptions, Row, place, read_text

MODALITIES = ("image", "video", "audio")
SPEAKERS = ("human", "gpt")
FIELDS = {"input": ("{}", "input_{}"), "output": ("output_{}",)}


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order. Raises AnyloomError naming file, record (counted from 0) and field."""
    try:
        records = json.loads(read_text(list_path))
    except json.JSONDecodeError as error:
        raise AnyloomError(f"{list_path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); repair the file") from None
    except (ValueError, RecursionError) as error:
        raise AnyloomError(f"{list_path}: not usable JSON ({type(error).__name__}: {error}); repair the file") from None
    if not isinstance(records, list):
        raise AnyloomError(f"{list_path}: the top level is {_kind(records)}, expected a list of records; wrap it in [ ]")
    for number, record in enumerate(records):
        where = f"{list_path}, record {number}"
        if not isinstance(record, dict):
            raise AnyloomError(f"{where}: {_kind(record)}, expected an object with 'conversations'; correct the record")
        turns = _turns(record, where)
        media = _media(record, options, where)
        _check_placeholders(turns, media, where)
        captions = [text for m in MODALITIES for text in _strings(record, f"{m}_captions", where) if text.strip()]
        yield Row(media=media, texts=tuple(captions), conversations=turns)


def _turns(record: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    if "conversations" not in record:
        raise AnyloomError(f"{where}: field 'conversations' is missing; every record needs it")
    if not isinstance(record["conversations"], list):
        raise AnyloomError(f"{where}: field 'conversations' is {_kind(record['conversations'])}, expected a list of turns; correct the record")
    turns: list[tuple[str, str]] = []
    for position, turn in enumerate(record["conversations"]):
        here = f"{where}, field 'conversations', turn {position}"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise AnyloomError(f'{here}: expected {{"from": "human" or "gpt", "value": text}}; correct the turn')
        speaker = turn.get("from")
        if speaker not in SPEAKERS:
            raise AnyloomError(f"{here}: 'from' is {speaker!r}, expected 'human' or 'gpt'; rename the speaker")
        if speaker != SPEAKERS[position % 2]:
            raise AnyloomError(
                f"{here}: 'from' is {speaker!r}, expected {SPEAKERS[position % 2]!r}: turns alternate and human begins; merge or reorder the turns"
            )
        turns.append((speaker, _encodable(turn["value"], here)))
    if turns and turns[-1][0] != "gpt":
        raise AnyloomError(f"{where}, field 'conversations': the last turn is 'human', there is nothing to learn from; add the answer")
    return tuple(turns)


def _media(record: dict[str, Any], options: ReadOptions, where: str) -> tuple[Media, ...]:
    out = []
    for role, patterns in FIELDS.items():
        for modality in MODALITIES:
            present = [p.format(modality) for p in patterns if record.get(p.format(modality)) not in (None, "", [])]
            if len(present) > 1:
                raise AnyloomError(f"{where}: both '{present[0]}' and '{present[1]}' are set; keep one of them")
            for field in present:
                for uri in _strings(record, field, where):
                    if not uri.strip():
                        raise AnyloomError(f"{where}: field '{field}' holds an empty uri; name the file or remove the field")
                    out.append(Media(role=role, modality=modality, uri=place(options.media_template, {"uri": uri}, uri.strip(), where)))
    return tuple(out)


def _check_placeholders(turns: tuple[tuple[str, str], ...], media: tuple[Media, ...], where: str) -> None:
    """As many placeholders as media, per role and modality. Raises AnyloomError with both counts."""
    for role, speaker in (("input", "human"), ("output", "gpt")):
        for modality in MODALITIES:
            marks = sum(value.count(f"<{modality}>") for who, value in turns if who == speaker)
            files = sum(m.role == role and m.modality == modality for m in media)
            if turns and marks != files:
                raise AnyloomError(f"{where}: {marks} <{modality}> in the {speaker} turns but {files} {role} {modality} files; make them agree")


def _strings(record: dict[str, Any], field: str, where: str) -> list[str]:
    value = record.get(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in values):
        raise AnyloomError(f"{where}: field '{field}' is {_kind(value)}, expected a text or a list of texts; correct the record")
    return [_encodable(item, f"{where}, field '{field}'") for item in values]


def _encodable(text: str, where: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AnyloomError(f"{where}: holds half a character (an escape like \\ud83d alone); correct the text") from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
