"""Suite rows: the questions of a task's Parquet files, what is right, and which of them belong together.

Owns Doc, the draw of whole groups and images, and our own score of an answer. Input: Parquet files in an official schema; output: Docs in the order of
the rows.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.suites.catalogue import SuiteTask
from evals.suites.hub_parquet import image_hashes, rows_without_images
from evals.suites.reading import Scored, score_choice, score_exact, score_vqa, score_yes_no
from evals.suites.stand_ins import ROTATION
from infra.step import AnyloomError

SUBGROUPS = ("answer_type", "L2-category", "data_type", "question_type", "category")
"""Columns that say of which kind a question is; the first that a task has counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doc:
    """One row of a task's data."""

    row: int
    """Its number in the files."""
    doc_key: str
    """`<task>-<id>`: stable whatever is drawn; no other row has it."""
    question_id: int
    group: int
    """Rows of one group are rotations of one question."""
    image: str
    """sha256 of its image's bytes; "" without one."""
    num_images: int
    """How many it has."""
    question: str
    kind: str
    """Subgroup."""
    answers: tuple[str, ...]
    """What is right: one, or one per annotator."""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The right answer in words: of several annotators' the most frequent one, alphabetically first."""
        return min(self.answers, key=lambda answer: (-self.answers.count(answer), answer), default="")


def read_docs(task: SuiteTask, files: Sequence[Path]) -> list[Doc]:
    """Every row, in order. Raises AnyloomError naming a column that is missing, a row that is not as it should be, or two rows of one name."""
    rows = rows_without_images(files)
    names = row_names(task, rows)
    docs = []
    for number, (row, (image, num_images)) in enumerate(zip(rows, image_hashes(files), strict=True)):
        try:
            docs.append(_doc(task, number, names[number], row, image, num_images))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            told = f"{type(error).__name__}: {error}"
            raise AnyloomError(f"{task.lmms_task} row {number} is not in the official schema ({told}): prepare the suite again") from error
    return docs


def key_columns(task: SuiteTask, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of a file by which its rows are told apart; () where rows have their number only."""
    return task.key or next(((column,) for column in ("index", "question_id", "id") if column in columns), ())


def row_names(task: SuiteTask, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each row is called. Raises AnyloomError when two rows have one name: their answers could not be told apart when runs are compared."""
    columns = key_columns(task, list(rows[0]) if rows else [])
    names = ["-".join(str(row.get(column)) for column in columns) or str(number) for number, row in enumerate(rows)]
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if first.setdefault(name, number) != number:
            raise AnyloomError(f"{task.lmms_task} rows {first[name]} and {number} have the same {' and '.join(columns)} ({name}): take the files of {task.hub}")
    return names


def _doc(task: SuiteTask, number: int, key: str, row: Mapping[str, Any], image: str, num_images: int) -> Doc:
    name = row.get("index", row.get("question_id", row.get("id", number)))
    options, answers = _options(row), _answers(row)
    index = int(row["index"]) if task.rotations else number
    kind = next((str(row[column]) for column in SUBGROUPS if row.get(column)), "all")
    return Doc(
        row=number,
        doc_key=f"{task.lmms_task}-{key}",
        question_id=int(name) if isinstance(name, int) else number,
        group=index % ROTATION if task.rotations else number,
        image=image,
        num_images=num_images,
        question=str(row.get("question", "")),
        kind=kind,
        answers=answers,
        options=options,
    )


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """letter -> option, of the shapes of MMBench, SEED-Bench and MMMU; none for an open question."""
    if "choice_a" in row:
        return {letter: str(row[f"choice_{letter.lower()}"]) for letter in "ABCD"}
    if "options" in row:
        listed = ast.literal_eval(row["options"]) if row.get("question_type") != "open" else []
        return {chr(ord("A") + place): str(option) for place, option in enumerate(listed)}
    return {letter: str(row[letter]) for letter in "ABCDE" if row.get(letter) not in (None, "", "nan")} if "A" in row else {}


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The annotators' answers, or the one that is right."""
    if row.get("answers") is not None:
        return tuple(answer["answer"] if isinstance(answer, dict) else str(answer) for answer in row["answers"])
    answer = row.get("answer", row.get("gpt_answer"))
    if isinstance(answer, str) and answer.startswith("[") and row.get("question_type") == "open":
        answer = ast.literal_eval(answer)
    return tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)


def own_score(reading: str, doc: Doc, prediction: str) -> Scored:
    """Our own score of an answer to a Doc (evals.suites.reading). reading: of the task."""
    if reading == "choice" and doc.options:
        return score_choice(prediction, doc.options, doc.answers[0])
    if reading == "yes_no":
        return score_yes_no(prediction, doc.answers[0])
    if reading == "vqa":
        return score_vqa(prediction, doc.answers)
    return max((score_exact(prediction, answer) for answer in doc.answers), key=lambda scored: scored.score)


def askable(docs: Sequence[Doc]) -> tuple[list[Doc], dict[str, int]]:
    """(Docs that the model can be asked, why the others are left out -> how many): it takes one image per question."""
    kept = [doc for doc in docs if doc.num_images <= 1]
    left = len(docs) - len(kept)
    return kept, {"more than one picture": left} if left else {}


def clustered(docs: Sequence[Doc]) -> list[str]:
    """Cluster of every Doc: rows that share an image or a group, directly or through others, are in one."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    def names(doc: Doc) -> list[str]:
        return [f"group {doc.group}", *([f"picture {doc.image}"] if doc.image else [])]

    for doc in docs:
        first, *others = (find(name) for name in names(doc))
        for other in others:
            leader[max(first, other)] = min(first, other)
    return [find(names(doc)[0]) for doc in docs]


def draw_docs(docs: list[Doc], num_questions: int, seed: int) -> list[Doc]:
    """A seeded random draw of whole clusters until there are at least `num_questions` rows, in their order. 0, or no fewer than there are: all.

    Raises AnyloomError for a negative number.
    """
    if num_questions < 0:
        raise AnyloomError(f"suite num_questions is {num_questions}: give the number of questions to ask of each task, or 0 for all")
    if num_questions == 0 or num_questions >= len(docs):
        return docs
    import numpy as np

    clusters = clustered(docs)
    sizes: dict[str, int] = {}
    for cluster in clusters:
        sizes[cluster] = sizes.get(cluster, 0) + 1
    names, drawn, count = list(sizes), set(), 0
    for place in np.random.default_rng(seed).permutation(len(names)):
        if count >= num_questions:
            break
        drawn.add(names[int(place)])
        count += sizes[names[int(place)]]
    return [doc for doc, cluster in zip(docs, clusters, strict=True) if cluster in drawn]


def renumbered(docs: Sequence[Doc]) -> list[Doc]:
    """The same Docs as rows of a file that holds only them."""
    return [replace(doc, row=place) for place, doc in enumerate(docs)]


def whole_groups(task: SuiteTask, docs: Sequence[Doc]) -> None:
    """Raises AnyloomError when a group of rotations lacks its base row (the harness would leave the group out) or has a rotation twice."""
    seen: dict[int, list[int]] = {}
    for doc in docs if task.rotations else ():
        seen.setdefault(doc.group, []).append(doc.question_id // ROTATION)
    for group, turns in seen.items():
        if 0 not in turns or len(set(turns)) != len(turns):
            told = json.dumps(sorted(turns))
            raise AnyloomError(f"{task.lmms_task}: question {group} has the rotations {told}: every group needs its base row and each rotation once")
