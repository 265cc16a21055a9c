"""Stand-ins, rows, draws, official data as it is prepared, and kept features: files in and files out, no model and no harness."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listed import sharded
from PIL import Image

from evals.harness.answers import AnswerFile, Reply
from evals.harness.features import KeptFeatures, damaged_files
from evals.harness.shown import ShownImages
from evals.nightly.comparison import pair
from evals.suites.catalogue import TASKS, suite_task
from evals.suites.data import check_names, check_schema, prepare, prepared_files
from evals.suites.hub_parquet import image_hashes, rows_without_images, take_rows, write_rows
from evals.suites.rows import Doc, askable, clustered, draw_docs, key_columns, read_docs, row_names
from evals.suites.stand_ins import COLUMNS, write_stand_in
from infra.step import AnyloomError
from mmcore.encoder_config import TimmImage
from mmcore.stores.shards import ShardSet

SPEC = TimmImage(arch="test_efficientnet", width=4, grid=1)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def stamps(root: Path, count: int = 6, transparent: bool = False) -> ShardSet:
    """Shards of held-out stamps; two of them share a caption."""
    lines = []
    for n in range(count):
        image = Image.new("RGBA" if transparent else "RGB", (20, 14), (40 * n, 10, 20, 0)[: 4 if transparent else 3])
        image.putpixel((0, 0), (40 * n, 10, 20, 255)[: 4 if transparent else 3])
        uri = f"media/stamps/animals/{n}.png"
        (root / uri).parent.mkdir(parents=True, exist_ok=True)
        (root / uri).write_bytes(png(image))
        lines.append(f"{'A fox' if n < 2 else f'animal number{n}'}.\t{uri}\n")
    (root / "cc3m").mkdir(exist_ok=True)
    (root / "cc3m" / "stamps_heldout.tsv").write_text("".join(lines))
    return ShardSet(sharded(root / "data", root, {"stamps_heldout": "heldout"}, group="cc3m"), root / "data" / "stores")


@pytest.mark.parametrize("task", sorted(COLUMNS))
def test_a_stand_in_has_the_official_columns_and_the_same_bytes_every_time(tmp_path: Path, task: str) -> None:
    shards = stamps(tmp_path)
    for name in ("a", "b"):
        write_stand_in(task, shards, tmp_path / f"{name}.parquet", seed=1)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_schema(tmp_path / "a.parquet").names == list(COLUMNS[task])
    write_stand_in(task, shards, tmp_path / "c.parquet", seed=2)
    assert (tmp_path / "a.parquet").read_bytes() != (tmp_path / "c.parquet").read_bytes()
    assert set(suite_task(task).columns) <= set(COLUMNS[task])


def test_options_never_hold_the_answer_twice_and_opaque_pictures_keep_their_bytes(tmp_path: Path) -> None:
    made = write_stand_in("stamps_as_mmbench", stamps(tmp_path), tmp_path / "x.parquet", seed=0)
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert made.rows == len(rows) == 24 and not made.aliases
    for row in rows:
        assert len({row[letter].casefold() for letter in "ABCD"}) == 4
        assert row["image"]["bytes"] == (tmp_path / row["image"]["path"]).read_bytes()


def test_a_transparent_stamp_is_shown_on_white_and_remembers_what_it_was(tmp_path: Path) -> None:
    made = write_stand_in("stamps_as_mmbench", stamps(tmp_path, transparent=True), tmp_path / "x.parquet", seed=0)
    row = pq.read_table(tmp_path / "x.parquet").to_pylist()[0]
    shown = row["image"]["bytes"]
    assert Image.open(io.BytesIO(shown)).convert("RGB").getpixel((3, 3)) == (255, 255, 255)
    media = (tmp_path / row["image"]["path"]).read_bytes()
    assert made.aliases[hashlib.sha256(shown).hexdigest()] == hashlib.sha256(media).hexdigest()


def test_a_written_word_is_not_in_the_caption_and_can_be_seen(tmp_path: Path) -> None:
    write_stand_in("words_as_textvqa", stamps(tmp_path), tmp_path / "x.parquet", seed=0)
    for row in pq.read_table(tmp_path / "x.parquet").to_pylist():
        dark = (np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("L"))[-60:] < 60).sum()
        assert len(row["answers"]) == 10 and len(set(row["answers"])) == 1 and dark > 40
        assert row["question_id"] > 1 or row["answers"][0] != "fox"


def test_too_few_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnyloomError, match="2 different captions"):
        write_stand_in("stamps_as_mmbench", stamps(tmp_path, 3), tmp_path / "x.parquet", seed=0)


def test_stamps_of_which_no_question_can_be_made_are_left_out(tmp_path: Path) -> None:
    shards = stamps(tmp_path)
    made = write_stand_in("stamps_as_mmbench", shards, tmp_path / "x.parquet", seed=0, without={"stamps_heldout-000001"})
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert made.rows == len(rows) == 20 and "media/stamps/animals/1.png" not in {row["image"]["path"] for row in rows}
    one = tmp_path / "one"
    stamps(one)
    (one / "cc3m" / "stamps_heldout.tsv").write_text("".join(f"{'猫' * (n + 1)}\tmedia/stamps/animals/{n}.png\n" for n in range(5)))
    chinese = ShardSet(sharded(one / "again", one, {"stamps_heldout": "heldout"}, group="cc3m"), one / "again" / "stores")
    assert write_stand_in("stamps_as_mmbench", chinese, tmp_path / "y.parquet", seed=0).rows == 20
    assert write_stand_in("words_as_textvqa", chinese, tmp_path / "z.parquet", seed=0).rows == 0  # there is no word that could be written


def doc(row: int, group: int, image: str) -> Doc:
    return Doc(row=row, doc_key=str(row), question_id=row, group=group, image=image, num_images=1, question="", kind="all", answers=("a",))


def test_rows_that_share_a_picture_or_a_group_are_drawn_together() -> None:
    docs = [doc(0, 0, "p"), doc(1, 1, "p"), doc(2, 1, "q"), doc(3, 2, "r"), doc(4, 3, ""), doc(5, 4, "")]
    clusters = clustered(docs)
    assert clusters[0] == clusters[1] == clusters[2] and len(set(clusters)) == 4
    for seed in range(5):
        drawn = {d.row for d in draw_docs(docs, 2, seed)}
        assert {0, 1, 2} <= drawn or not {0, 1, 2} & drawn
        assert len(drawn) >= 2 and draw_docs(docs, 2, seed) == draw_docs(docs, 2, seed)
    assert draw_docs(docs, 7, 0) == draw_docs(docs, 6, 0) == draw_docs(docs, 0, 0) == docs  # no more than there are
    with pytest.raises(AnyloomError, match="num_questions is -1: give the number of questions"):
        draw_docs(docs, -1, 0)


def test_rows_are_taken_with_their_pictures_and_types(tmp_path: Path) -> None:
    columns = {"question_id": "int64", "question": "string", "answer": "string", "image": "image"}
    cells = [{"bytes": png(Image.new("RGB", (4, 4), (n, 0, 0))), "path": None} for n in range(5)]
    rows = [{"question_id": n, "question": "q", "answer": "yes", "image": cells[n]} for n in range(5)]
    write_rows(tmp_path / "a.parquet", rows[:3], columns)
    write_rows(tmp_path / "b.parquet", rows[3:], columns)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    take_rows(files, [1, 4], tmp_path / "c.parquet")
    assert [row["question_id"] for row in rows_without_images([tmp_path / "c.parquet"])] == [1, 4]
    assert list(image_hashes([tmp_path / "c.parquet"])) == [(hashlib.sha256(cells[n]["bytes"]).hexdigest(), 1) for n in (1, 4)]
    assert b"huggingface" in pq.read_schema(tmp_path / "c.parquet").metadata
    docs, left = askable(read_docs(suite_task("pope"), files))
    assert len(docs) == 5 and left == {} and docs[0].target == "yes"


def test_prepared_data_is_pinned_and_a_wrong_schema_is_named(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    columns = {"question_id": "string", "question": "string", "answer": "string", "image": "image", "category": "string"}
    with pytest.raises(AnyloomError, match="no folder VQAv2"):
        prepare("core", tmp_path / "data", hub, say=lambda line: None)
    folder = hub / "VQAv2" / "data"
    write_rows(folder / "validation-0.parquet", [], columns)
    with pytest.raises(AnyloomError, match="vqav2_val needs the column question_type"):
        prepare("core", tmp_path / "data", hub, say=lambda line: None)
    with pytest.raises(AnyloomError, match="nothing is to be prepared"):
        prepare("stand_in", tmp_path / "data", hub)
    with pytest.raises(AnyloomError, match="no suite called best"):
        prepare("best", tmp_path / "data", hub)


def test_annotators_without_an_id_are_refused_where_the_scorer_tells_them_apart(tmp_path: Path) -> None:
    task, path = suite_task("vqav2_val"), tmp_path / "x.parquet"
    fields = {"answer": "cat", "answer_confidence": "yes", "answer_id": 1}
    for left_out, answers in (("", [[fields]]), ("answer_id", [[{"answer": "cat", "answer_confidence": "yes"}]]), ("all", [["cat"]])):
        columns = {name: ["x"] for name in task.columns} | {"answers": answers}
        pq.write_table(pa.table(columns), path)
        if not left_out:
            check_schema(task, path)
            continue
        with pytest.raises(AnyloomError, match="answers has no answer_id, by which vqav2_val") as caught:
            check_schema(task, path)
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({name: ["x"] for name in suite_task("textvqa_val").columns} | {"answers": [["cat"]]}), path)
    check_schema(suite_task("textvqa_val"), path)  # told apart by their place


CASES = Path(__file__).parents[3] / "cases"


def test_pope_s_questions_are_told_apart_by_category_and_compare_with_themselves() -> None:
    docs = read_docs(suite_task("pope"), [CASES / "pope_ids" / "test-00000-of-00001.parquet"])
    assert [doc.doc_key for doc in docs[:3]] == ["pope-adversarial-1", "pope-adversarial-2", "pope-popular-1"]
    rows = [
        {"task": "pope", "condition": "right", "doc_key": d.doc_key, "question": d.question, "image": d.image, "target": d.target, "score": 1.0} for d in docs
    ]
    (paired,) = pair(rows, rows).values()
    assert len(paired.keys) == len(docs) == 6


@pytest.mark.parametrize("task", [task.lmms_task for task in TASKS if task.hub])
def test_two_rows_of_one_name_are_refused_in_every_suite(task: str) -> None:
    """Rows that differ in one key column are told apart; rows that differ in none are not taken."""
    entry = suite_task(task)
    columns = key_columns(entry, entry.columns)
    if not columns:
        assert row_names(entry, [{}, {}]) == ["0", "1"]
        return
    alike = dict.fromkeys(entry.columns, "x") | dict.fromkeys(columns, 7)
    for column in columns:
        assert len(set(row_names(entry, [alike, alike | {column: 8}]))) == 2
    with pytest.raises(AnyloomError, match=f"{task} rows 0 and 2 have the same") as caught:
        row_names(entry, [alike, alike | {columns[0]: 8}, alike])
    assert "\n" not in str(caught.value)


def test_repeated_names_are_refused_when_they_are_prepared(tmp_path: Path) -> None:
    source = CASES / "pope_ids" / "test-00000-of-00001.parquet"
    for number in range(2):  # two files of one split with the same rows
        (tmp_path / f"test-0000{number}-of-00002.parquet").write_bytes(source.read_bytes())
    check_names(suite_task("pope"), sorted(tmp_path.glob("*.parquet"))[:1])
    with pytest.raises(AnyloomError, match="rows 0 and 6 have the same category and question_id"):
        check_names(suite_task("pope"), sorted(tmp_path.glob("*.parquet")))


def test_changed_bytes_of_prepared_data_are_refused(tmp_path: Path) -> None:
    task = suite_task("pope")
    record, name = tmp_path / "pope" / "prepared.json", "test-00000.parquet"
    record.parent.mkdir()
    (record.parent / name).write_bytes(b"x")
    record.write_text(json.dumps({"files": [{"name": name, "sha256": hashlib.sha256(b"x").hexdigest()}]}))
    suite = tmp_path / "full.json"
    suite.write_text(json.dumps({"tasks": {"pope": hashlib.sha256(record.read_bytes()).hexdigest()}}))
    assert prepared_files(suite, task) == [record.parent / name]
    with pytest.raises(AnyloomError, match="has no gqa"):
        prepared_files(suite, suite_task("gqa"))
    (record.parent / name).write_bytes(b"y")
    with pytest.raises(AnyloomError, match="other bytes than were prepared"):
        prepared_files(suite, task)
    record.write_text("{}")
    with pytest.raises(AnyloomError, match="is not the one that"):
        prepared_files(suite, task)


def test_features_are_encoded_once_and_kept_for_the_next_evaluation(tmp_path: Path) -> None:
    image, other = Image.new("RGB", (4, 4), (9, 9, 9)), Image.new("RGBA", (4, 4), (50, 0, 0, 0))
    seen: list[bytes] = []

    def encode(data: bytes) -> np.ndarray:
        seen.append(data)
        return np.full((2, 3), len(seen), np.float16)

    for _ in range(2):
        images = ShownImages(encode, kept=KeptFeatures(tmp_path, SPEC, "weights"))
        shas = [images.known(str(n), lambda p=p: [p.convert("RGB")], [lambda p=p: png(p)]) for n, p in enumerate((image, other))]
        with images.ahead():
            images.prepare(shas)
            found = [images.features(sha) for sha in shas]
        images.flush()
    assert len(seen) == 2 and sorted(int(f[0, 0]) for f in found) == [1, 2]
    assert png(image) in seen and png(other) not in seen  # transparent: what is shown goes to the encoder, not the file
    assert KeptFeatures(tmp_path, SPEC, "other weights").get(shas[0]) is None


def test_a_damaged_file_of_features_is_not_used_but_made_again(tmp_path: Path) -> None:
    kept = KeptFeatures(tmp_path, SPEC, "weights")
    kept.add("a" * 64, np.ones((2, 3), np.float16))
    kept.flush()
    (path,) = kept.directory.glob("*.safetensors")
    assert KeptFeatures(tmp_path, SPEC, "weights").get("a" * 64) is not None and damaged_files(tmp_path) == []
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = KeptFeatures(tmp_path, SPEC, "weights")
    assert again.get("a" * 64) is None and damaged_files(tmp_path) == [path]
    again.add("a" * 64, np.ones((2, 3), np.float16))
    again.flush()
    assert KeptFeatures(tmp_path, SPEC, "weights").get("a" * 64) is not None and damaged_files(tmp_path) == []
    path.rename(path.with_name("0123456789abcdef.safetensors"))  # the name that earlier versions gave
    assert KeptFeatures(tmp_path, SPEC, "weights").get("a" * 64) is None and damaged_files(tmp_path) == []


def test_a_document_with_several_pictures_is_named(tmp_path: Path) -> None:
    images = ShownImages(lambda data: np.zeros((1, 1)))
    with pytest.raises(AnyloomError, match="document 7: the anyloom model takes one image per question, not 2 media"):
        images.known("document 7", lambda: [Image.new("RGB", (1, 1))] * 2)
    assert images.known("document 8", lambda: []) == ""


def test_the_answer_file_counts_what_was_begun_and_cuts_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    reply = Reply(text="x", caption="", num_input_tokens=1, num_tokens=1)
    first = AnswerFile(path)
    first.begin(["a", "b"])
    first.add({"a": reply, "b": reply})
    first.begin(["c"])
    path.write_bytes(path.read_bytes() + b'{"key": "c", "te')
    again = AnswerFile(path)
    assert set(again.replies) == {"a", "b"} and sorted(again.begun.values()) == [1, 1]
    again.begin(["c"])
    again.add({"c": reply})
    assert sorted(AnswerFile(path).begun.values()) == [1, 2] and set(AnswerFile(path).replies) == {"a", "b", "c"}
