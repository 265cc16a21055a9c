"""Suites: local question lists in VQAv2's shape.

Owns the reading of an instruction list as single questions and the Parquet file in VQAv2's column layout. Input: an instruct list (.json) and its
images. Output: a file that lmms-eval's packaged task reads (evals.suites.task_files).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.step import AnyloomError
from mmcore.chat.places import asked_texts
from mmcore.chat.records import SYSTEM

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
    """Uri relative to the list root."""
    question: str
    answer: str


def answer_group(answer: str) -> str:
    """Subgroup of a question by its true answer: yes/no, shape, colour or other."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour" if answer in COLOURS else "other"


def read_questions(list_path: Path) -> list[QuestionRow]:
    """Every human/gpt pair of an instruct list as its own question, in list order.

    Raises AnyloomError naming file, record and field when the list is not what the reader expects.
    """
    try:
        records = json.loads(list_path.read_bytes())
    except FileNotFoundError:
        raise AnyloomError(f"{list_path} does not exist: prepare the lists again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnyloomError(f"{list_path} is not JSON ({error}): prepare the lists again") from error
    if not isinstance(records, list):
        raise AnyloomError(f"{list_path} must hold a list of records, not {type(records).__name__}")
    return [question for row, record in enumerate(records) for question in _record_questions(list_path, row, record)]


def _record_questions(list_path: Path, row: int, record: Any) -> list[QuestionRow]:
    where = f"{list_path.name} record {row}"
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        raise AnyloomError(f"{where}: field image is missing: a question needs an image")
    turns = record.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("from") == SYSTEM:
        turns = turns[1:]
    if not isinstance(turns, list) or len(turns) % 2 or len(turns) >= 2000:
        raise AnyloomError(f"{where}: field conversations must hold human/gpt pairs (fewer than 1000)")
    questions, texts = [], asked_texts([turn["value"] for turn in turns[::2] if isinstance(turn, dict) and isinstance(turn.get("value"), str)], "image")
    for index in range(len(turns) // 2):
        human, gpt = turns[2 * index], turns[2 * index + 1]
        for turn, role in ((human, "human"), (gpt, "gpt")):
            if not isinstance(turn, dict) or turn.get("from") != role or not isinstance(turn.get("value"), str):
                raise AnyloomError(f"{where}: conversations[{2 * index + (role == 'gpt')}] must be a turn from {role} with a text value")
        questions.append(
            QuestionRow(
                doc_key=f"{list_path.stem}-{row:06d}#{index}",
                question_id=row * 1000 + index,
                image_id=row,
                image=record["image"],
                question=texts[index],
                answer=gpt["value"].strip(),
            )
        )
    return questions


def draw_questions(questions: list[QuestionRow], num_questions: int, seed: int) -> list[QuestionRow]:
    """A seeded random draw of whole images, with all their questions, until there are at least `num_questions`; in list order. 0: all.

    Images, not questions, are drawn because intervals are clustered by image and questions share an image's prefix.
    Raises AnyloomError when there are too few.
    """
    if num_questions == 0:
        return questions
    if not 0 < num_questions <= len(questions):
        raise AnyloomError(f"eval num_questions is {num_questions} but the test list has {len(questions)}: set it between 1 and that, or 0 for all")
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


def write_vqav2_parquet(questions: list[QuestionRow], list_root: Path, target: Path) -> None:
    """Write questions and their untouched image bytes in VQAv2's columns, readable by `datasets` with a decoded image.

    The ten annotators agree; each answer has its own answer_id because the scorer tells annotators apart by dict inequality.
    Raises AnyloomError naming an image that is missing or lies outside the list root.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = list_root.resolve()
    images: dict[str, bytes] = {}
    for question in questions:
        if question.image not in images:
            path = (root / question.image).resolve()
            if not path.is_relative_to(root) or not path.is_file():
                raise AnyloomError(f"{question.doc_key}: image {question.image} is not a file below the list root: prepare the lists again")
            images[question.image] = path.read_bytes()
    columns = {
        "question_type": [" ".join(q.question.lower().split()[:2]) for q in questions],
        "multiple_choice_answer": [q.answer for q in questions],
        "answers": [[{"answer": q.answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(ANNOTATORS)] for q in questions],
        "image_id": [q.image_id for q in questions],
        "answer_type": ["yes/no" if q.answer in ("yes", "no") else "number" if q.answer.isdigit() else "other" for q in questions],
        "question_id": [q.question_id for q in questions],
        "question": [q.question for q in questions],
        "image": [{"bytes": images[q.image], "path": q.image} for q in questions],
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
