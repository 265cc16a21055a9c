"""Questions about clips and sounds: the lists (hold-out, balance, the same bytes every time) and what is counted when they are answered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_steps import mp4, wav
from listed import sharded
from PIL import Image
from test_sources import context, fake_assets

from evals.blank import BLANK
from evals.config import MediaQuestionsEvalConfig, ReportConfig
from evals.pages.run.context import RunPage
from evals.pages.run.media_questions import media_questions_section
from evals.questions import media_questions as step
from evals.questions.media_questions import MediaQuestion, blind_scores, media_metrics, media_questions, same, shown_media
from evals.records import asked_records
from evals.tables import METRICS, VQA_SAMPLES, write_table
from infra.step import AnyloomError, Artifact
from infra.storage import sha256_file
from mmcore.chat.wordings import kind_of
from mmcore.types import Answer
from pipelines.demo import smol, tiny
from pipelines.demo.clips import MOTIONS
from pipelines.demo.config import QUESTIONS, SmolListsConfig, TinyListsConfig
from pipelines.demo.listfiles import in_sentence, list_path
from pipelines.demo.questions import Subject, other_names, questions, write_questions
from pipelines.readers import instruct

CONFIG = MediaQuestionsEvalConfig(datasets=(("video", "clips_questions_heldout"), ("audio", "sounds_questions_heldout")), bootstrap_draws=100)
SUBJECTS = [Subject(what="sound", stem=f"s{i}", uri=f"media/s{i}.ogg", name=f"a thing {i % 7}") for i in range(30)]
SUBJECTS += [Subject(what="voice", stem=f"v{i}", uri=f"media/v{i}.ogg", name=f"a thing {i % 5}", language="French") for i in range(11)]


# ---- lists ----------------------------------------------------------------------------------------------------------


def test_other_names_are_the_same_names_again_and_nobody_keeps_its_own():
    for names in (["a", "b"], list("abcabcabd"), list("aab") + list("bcd"), [f"n{i}" for i in range(50)] + ["n1"] * 20):
        others = other_names(names)
        assert Counter(others) == Counter(names) and all(one != other for one, other in zip(names, others, strict=True))
    assert other_names(list("aab")) is None and other_names(["a"]) is None and other_names([]) is None


def asked(path: Path) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of every question of a list."""
    found = []
    for record in json.loads(path.read_text()):
        turns = record["conversations"]
        pairs = [(human["value"].split("\n")[-1], gpt["value"]) for human, gpt in zip(turns[::2], turns[1::2], strict=True)]
        found += [(kind, *pair) for kind, pair in zip(record["question_kinds"], pairs, strict=True)]
    return found


def test_yes_and_no_are_asked_equally_often_in_the_same_words(tmp_path):
    assert write_questions(tmp_path, "sounds_questions_train", SUBJECTS) == len(SUBJECTS)
    found = asked(list_path(tmp_path, "sounds_questions_train"))
    counts = Counter((question, answer) for kind, question, answer in found if kind == "yes/no")
    texts = {question for question, _ in counts}
    assert len(texts) == 12 and all(counts[text, "yes"] == counts[text, "no"] > 0 for text in texts)
    assert Counter(kind for kind, *_ in found) == {"yes/no": 82, "name": 41, "language": 11}
    assert len({answer for kind, _, answer in found[::1] if kind == "name"}) == 7 and {a for k, _, a in found if k == "language"} == {"French"}
    first = [json.loads(list_path(tmp_path, "sounds_questions_train").read_text())[i]["conversations"][1]["value"] for i in range(41)]
    assert 8 < Counter(first)["yes"] < 33  # the place of a question does not tell its answer


def test_the_order_of_the_media_does_not_matter(tmp_path):
    for name, subjects in (("a", SUBJECTS), ("b", SUBJECTS[::-1])):
        write_questions(tmp_path / name, "sounds_questions_train", subjects)
    assert sha256_file(list_path(tmp_path / "a", "sounds_questions_train")) == sha256_file(list_path(tmp_path / "b", "sounds_questions_train"))


