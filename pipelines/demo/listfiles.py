"""List files: writes datasets in the formats the outside world uses (CC3M, WebVid, AudioCaps, NExT-GPT instructions).

Owns the columns and the escaping of those formats. Input: rows of strings; output: one list file per dataset, media uris relative to
the list root. The readers of the same formats are pipelines.readers.{cc3m,webvid,audiocaps,instruct}.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infra.storage import write_atomic
from mmcore.chat.wordings import REQUESTS
from pipelines.demo.config import QUESTIONS

GROUPS = {
    "cc3m": ("stamps_train", "stamps_heldout", "easyvqa_captions"),
    "webvid": ("clips_train", "clips_heldout"),
    "audiocaps": ("sounds_train", "sounds_heldout"),
    "instruct": ("easyvqa_train", "draw_train", "easyvqa_test"),
}
"""Every dataset of both recipes, by group; QUESTIONS are written for recipes that ask for them."""
ONLY_SMOL = {"audiocaps": ("spoken_train",), "instruct": ("speak_train", "talk_train", "converse_train")}
"""Those that smol has besides."""
SUFFIX = {"cc3m": "tsv", "webvid": "csv", "audiocaps": "csv", "instruct": "json"}


def list_path(root: Path, dataset: str) -> Path:
    """Where the list file of a dataset lies under the list root."""
    asked = [name for names in QUESTIONS.values() for name in names]
    group = "instruct" if dataset in asked else next(g for known in (GROUPS, ONLY_SMOL) for g, datasets in known.items() if dataset in datasets)
    return root / group / f"{dataset}.{SUFFIX[group]}"


def write_cc3m(root: Path, dataset: str, rows: Iterable[tuple[str, str]]) -> int:
    """rows: (caption, url). No header, no quoting: tabs and line ends inside a caption become spaces."""
    lines = [f"{' '.join(caption.split())}\t{url}\n" for caption, url in rows]
    write_atomic(list_path(root, dataset), "".join(lines))
    return len(lines)


def write_webvid(root: Path, dataset: str, rows: Iterable[tuple[str, str, int, str]]) -> int:
    """rows: (videoid, uri, duration in whole seconds, caption)."""
    return _write_csv(
        list_path(root, dataset),
        ("videoid", "contentUrl", "duration", "page_dir", "name"),
        [(video, uri, f"PT00H00M{seconds:02d}S", "000001_000050", name) for video, uri, seconds, name in rows],
    )


def write_audiocaps(root: Path, dataset: str, rows: Iterable[tuple[str, str]]) -> int:
    """rows: (stem of the audio file, caption)."""
    return _write_csv(
        list_path(root, dataset),
        ("audiocap_id", "youtube_id", "start_time", "caption"),
        [(str(number), stem, "0", caption) for number, (stem, caption) in enumerate(rows)],
    )


def write_instruct(root: Path, dataset: str, records: Sequence[dict[str, Any]]) -> int:
    """records: NExT-GPT style, one JSON list."""
    body = ",\n".join(json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records)
    write_atomic(list_path(root, dataset), f"[\n{body}\n]\n" if body else "[]\n")
    return len(records)


def question_record(identity: str, uri: str, questions: Sequence[tuple[int, str, str]], modality: str = "image") -> dict[str, Any]:
    """One image (or another medium) with its independent (question id, question, answer)s; question_ids is ours, readers of the format ignore it."""
    turns = []
    for position, (_, question, answer) in enumerate(questions):
        turns.append({"from": "human", "value": (f"<{modality}>\n" if position == 0 else "") + question})
        turns.append({"from": "gpt", "value": answer})
    return {"id": identity, modality: uri, "conversations": turns, "question_ids": [number for number, _, _ in questions]}


def draw_record(identity: str, caption: str, uri: str, phrase: int, modality: str = "image", said: str = "", restate: bool = False) -> dict[str, Any]:
    """A request for an image, or another medium; the answer is the placeholder that the model has to emit as a signal block.

    said: the caption in other words, for the request; "": as it stands in a sentence. restate: the answer says the caption before it.
    """
    wordings = REQUESTS[modality]
    request = wordings[phrase % len(wordings)].format(said or in_sentence(caption))
    return {
        "id": identity,
        f"output_{modality}": uri,
        f"{modality}_captions": [caption],
        "conversations": [{"from": "human", "value": request}, {"from": "gpt", "value": f"{caption if restate else ''}<{modality}>"}],
    }


def in_sentence(caption: str) -> str:
    """A caption that can stand inside a sentence: "A frog." -> "a frog"."""
    text = caption.strip().rstrip(".!").strip()
    first, _, rest = text.partition(" ")
    return f"{first.lower()} {rest}".strip() if first in ("A", "An", "The") else text


def chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: splits and orders that do not move when rows are added."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> int:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, out.getvalue())
    return len(rows)
