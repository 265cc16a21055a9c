"""Suites: reading of question lists, VQAv2's columns, task files that can be moved."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from listed import sharded
from PIL import Image

from evals.questions.lists import QuestionRow, answer_group, draw_questions, questions_of, write_vqav2_parquet
from evals.questions.vqa import floor_scores
from evals.records import asked_records
from evals.suites.task_files import task_yaml, write_task_dir
from infra.step import AnyloomError
from infra.storage import sha256_file
from mmcore.stores.shards import ShardSet


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


def read_questions(root: Path, pictures: int = 4) -> tuple[list[QuestionRow], ShardSet]:
    """The questions of such a list as the shards hold them, and the shards."""
    make_lists(root, pictures)
    shards = sharded(root / "data", root, {"easyvqa_test": "test"})
    records, left = asked_records(shards, root / "data" / "stores", "easyvqa_test", "image")
    assert not left
    return questions_of(records), ShardSet(shards, root / "data" / "stores")


def test_every_pair_is_its_own_question(tmp_path: Path) -> None:
    questions, _ = read_questions(tmp_path)
    assert len(questions) == 12
    assert (questions[4].doc_key, questions[4].question_id, questions[4].question, questions[4].answer) == (
        "easyvqa_test-000001#1",
        1001,
        "is there a red shape?",
        "no",
    )
    assert questions[0].question == "what color is the shape?"
    assert [answer_group(a) for a in ("no", "teal", "circle", "cat")] == ["yes/no", "colour", "shape", "other"]


def test_draw_is_seeded_sorted_and_without_replacement(tmp_path: Path) -> None:
    questions, _ = read_questions(tmp_path, 20)
    drawn = draw_questions(questions, 25, seed=1)
    assert drawn == draw_questions(questions, 25, seed=1) != draw_questions(questions, 25, seed=2)
    assert [q.question_id for q in drawn] == sorted({q.question_id for q in drawn}) and len(drawn) == 27  # nine whole pictures
    assert draw_questions(questions, 0, seed=1) == draw_questions(questions, 61, seed=1) == questions
    with pytest.raises(AnyloomError, match="num_questions is -1"):
        draw_questions(questions, -1, seed=1)


def test_parquet_has_vqav2_columns_and_the_picture_bytes(tmp_path: Path) -> None:
    questions, shards = read_questions(tmp_path)
    for name in ("a", "b"):
        write_vqav2_parquet(questions, shards.media, tmp_path / f"{name}.parquet")
    assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "b.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id", "question", "image"]
    row = table.to_pylist()[0]
    assert [a["answer_id"] for a in row["answers"]] == list(range(1, 11)) and {a["answer"] for a in row["answers"]} == {"red"}
    assert row["image"]["bytes"] == (tmp_path / "media/easyvqa/test/0.png").read_bytes()
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (16, 16)


def test_task_file_keeps_the_packaged_scorer_and_can_be_moved(tmp_path: Path) -> None:
    questions, shards = read_questions(tmp_path)
    write_vqav2_parquet(questions, shards.media, tmp_path / "x.parquet")
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
    test, _ = read_questions(tmp_path / "test")
    train, _ = read_questions(tmp_path / "train", 8)
    floors = floor_scores(test, train)
    assert floors["always_yes"] == [float(q.answer == "yes") for q in test]
    # "is there a red shape?" is mostly "no" in training; "what color" ties, so alphabetical: black
    expected = {"what color is the shape?": "black", "is there a red shape?": "no", "what shape is it?": "circle"}
    assert floors["blind_majority"] == [float(q.answer == expected[q.question]) for q in test]
    assert floor_scores(test, [])["blind_majority"] == [0.0] * len(test)


def test_the_recipe_s_own_questions_are_those_of_its_list_in_order(tmp_path: Path) -> None:
    """Of the list of tiny, which the shards are made of: the same questions, answers, numbers and images, in its order."""
    from data_steps import run_step

    from pipelines.demo.config import TinyListsConfig

    run_step(tmp_path, "lists", "pipelines.demo.tiny:run", TinyListsConfig(), {})
    shards = sharded(tmp_path / "data", tmp_path / "lists", {"easyvqa_test": "test", "easyvqa_train": "train"})
    for source in ("easyvqa_test", "easyvqa_train"):
        records, left = asked_records(shards, tmp_path / "data" / "stores", source, "image")
        listed = json.loads((tmp_path / "lists" / "instruct" / f"{source}.json").read_text())
        expected = [
            (f"{source}-{row:06d}#{n}", row * 1000 + n, row, record["image"], turns[2 * n]["value"].removeprefix("<image>\n"), turns[2 * n + 1]["value"])
            for row, record in enumerate(listed)
            for turns in [record["conversations"]]
            for n in range(len(turns) // 2)
        ]
        found = questions_of(records)
        assert not left and [(q.doc_key, q.question_id, q.image_id, q.image, q.question, q.answer) for q in found] == expected and len(expected) > 40
    media = ShardSet(shards, tmp_path / "data" / "stores").media
    assert all(media(q.key) == (tmp_path / "lists" / q.image).read_bytes() for q in found)