def test_a_medium_without_another_name_gets_no_yes_or_no():
    clip = Subject(what="clip", stem="c", uri="c.mp4", name="a frog", motion="rotating")
    assert [(kind, answer) for kind, _, answer in questions(clip, None)] == [("name", "a frog"), ("motion", "rotating")]
    told = {answer: question for kind, question, answer in questions(clip, "an owl") if kind == "yes/no"}
    assert "a frog" in told["yes"] and "an owl" in told["no"]


def test_smol_asks_about_the_clips_and_sounds_of_each_side_and_changes_no_other_list(tmp_path):
    source = fake_assets(tmp_path / "assets", 40)
    options = {"heldout": 0.4, "clips": 30, "spoken_each": 9, "clip_side": 32, "clip_frames": 3, "draw_per_caption": 3}
    plain, mixed = (context(tmp_path / name, SmolListsConfig(**options, media_questions=name == "mixed"), assets=source) for name in ("plain", "mixed"))
    without, result = smol.run(plain), smol.run(mixed)
    added = {name for names in QUESTIONS.values() for name in names}
    assert set(result["rows"]) - set(without["rows"]) == added
    before = {p.relative_to(plain.output): sha256_file(p) for p in plain.output.rglob("*") if p.is_file()}
    after = {p.relative_to(mixed.output): sha256_file(p) for p in mixed.output.rglob("*") if p.is_file()}
    assert {name: after[name] for name in before} == before
    names = {}
    for kind in ("clips", "sounds"):
        for split in ("train", "heldout"):
            dataset = f"{kind}_questions_{split}"
            rows = list(instruct.read(list_path(mixed.output, dataset)))
            assert len(rows) == result["rows"][dataset] == result["rows"][f"{kind}_{split}"] > 0
            assert all((mixed.output / row.media[0].uri).is_file() and row.modality == {"clips": "video", "sounds": "audio"}[kind] for row in rows)
            found = asked(list_path(mixed.output, dataset))
            names[split] = names.get(split, set()) | {answer for k, _, answer in found if k == "name"}
            if kind == "clips":
                assert {answer for k, _, answer in found if k == "motion"} <= set(MOTIONS)
            else:
                assert {answer for k, _, answer in found if k == "language"} == {"English", "French"}
    held = {in_sentence(line.split("\t")[0]) for line in list_path(mixed.output, "stamps_heldout").read_text().splitlines()}
    assert names["heldout"] <= held and not names["train"] & held


def test_tiny_has_the_same_lists(tmp_path):
    plain, mixed = (context(tmp_path / name, TinyListsConfig(media_questions=name == "mixed")) for name in ("plain", "mixed"))
    without, result = tiny.run(plain), tiny.run(mixed)
    added = {name for names in QUESTIONS.values() for name in names}
    assert set(result["rows"]) - set(without["rows"]) == added and {k: v for k, v in result["rows"].items() if k not in added} == without["rows"]
    for path in sorted(p for p in plain.output.rglob("*") if p.is_file()):
        assert sha256_file(path) == sha256_file(mixed.output / path.relative_to(plain.output))
    datasets = {name: name.rsplit("_", 1)[-1] for names in QUESTIONS.values() for name in names}
    shards = sharded(tmp_path / "data", mixed.output, datasets)
    for modality, names in QUESTIONS.items():
        read = []
        for name in names:
            records, left = asked_records(shards, tmp_path / "data" / "stores", name, modality)
            found = media_questions(records, modality)
            assert not left and [(q.kind, q.question, q.answer) for q in found] == asked(list_path(mixed.output, name))  # the kinds are those of the list
            read += found
        assert {q.kind for q in read} == {"yes/no", "name"} | ({"motion"} if modality == "video" else set())
        assert len({q.doc_key for q in read}) == len(read) and not any("<" in q.question for q in read)


# ---- counting -------------------------------------------------------------------------------------------------------


def question(number: int, kind: str, text: str, answer: str, modality: str = "video") -> MediaQuestion:
    return MediaQuestion(doc_key=f"d-{number}#{kind}", question_id=number, modality=modality, kind=kind, uri=f"{number}", question=text, answer=answer)


def some(modality: str = "video") -> list[MediaQuestion]:
    """Six media with a name and a motion each; two of them have the same name."""
    found = []
    for i in range(6):
        found += [question(i, "name", "what?", f"a thing {i // 2}", modality), question(i, "motion", "how?", MOTIONS[i % 3], modality)]
    return found


