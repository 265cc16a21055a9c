"""Suites: reading of question lists, VQAv2's columns, task files that can be moved."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from evals.questions.lists import answer_group, draw_questions, read_questions, write_vqav2_parquet
from evals.questions.vqa import floor_scores
from evals.suites.task_files import task_yaml, write_task_dir
from infra.step import AnyloomError
from infra.storage import sha256_file


def make_lists(root: Path, pictures: int = 4) -> Path:
    """An instruct list with three questions per picture; returns its path."""
    colours = ("red", "blue", "teal", "black")
    records = []
    for i in range(pictures):
        colour = colours[i % 4]
        uri = f"media/easyvqa/test/{i}.png"
        (root / uri).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 80, 20)).save(root / uri)
        turns = [("<image>\nwhat color is the shape?", colour), ("is there a red shape?", "yes" if colour == "red" else "no"), ("what shape is it?", "circle")]
        records.append(
            {
                "id": str(i),
                "image": uri,
                "conversations": [{"from": who, "value": text} for pair in turns for who, text in zip(("human", "gpt"), pair, strict=True)],
            }
        )
    path = root / "instruct" / "easyvqa_test.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def test_every_pair_is_its_own_question(tmp_path: Path) -> None:
    questions = read_questions(make_lists(tmp_path))
    assert len(questions) == 12
    assert (questions[4].doc_key, questions[4].question_id, questions[4].question, questions[4].answer) == (
        "easyvqa_test-000001#1",
        1001,
        "is there a red shape?",
        "no",
    )
    assert questions[0].question == "what color is the shape?"
    assert [answer_group(a) for a in ("no", "teal", "circle", "cat")] == ["yes/no", "colour", "shape", "other"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("image"), "record 1: field image"),
        (lambda r: r["conversations"].pop(), "conversations must hold"),
        (lambda r: r["conversations"][2].update({"from": "gpt"}), r"conversations\[2\]"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, change, message: str) -> None:
    path = make_lists(tmp_path)
    records = json.loads(path.read_text())
    change(records[1])
    path.write_text(json.dumps(records))
    with pytest.raises(AnyloomError, match=message):
        read_questions(path)


def test_draw_is_seeded_sorted_and_without_replacement(tmp_path: Path) -> None:
    questions = read_questions(make_lists(tmp_path, 20))
    drawn = draw_questions(questions, 25, seed=1)
    assert drawn == draw_questions(questions, 25, seed=1) != draw_questions(questions, 25, seed=2)
    assert [q.question_id for q in drawn] == sorted({q.question_id for q in drawn}) and len(drawn) == 27  # nine whole pictures
    assert draw_questions(questions, 0, seed=1) == questions
    with pytest.raises(AnyloomError, match="has 60"):
        draw_questions(questions, 61, seed=1)


def test_parquet_has_vqav2_columns_and_the_picture_bytes(tmp_path: Path) -> None:
    questions = read_questions(make_lists(tmp_path))
    for name in ("a", "b"):
        write_vqav2_parquet(questions, tmp_path, tmp_path / f"{name}.parquet")
    assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "b.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id", "question", "image"]
    row = table.to_pylist()[0]
    assert [a["answer_id"] for a in row["answers"]] == list(range(1, 11)) and {a["answer"] for a in row["answers"]} == {"red"}
    assert row["image"]["bytes"] == (tmp_path / "media/easyvqa/test/0.png").read_bytes()
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (16, 16)
    outside = [questions[0].__class__(**{**{f: getattr(questions[0], f) for f in questions[0].__slots__}, "image": "../secret.png"})]
    with pytest.raises(AnyloomError, match="not a file below the list root"):
        write_vqav2_parquet(outside, tmp_path, tmp_path / "c.parquet")


def test_task_file_keeps_the_packaged_scorer_and_can_be_moved(tmp_path: Path) -> None:
    write_vqav2_parquet(read_questions(make_lists(tmp_path)), tmp_path, tmp_path / "x.parquet")
    path = write_task_dir(tmp_path / "task", tmp_path / "x.parquet")
    text = path.read_text()
    assert str(tmp_path) not in text
    assert "!function 'lmms_eval.tasks.vqav2.utils.vqav2_process_results_val'" in text
    plain = yaml.safe_load(text.replace("!function ", ""))
    assert plain["dataset_kwargs"] == {"data_files": {"validation": "easyvqa_as_vqav2.parquet"}}
    assert plain["lmms_eval_specific_kwargs"]["anyloom"]["post_prompt"] == ""
    assert "single word" in plain["lmms_eval_specific_kwargs"]["default"]["post_prompt"]
    assert (path.parent / "easyvqa_as_vqav2.parquet").read_bytes() == (tmp_path / "x.parquet").read_bytes()
    with pytest.raises(AnyloomError, match="no lmms_task called vqav2"):
        task_yaml("vqav2", "x.parquet")


def test_floors_use_training_answers_only(tmp_path: Path) -> None:
    test = read_questions(make_lists(tmp_path / "test"))
    train = read_questions(make_lists(tmp_path / "train", 8))
    floors = floor_scores(test, train)
    assert floors["always_yes"] == [float(q.answer == "yes") for q in test]
    # "is there a red shape?" is mostly "no" in training; "what color" ties, so alphabetical: black
    expected = {"what color is the shape?": "black", "is there a red shape?": "no", "what shape is it?": "circle"}
    assert floors["blind_majority"] == [float(q.answer == expected[q.question]) for q in test]
    assert floor_scores(test, [])["blind_majority"] == [0.0] * len(test)
