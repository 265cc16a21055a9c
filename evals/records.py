"""Records: what a data set of instructions asks about single media, as its shards hold it.

Owns which records can be asked question by question. Input: shards_instruct and the name of a data set, whoever made its list. Output: records in the order
of the list, and those that are left out with their reasons: what the shards do not hold, what is no question about one medium, and media that an encoder cannot
take. Raises AnyloomError for damaged shards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evals.left_out import unwritten
from mmcore.chat.places import Misfit, asked_texts
from mmcore.chat.records import SYSTEM, talk_of
from mmcore.media.decode import MediaError
from mmcore.runtime.devices import is_of_one_medium, out_of_memory
from mmcore.stores.left_out import LeftOut
from mmcore.stores.shards import ShardSet

NO_MEDIUM, SEVERAL_MEDIA, GIVES_MEDIUM, NO_QUESTION, TOO_MANY = "no_medium", "several_media", "gives_medium", "no_question", "too_many_questions"
MOST = 1000
"""Questions of one record: their numbers are those of the record and of the question in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record with questions about one medium."""

    key: str
    """Sample key, `<dataset>-<row>`."""
    uri: str
    """Of the medium, as the list says it."""
    pairs: tuple[tuple[str, str], ...]
    """(question as a prompt, answer)s in order; every one is asked by itself."""

    @property
    def row(self) -> int:
        """Number in the list, from 0."""
        return int(self.key.rpartition("-")[2])


def asked_records(generation: Path, stores: Path, source: str, modality: str) -> tuple[list[Record], list[LeftOut]]:
    """(the records of a data set whose questions are about one medium of a modality; every other record). generation: directory of the shards."""
    shards = ShardSet(generation, stores)
    found: list[Record] = []
    left = unwritten(generation, source)
    for meta in shards.metas(shards.keys(source=source, duplicates=True)):
        try:
            found.append(_record(meta, modality))
        except Misfit as misfit:
            left.append(LeftOut(key=meta["key"], reason=misfit.reason, detail=misfit.detail))
    return found, sorted(left, key=lambda one: int(one.key.rpartition("-")[2]))


def taken(records: Sequence[Record], take: Callable[[Record], object]) -> tuple[list[Record], list[LeftOut]]:
    """(the records whose medium an encoder takes, the others). take: as for `attempt`; each medium is tried once."""
    kept, left = [], []
    refused: dict[str, MediaError | None] = {}
    for record in records:
        if record.uri not in refused:
            refused[record.uri] = attempt(partial(take, record))[1]
        problem = refused[record.uri]
        if problem is None:
            kept.append(record)
        else:
            left.append(LeftOut(key=record.key, reason=problem.reason, detail=problem.detail))
    return kept, left


def attempt(encode: Callable[[], Any]) -> tuple[Any, MediaError | None]:
    """(what `encode` gives, None), or (None, why the encoder cannot take the medium). Raises what says nothing about the medium, as too little memory."""
    try:
        return encode(), None
    except MediaError as error:
        return None, error
    except (RuntimeError, ValueError) as error:  # it decodes, but is too short for the encoder, say
        if out_of_memory(error) or not is_of_one_medium(error):
            raise
        return None, MediaError("not_encodable", f"the encoder cannot take it ({' '.join(str(error).split())[:160]})")


def _record(meta: Mapping[str, Any], modality: str) -> Record:
    """Raises Misfit for a sample that cannot be asked question by question."""
    inputs, outputs = (Counter(medium["modality"] for medium in meta["media"] if medium["role"] == role) for role in ("input", "output"))
    turns = meta["conversations"]
    turns = json.loads(turns) if isinstance(turns, str) else turns
    if outputs:
        raise Misfit(GIVES_MEDIUM, f"an answer gives a medium ({', '.join(outputs)}), which no score of texts can judge")
    if not inputs[modality]:
        raise Misfit(NO_MEDIUM, f"field {modality} is missing: a question needs one {modality}")
    if inputs.total() > 1:
        raise Misfit(SEVERAL_MEDIA, f"{inputs.total()} input media, a question is asked about one: split the record")
    talk_of([(turn["from"], turn["value"]) for turn in turns], inputs, outputs)
    if turns and turns[0]["from"] == SYSTEM:
        turns = turns[1:]
    if not turns:
        raise Misfit(NO_QUESTION, "field conversations is empty: there is nothing to ask")
    if len(turns) >= 2 * MOST:
        raise Misfit(TOO_MANY, f"{len(turns) // 2} questions in one record, fewer than {MOST} are asked: split it")
    texts = asked_texts([turn["value"] for turn in turns[::2]], modality)
    uri = next(medium["uri"] for medium in meta["media"] if medium["role"] == "input")
    return Record(key=meta["key"], uri=str(uri), pairs=tuple(zip(texts, (turn["value"].strip() for turn in turns[1::2]), strict=True)))