def test_an_answer_counts_word_for_word():
    assert same(" A Frog. ", "a frog") and same("moving  left", "moving left")
    assert not same("frog", "a frog") and not same("", "yes") and not same("yes yes", "yes")


def test_the_blind_guess_is_that_of_training_to_the_same_words_or_kind():
    train = [question(0, "yes/no", "Is this a cat?", "yes"), question(1, "yes/no", "Is this a dog?", "no"), question(2, "yes/no", "Is this a pig?", "no")]
    asked = [question(9, "yes/no", "Is this a cat?", "yes"), question(9, "yes/no", "Is this an owl?", "no"), question(9, "motion", "how?", "rotating")]
    assert blind_scores(asked, train) == [1.0, 1.0, 0.0]
    assert blind_scores([question(9, "yes/no", "Is this a cat?", "yes", "audio")], train) == [0.0]  # a modality does not lend its guesses


def test_shuffled_media_are_others_of_the_modality_with_another_name():
    questions = some() + some("audio")
    assert shown_media(questions, "right", 0) == [q.uri for q in questions] and set(shown_media(questions, "blank", 0)) == {BLANK}
    shown = shown_media(questions, "shuffled", 0)
    assert shown == shown_media(questions, "shuffled", 0) and all(int(uri) // 2 != int(q.uri) // 2 for q, uri in zip(questions, shown, strict=True))
    assert all(shown[i] == shown[i + 1] for i in range(0, len(shown), 2))  # both questions about a medium get the same other one
    with pytest.raises(AnyloomError, match="questions about video: 2 items cannot be shuffled"):
        shown_media(questions[:4], "shuffled", 0)


def rows(questions: list[MediaQuestion], condition: str, right) -> list[dict]:
    base = {"run_condition": condition, "caption": "", "num_tokens": 1}
    return [
        {**base, "doc_key": q.doc_key, "question_id": q.question_id, "picture": q.uri, "question": q.question, "answer_type": q.subgroup}
        | {"target": q.answer, "prediction": q.answer if right(q) else "", "score": float(right(q))}
        for q in questions
    ]


def test_accuracy_is_told_by_modality_and_kind_beside_floor_and_differences(tmp_path):
    questions = some() + some("audio")
    answered = {"helped": rows(questions, "helped", lambda q: q.kind == "motion"), "shuffled": rows(questions, "shuffled", lambda q: q.uri == "0")}
    metrics = media_metrics(questions, answered, {"blind_majority": blind_scores(questions, questions)}, CONFIG)
    at = {(m["condition"], m["subgroup"]): m for m in metrics}
    assert at["helped", "video motion"]["value"] == 1 and at["helped", "audio"]["value"] == 0.5 and at["shuffled", "audio"]["value"] == pytest.approx(1 / 6)
    assert at["helped - shuffled", "video motion"]["value"] == pytest.approx(5 / 6) and at["helped - shuffled", "video motion"]["kind"] == "difference"
    assert at["blind_majority", "video motion"]["value"] == pytest.approx(1 / 3) and at["blind_majority", "video motion"]["kind"] == "floor"
    assert at["helped", "video"]["clusters"] == 6 and at["helped", "video"]["n"] == 12
    artifact = Artifact(name="eval_media_questions", path=tmp_path, fingerprint="f" * 64, digest="d" * 64, result={"headline": "helped"})
    write_table(tmp_path / "metrics.parquet", metrics, METRICS)
    write_table(tmp_path / "samples.parquet", answered["helped"], VQA_SAMPLES)
    html = media_questions_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={}), artifact)
    assert "videos" in html and "audio clips" in html and "100.0" in html and "12 (6)" in html


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("How does it move?", "rotating", "motion"),
        ("What do you hear?", "yes", "name"),
        ("In which language is this?", "French", "language"),
        ("Is it loud?", "Yes.", "yes/no"),
        ("Is this a frog?", "no", "yes/no"),
        ("How many birds?", "two", "other"),
    ],
)
def test_the_kind_of_a_question_is_told_by_its_words_or_its_answer(question, answer, kind):
    assert kind_of(question, answer) == kind


