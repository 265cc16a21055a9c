"""Instruction lists: a JSON list of LLaVA or NExT-GPT records, or one record per line in a file that is called *.jsonl.

Input: records with `conversations` [{from: human|gpt, value}] (a turn of `system` may stand before them), input media `image|video|audio` or
`input_image|input_video|input_audio`, output media `output_image|output_video|output_audio` (a uri or a list of uris), captions
`image_captions|video_captions|audio_captions`; other fields are ignored. Output: one Row per record; a record that does not fit is a Row that says why.

Placeholders `<image>`, `<video>`, `<audio>` stand in human turns for input media and in gpt turns for output media; names that belong to no medium are words
(mmcore.chat.places). Raises AnyloomError for a file that is no JSON list, or of which no line is a record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.step import AnyloomError
from mmcore.chat.places import Misfit
from mmcore.chat.records import GPT, HUMAN, SYSTEM, says_nothing, talk_of
from pipelines.readers.rows import BAD_RECORD, DEFAULTS, NOT_UTF8, BadLine, Media, ReadOptions, Row, check_characters, place, read_text, refused, some_readable

MODALITIES = ("image", "video", "audio")
SPEAKERS = (HUMAN, GPT, SYSTEM)
FIELDS = {"input": ("{}", "input_{}"), "output": ("output_{}",)}
LINES = ".jsonl"
"""Ending of a list with one record per line."""


def read(list_path: Path, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Rows in file order; a record that does not fit is refused, naming field and turn, and so is a line that is not JSON. Raises AnyloomError for a file that
    is no such list."""
    text = read_text(list_path)
    if list_path.suffix.lower() == LINES:
        yield from some_readable(list_path, _rows_of_lines(list_path, text, options))
        return
    for number, record in enumerate(_records(list_path, text)):
        try:
            yield _row(record, options, f"{list_path}, record {number}")
        except Misfit as misfit:
            yield Row(refused=(misfit.reason, f"{list_path.name}, record {number}: {misfit.detail}"))


def _rows_of_lines(list_path: Path, text: str, options: ReadOptions) -> Iterator[Row]:
    for line, said in enumerate(text.split("\n"), 1):
        if not said.strip():
            continue
        try:
            check_characters(said)
            yield _row(json.loads(said), options, f"{list_path}, line {line}")
        except Misfit as misfit:
            yield Row(refused=(misfit.reason, f"{list_path.name}, line {line}: {misfit.detail}"))
        except BadLine as bad:
            yield refused(list_path, line, str(bad))
        except (ValueError, RecursionError) as error:
            yield refused(list_path, line, f"not usable JSON ({' '.join(str(error).split())[:100]}); repair the line")


def _records(list_path: Path, text: str) -> list[Any]:
    """The records of a JSON list. Raises AnyloomError for anything else."""
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        if not _encodes(text[max(0, error.pos - 40) : error.pos + 40]):
            raise AnyloomError(f"{list_path}, line {error.lineno}: {NOT_UTF8}") from None
        raise AnyloomError(f"{list_path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); repair the file") from None
    except (ValueError, RecursionError) as error:
        raise AnyloomError(f"{list_path}: not usable JSON ({type(error).__name__}: {error}); repair the file") from None
    if not isinstance(records, list):
        raise AnyloomError(f"{list_path}: the top level is {_kind(records)}, expected a list of records; wrap it in [ ]")
    return records


def _row(record: Any, options: ReadOptions, where: str) -> Row:
    """One record. Raises Misfit for one that does not fit, AnyloomError for a media template that does not fit the list."""
    if not isinstance(record, dict):
        raise Misfit(BAD_RECORD, f"{_kind(record)}, expected an object with 'conversations'; correct the record")
    turns = _turns(record)
    media = _media(record, options, where)
    inputs, outputs = (Counter(medium.modality for medium in media if medium.role == role) for role in ("input", "output"))
    talk_of(turns, inputs, outputs)
    captions = [text for m in MODALITIES for text in _strings(record, f"{m}_captions") if not says_nothing(text)]
    return Row(media=media, texts=tuple(captions), conversations=turns)


def _turns(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if "conversations" not in record:
        raise Misfit(BAD_RECORD, "field 'conversations' is missing; every record needs it")
    if not isinstance(record["conversations"], list):
        raise Misfit(BAD_RECORD, f"field 'conversations' is {_kind(record['conversations'])}, expected a list of turns; correct the record")
    turns: list[tuple[str, str]] = []
    for position, turn in enumerate(record["conversations"]):
        here = f"field 'conversations', turn {position}"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise Misfit(BAD_RECORD, f'{here}: expected {{"from": "human" or "gpt", "value": text}}; correct the turn')
        if turn.get("from") not in SPEAKERS:
            raise Misfit(BAD_RECORD, f"{here}: 'from' is {turn.get('from')!r}, expected 'human' or 'gpt'; rename the speaker")
        turns.append((turn["from"], _encodable(turn["value"], here)))
    return tuple(turns)


def _media(record: dict[str, Any], options: ReadOptions, where: str) -> tuple[Media, ...]:
    out = []
    for role, patterns in FIELDS.items():
        for modality in MODALITIES:
            present = [p.format(modality) for p in patterns if record.get(p.format(modality)) not in (None, "", [])]
            if len(present) > 1:
                raise Misfit(BAD_RECORD, f"both '{present[0]}' and '{present[1]}' are set; keep one of them")
            for field in present:
                for uri in _strings(record, field):
                    if not uri.strip():
                        raise Misfit(BAD_RECORD, f"field '{field}' holds an empty uri; name the file or remove the field")
                    out.append(Media(role=role, modality=modality, uri=place(options, {"uri": uri}, uri.strip(), where)))
    return tuple(out)


def _strings(record: dict[str, Any], field: str) -> list[str]:
    value = record.get(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in values):
        raise Misfit(BAD_RECORD, f"field '{field}' is {_kind(value)}, expected a text or a list of texts; correct the record")
    return [_encodable(item, f"field '{field}'") for item in values]


def _encodable(text: str, where: str) -> str:
    """JSON can spell half a character (a lone surrogate), and a file can hold bytes that are none; no file of ours takes either."""
    if not _encodes(text):
        raise Misfit(BAD_RECORD, f"{where}: holds half a character (an escape like \\ud83d alone) or bytes that are not UTF-8; correct the text")
    return text


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
