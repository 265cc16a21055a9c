"""Questions about videos and audio clips: instruction records with short answers, each with its kind.

Owns what is asked of which medium and the choice of the other name in a yes/no question. Input: what each medium shows or lets hear; output: records
in the format of pipelines.readers.instruct, with `question_kinds` beside `question_ids` (ours; readers of the format ignore both).

Kinds: `yes/no` (its own name, and the name of another medium of the list), `name`, `motion` (videos) and `language` (voices). Every name is asked
for as often where the answer is yes as where it is no, in the same words: from a question's text alone its answer cannot be told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcore.chat.wordings import LANGUAGE, MOTION, NAME, WORDINGS, YES_NO
from pipelines.demo.listfiles import chance, question_record, write_instruct

MODALITY = {"clip": "video", "sound": "audio", "voice": "audio"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One medium that is asked about."""

    what: str
    """video, audio or voice."""
    stem: str
    """Its name in the list; decides the wordings."""
    uri: str
    name: str
    """What it shows or lets hear, as it stands in a sentence: `a frog`."""
    motion: str = ""
    """video: how the image moves."""
    language: str = ""
    """voice: what it speaks."""


def write_questions(root: Path, dataset: str, subjects: Sequence[Subject]) -> int:
    """Write the list of a dataset, one record per medium in the order of their stems; returns how many there are."""
    ordered = sorted(subjects, key=lambda subject: subject.stem)
    others = {stem: name for what in WORDINGS for stem, name in _others([s for s in ordered if s.what == what]).items()}
    records, number = [], 0
    for subject in ordered:
        asked = questions(subject, others.get(subject.stem))
        numbered = [(number + i, question, answer) for i, (_, question, answer) in enumerate(asked)]
        record = question_record(f"{dataset}_{subject.stem}", subject.uri, numbered, MODALITY[subject.what])
        records.append(record | {"question_kinds": [kind for kind, _, _ in asked]})
        number += len(asked)
    return write_instruct(root, dataset, records)


def questions(subject: Subject, other: str | None) -> list[tuple[str, str, str]]:
    """(kind, question, answer)s about one medium. other: the name that is asked for where the answer is no; None: no yes/no questions."""
    found = []
    if other is not None:
        pair = [(YES_NO, _worded(subject, YES_NO, name), answer) for name, answer in ((subject.name, "yes"), (other, "no"))]
        found += pair if chance(f"yes first {subject.stem}") < 0.5 else pair[::-1]
    answers: dict[str, str] = {NAME: subject.name, MOTION: subject.motion, LANGUAGE: subject.language}
    return found + [(kind, _worded(subject, kind), answer) for kind, answer in answers.items() if answer]


def other_names(names: Sequence[str]) -> list[str] | None:
    """For each name another one, such that all of them together are the same names again; None when one of them is more than half of all.

    Equal names stand together, in an order given by their hashes; everybody takes the name that stands as many places further as the most
    frequent name has places.
    """
    counts = Counter(names)
    largest = max(counts.values(), default=0)
    if 2 * largest > len(names) or len(counts) < 2:
        return None
    order = sorted(range(len(names)), key=lambda i: (chance(f"other name {names[i]}"), names[i], i))
    found = list(names)
    for place, i in enumerate(order):
        found[i] = names[order[(place + largest) % len(order)]]
    return found


def _others(subjects: Sequence[Subject]) -> dict[str, str]:
    """stem -> the other name."""
    names = other_names([subject.name for subject in subjects])
    return {} if names is None else {subject.stem: name for subject, name in zip(subjects, names, strict=True)}


def _worded(subject: Subject, kind: str, name: str = "") -> str:
    """The wording of a yes/no question depends on the name in it alone, so that its yes and its no are asked in the same words."""
    wordings = WORDINGS[subject.what][kind]
    return wordings[int(chance(f"wording {kind} {name or subject.stem}") * len(wordings))].format(name)