def own_questions(folder: Path) -> dict[str, Path]:
    """Lists of the user's about videos: four good records on the held-out side, and some that cannot be asked."""
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "black")):
        (folder / f"{number}.mp4").write_bytes(mp4([Image.new("RGB", (32, 32), colour)] * 3))
    (folder / "short.mp4").write_bytes(mp4([Image.new("RGB", (32, 32), "white")] * 3))
    (folder / "noise.wav").write_bytes(wav(0))

    def talk(*pairs):
        return [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]

    asked = [(("<video>\nWhich colour?", colour), ("Is it red?", "no" if number else "yes")) for number, colour in enumerate("rgbk")]
    good = [{"video": f"{number}.mp4", "conversations": talk(*pairs)} for number, pairs in enumerate(asked)]
    bad = [
        {"video": "gone.mp4", "conversations": talk(("<video>\nWhich?", "r"))},
        {"audio": "noise.wav", "conversations": talk(("<audio>\nWhich?", "r"))},
        {"video": "0.mp4", "conversations": talk(("<video>\nWhich?", ""))},
        {"video": "short.mp4", "conversations": talk(("<video>\nWhich?", "r"))},
    ]
    (folder / "heldout.json").write_text(json.dumps([*good, *bad]))
    (folder / "train.json").write_text(json.dumps(good[:2]))
    return {"clips_questions_heldout": folder / "heldout.json", "clips_questions_train": folder / "train.json"}


class Watches:
    """A generator that tells what it is shown by its bytes; it does not read questions about a colour, and its encoder takes no short video."""

    def __init__(self, short: bytes):
        self.short = short

    def encode(self, modality, data):
        if data == self.short:
            raise RuntimeError("Calculated padded input size per channel: (1)")
        return np.frombuffer(hashlib.sha256(data).digest(), np.uint8).astype(np.float32)[None]

    def answer(self, items, *, max_new_tokens=16, caption_turn=None):
        read = Answer(text="no", caption=None, token_ids=(1,), num_input_tokens=3)
        return [replace(read, text="", token_ids=(), finish="too_long") if "colour" in item.text else read for item in items]


def test_lists_of_the_user_s_are_asked_and_what_cannot_be_is_left_out(tmp_path, monkeypatch):
    own = own_questions(tmp_path / "own")
    shards = sharded(tmp_path / "data", tmp_path, {name: name.rsplit("_", 1)[-1] for name in own}, own=own)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "anyloom.json").write_text(json.dumps({"caption_turn": False}))
    monkeypatch.setattr(step.Generator, "load", lambda path, device: Watches((tmp_path / "own" / "short.mp4").read_bytes()))

    def run(name, **options):
        config = MediaQuestionsEvalConfig(datasets=(("video", "clips_questions_heldout"),), bootstrap_draws=50, **options)
        ctx = context(tmp_path / name, config, export=tmp_path / "export", shards_instruct=shards)
        return step.run(dataclasses.replace(ctx, stores=tmp_path / "data" / "stores")), ctx

    result, ctx = run("a")
    assert (result["media"], result["questions"]) == (4, {"video other": 4, "video yes/no": 4})
    (line,) = result["left_out"]
    told = "4 of 8 records of clips_questions_heldout are not asked (empty_text 1, missing_file 1, no_medium 1, not_encodable 1), the first is "
    assert line.startswith(f"{told}clips_questions_heldout-000004: ")
    assert result["unread"] == {"plain_prompt": 4, "blank": 4, "shuffled": 4}
    assert result["plain_prompt video yes/no"][0] == 0.75 and result["plain_prompt video other"][0] == 0.0
    assert result["blind_majority video yes/no"][0] == 0.75  # in training `no` comes first in the alphabet
    samples = pq.read_table(ctx.output / "samples.parquet").to_pylist()
    assert {s["picture"] for s in samples} == {f"{n}.mp4" for n in range(4)} and all(s["score"] == 0.0 for s in samples if not s["prediction"])
    artifact = Artifact(name="eval_media_questions", path=ctx.output, fingerprint="f" * 64, digest="d" * 64, result=result)
    page = media_questions_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={}), artifact)
    assert "Left out: 4 of 8 records" in page and "Unread, and scored 0: plain_prompt 4, blank 4, shuffled 4." in page
    with pytest.raises(AnyloomError, match=r"4 of 8 records .* more than max_lost 0\.4 of them"):
        run("b", max_lost=0.4)
