"""Suites: local question lists in VQAv2's shape.

Owns single questions about images and the Parquet file in VQAv2's column layout. Input: the records of a data set (evals.records) and their
images. Output: a file that lmms-eval's packaged task reads (evals.suites.task_files).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.records import MOST, Record
from infra.step import AnyloomError

COLOURS = frozenset("black blue brown gray green grey orange pink purple red teal white yellow".split())
SHAPES = frozenset("circle rectangle square triangle".split())
ANNOTATORS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionRow:
    """One question about one image."""

    doc_key: str
    """`<sample key>#<question>`: the sample key is `<dataset>-<row>`."""
    question_id: int
    image_id: int
    """Row of the list."""
    image: str
    """Uri as the list says it."""
    question: str
    answer: str

    @property
    def key(self) -> str:
        """Of the sample that holds its image."""
        return self.doc_key.rpartition("#")[0]


def answer_group(answer: str) -> str:
    """Subgroup of a question by its true answer: yes/no, shape, colour or other."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour" if answer in COLOURS else "other"


def questions_of(records: Iterable[Record]) -> list[QuestionRow]:
    """Every question of the records as its own, in their order."""
    return [
        QuestionRow(
            doc_key=f"{record.key}#{index}",
            question_id=record.row * MOST + index,
            image_id=record.row,
            image=record.uri,
            question=question,
            answer=answer,
        )
        for record in records
        for index, (question, answer) in enumerate(record.pairs)
    ]


def draw_questions(questions: list[QuestionRow], num_questions: int, seed: int) -> list[QuestionRow]:
    """A seeded random draw of whole images, with all their questions, until there are at least `num_questions`; in list order. 0, or no
    fewer than there are: all.

    Images, not questions, are drawn because intervals are clustered by image and questions share an image's prefix.
    Raises AnyloomError for a negative number.
    """
    if num_questions < 0:
        raise AnyloomError(f"eval num_questions is {num_questions}: give the number of questions to ask, or 0 for all")
    if num_questions == 0 or num_questions >= len(questions):
        return questions
    import numpy as np

    by_image: dict[str, int] = {}
    for question in questions:
        by_image[question.image] = by_image.get(question.image, 0) + 1
    images, drawn, count = list(by_image), set(), 0
    for index in np.random.default_rng(seed).permutation(len(images)):
        if count >= num_questions:
            break
        drawn.add(images[int(index)])
        count += by_image[images[int(index)]]
    return [question for question in questions if question.image in drawn]


def write_vqav2_parquet(questions: list[QuestionRow], media: Callable[[str], bytes], target: Path) -> None:
    """Write questions and their untouched image bytes in VQAv2's columns, readable by `datasets` with a decoded image. media: sample key -> bytes of its image.

    The ten annotators agree; each answer has its own answer_id because the scorer tells annotators apart by dict inequality.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = {key: media(key) for key in dict.fromkeys(question.key for question in questions)}
    columns = {
        "question_type": [" ".join(q.question.lower().split()[:2]) for q in questions],
        "multiple_choice_answer": [q.answer for q in questions],
        "answers": [[{"answer": q.answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(ANNOTATORS)] for q in questions],
        "image_id": [q.image_id for q in questions],
        "answer_type": ["yes/no" if q.answer in ("yes", "no") else "number" if q.answer.isdigit() else "other" for q in questions],
        "question_id": [q.question_id for q in questions],
        "question": [q.question for q in questions],
        "image": [{"bytes": images[q.key], "path": q.image} for q in questions],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=_vqav2_schema()), target, compression="zstd")


def _vqav2_schema() -> Any:
    import pyarrow as pa

    answer = pa.struct([("answer", pa.string()), ("answer_confidence", pa.string()), ("answer_id", pa.int64())])
    text, number = {"dtype": "string", "_type": "Value"}, {"dtype": "int64", "_type": "Value"}
    features = {
        "question_type": text,
        "multiple_choice_answer": text,
        "answers": {"feature": {"answer": text, "answer_confidence": text, "answer_id": number}, "_type": "List"},
        "image_id": number,
        "answer_type": text,
        "question_id": number,
        "question": text,
        "image": {"_type": "Image"},
    }
    fields = [
        ("question_type", pa.string()),
        ("multiple_choice_answer", pa.string()),
        ("answers", pa.list_(answer)),
        ("image_id", pa.int64()),
        ("answer_type", pa.string()),
        ("question_id", pa.int64()),
        ("question", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)})
