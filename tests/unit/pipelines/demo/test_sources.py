"""Behaviour of the source steps: readers of real list formats, pinned assets, and the lists of tiny and smol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from infra.step import AnyloomError, Artifact, StepContext
from infra.storage import digest_tree
from mmcore.stores.shards import REASONS
from pipelines.demo import assets, smol, tiny
from pipelines.demo.clips import MOTIONS, encode_mp4, frames
from pipelines.demo.config import AssetsConfig, DebianPackage, PackageFile, PackageTree, SmolListsConfig, TinyListsConfig
from pipelines.demo.converse import KINDS, converse_records
from pipelines.demo.listfiles import GROUPS, in_sentence, list_path, write_audiocaps, write_cc3m, write_instruct, write_webvid
from pipelines.readers import audiocaps, cc3m, instruct, webvid
from pipelines.readers.rows import ReadOptions

CASES = Path(__file__).parents[3] / "cases"
SOUNDS = ReadOptions(media_template="media/audio/{youtube_id}.ogg")


def context(folder: Path, config: object, **inputs: Path) -> StepContext:
    for name in ("output", "work", "stores"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    given = {k: Artifact(name=k, path=v, fingerprint="f", digest="d", result={}) for k, v in inputs.items()}
    return StepContext(name="step", config=config, inputs=given, sources={}, output=folder / "output", work=folder / "work", stores=folder / "stores")


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# ---- readers --------------------------------------------------------------------------------------------------------


def test_cc3m_keeps_quotes_and_drops_bom_crlf_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.tsv", b'\xef\xbb\xbfa "big" cat\tmedia/1.png\r\n\r\n"unbalanced\thttp://x/2.jpg\r\n')
    assert [(r.texts, r.media[0].uri) for r in cc3m.read(path)] == [(('a "big" cat',), "media/1.png"), (('"unbalanced',), "http://x/2.jpg")]


def test_cc3m_line_separators_inside_a_caption_do_not_split_it(tmp_path):
    path = write(tmp_path / "a.tsv", "a\u2028b\x0bc\tu.png\n")
    assert [r.texts for r in cc3m.read(path)] == [("a\u2028b\x0bc",)]


def test_cc3m_skips_a_hand_made_header_and_keeps_empty_captions(tmp_path):
    path = write(tmp_path / "a.tsv", "caption\turl\n \tu.png\n")
    assert [(r.texts, r.media[0].uri) for r in cc3m.read(path)] == [((), "u.png")]


@pytest.mark.parametrize(("line", "problem"), [("only a caption", "column 'url' is missing"), ("a\tb\tc", "3 columns instead of 2")])
def test_cc3m_malformed_line_is_a_refused_row_that_names_file_and_line(tmp_path, line, problem):
    path = write(tmp_path / "a.tsv", f"fine\tu\n{line}\n")
    first, bad = cc3m.read(path)
    assert first.refused is None and bad.refused[0] == "bad_record" and bad.refused[1].startswith(f"a.tsv, line 2: {problem}")


def test_webvid_reads_quoted_commas_line_ends_and_templates(tmp_path):
    head = "videoid,contentUrl,duration,page_dir,name\r\n"
    path = write(tmp_path / "v.csv", f'\ufeff{head}7,http://x/7.mp4,PT00H00M10S,000001_000050,"a cat,\nand ""a dog"""\r\n')
    (row,) = webvid.read(path)
    assert (row.modality, row.texts, row.media[0].uri) == ("video", ('a cat,\nand "a dog"',), "http://x/7.mp4")
    (row,) = webvid.read(path, ReadOptions(media_template="videos/{page_dir}/{videoid}.mp4"))
    assert row.media[0].uri == "videos/000001_000050/7.mp4"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("videoid,name\n1,a\n", r"line 1: column 'contentUrl' is missing \(found videoid, name\)"),
        ("videoid,contentUrl,name\n2,u\n", r"v\.csv, line 2: 2 values for the 3 columns"),
        ('videoid,contentUrl,name\n1,u,"open\n', r"line 2: unexpected end of data"),
        ("", r"line 1: column 'videoid' is missing \(found nothing\)"),
    ],
)
def test_webvid_malformed(tmp_path, body, problem):
    with pytest.raises(AnyloomError, match=problem):
        list(webvid.read(write(tmp_path / "v.csv", body)))


def test_audiocaps_spans_and_needs_a_template(tmp_path):
    path = write(tmp_path / "s.csv", "audiocap_id,youtube_id,start_time,caption\n1,abc,30,a dog barks\n")
    (row,) = audiocaps.read(path, SOUNDS)
    assert (row.media[0].uri, row.media[0].start_s, row.media[0].end_s) == ("media/audio/abc.ogg", None, None)
    (row,) = audiocaps.read(path, replace(SOUNDS, span_s=10.0))
    assert (row.media[0].start_s, row.media[0].end_s) == (30.0, 40.0)
    with pytest.raises(AnyloomError, match=r"--set .datasets\.DATASET\.media_template="):
        list(audiocaps.read(path))
    with pytest.raises(AnyloomError, match="names column 'ytid'"):
        list(audiocaps.read(path, ReadOptions(media_template="{ytid}.wav")))


@pytest.mark.parametrize("start", ["soon", "-1", "nan", "inf", ""])
def test_audiocaps_start_time_must_be_seconds(tmp_path, start):
    path = write(tmp_path / "s.csv", f"audiocap_id,youtube_id,start_time,caption\n1,abc,{start},x\n")
    with pytest.raises(AnyloomError, match=r"s\.csv, line 2: column 'start_time'"):
        list(audiocaps.read(path, SOUNDS))


def test_not_utf8_and_absent_lists_are_named(tmp_path):
    fine, bad = cc3m.read(write(tmp_path / "a.tsv", b"ok\tu\ncaf\xe9\tu\n"))
    assert fine.refused is None and bad.refused[1].startswith("a.tsv, line 2: not UTF-8")
    with pytest.raises(AnyloomError, match="no such list file"):
        list(cc3m.read(tmp_path / "none.tsv"))


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def test_instruct_reads_llava_and_nextgpt_fields(tmp_path):
    records = [
        {"id": "1", "image": "a.jpg", "conversations": turns("<image>\nwhat?", "a cat")},
        {"input_video": ["a.mp4", "b.mp4"], "conversations": turns("<video> or <video>?", "both")},
        {"output_audio": "bark.wav", "audio_captions": ["a dog"], "conversations": turns("bark!", "here: <audio>")},
        {"conversations": turns("hello", "hi")},
        {"conversations": []},
        {"conversations": [{"from": "system", "value": "Be brief."}, *turns("hello", "hi")]},
    ]
    rows = list(instruct.read(write(tmp_path / "i.json", b"\xef\xbb\xbf" + json.dumps(records).encode())))
    assert [r.modality for r in rows] == ["image", "video", "text", "text", "text", "text"] and not any(r.refused for r in rows)
    assert [[(m.role, m.modality, m.uri) for m in r.media] for r in rows[:3]] == [
        [("input", "image", "a.jpg")],
        [("input", "video", "a.mp4"), ("input", "video", "b.mp4")],
        [("output", "audio", "bark.wav")],
    ]
    assert rows[2].texts == ("a dog",) and rows[0].conversations == (("human", "<image>\nwhat?"), ("gpt", "a cat"))
    assert rows[5].conversations == (("system", "Be brief."), ("human", "hello"), ("gpt", "hi"))
    (row, *_) = instruct.read(tmp_path / "i.json", ReadOptions(media_template="coco/{uri}"))
    assert row.media[0].uri == "coco/a.jpg"


@pytest.mark.parametrize(
    ("record", "reason", "problem"),
    [
        ({"image": "a.jpg"}, "bad_record", "field 'conversations' is missing"),
        ({"conversations": "hi"}, "bad_record", "field 'conversations' is a text"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "bad_record", "turn 0: 'from' is 'robot'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "bad_record", "turn 0: expected"),
        ({"image": 3, "conversations": turns("<image>", "x")}, "bad_record", "field 'image' is a number"),
        ({"image": ["a", " "], "conversations": turns("<image><image>", "x")}, "bad_record", "empty uri"),
        ({"image": "a", "input_image": "b", "conversations": turns("<image>", "x")}, "bad_record", "both 'image' and 'input_image'"),
        ({"conversations": turns("a", "\ud83d")}, "bad_record", "half a character"),
        (["list"], "bad_record", "a list, expected an object"),
        (None, "bad_record", "null, expected an object"),
        ({"conversations": turns("a", "b") + turns("c", "d")[1:]}, "turn_order", "turn 2: 'from' is 'gpt', expected 'human'"),
        ({"conversations": [*turns("a", "b"), {"from": "system", "value": "s"}, *turns("c", "d")]}, "turn_order", "turn 2: 'from' is 'system'"),
        ({"conversations": turns("a", "b", "c", "d")[1:]}, "begins_with_answer", "turn 0: 'from' is 'gpt', expected 'human'"),
        ({"conversations": [{"from": "system", "value": "s"}, *turns("a", "b")[1:]]}, "begins_with_answer", "turn 1: 'from' is 'gpt'"),
        ({"conversations": turns("a")}, "ends_with_question", "the last turn is 'human'"),
        ({"conversations": turns("a", "b", "c")}, "ends_with_question", "the last turn is 'human'"),
        ({"conversations": [{"from": "system", "value": "s"}]}, "empty_text", "only a turn of the system"),
        ({"conversations": turns("a", "")}, "empty_text", "turn 1: the answer is empty"),
        ({"conversations": turns("a", "b", "c", " \n\t")}, "empty_text", "turn 3: the answer is empty"),
        ({"image": "a", "conversations": turns("what?", "x")}, "placeholder_count", "0 <image> in the human turns but 1 input image files"),
        ({"image": "a", "conversations": turns("<image> or <image>?", "x")}, "placeholder_count", "2 <image> in the human turns but 1 input image"),
        ({"image": ["a", "b"], "conversations": turns("<image>?", "x")}, "placeholder_count", "1 <image> in the human turns but 2 input image"),
        ({"output_image": ["a", "b"], "conversations": turns("draw", "<image>")}, "placeholder_count", "1 <image> in the gpt turns but 2 output image"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_itself(tmp_path, record, reason, problem):
    fine = {"conversations": turns("hello", "hi")}
    first, refused, last = instruct.read(write(tmp_path / "i.json", json.dumps([fine, record, fine])))
    assert first == last and first.refused is None and reason in REASONS
    assert refused.refused[0] == reason and refused.refused[1].startswith("i.json, record 1: ") and problem in refused.refused[1]
    assert not refused.media and not refused.texts and not refused.conversations


@pytest.mark.parametrize("name", sorted(path.name for path in (CASES / "html_in_text").glob("*.json")))
def test_names_of_placeholders_in_a_text_are_words(name):
    for row in instruct.read(CASES / "html_in_text" / name):
        assert row.refused is None and len(row.conversations) == 2 and not [m for m in row.media if m.role == "output"]


@pytest.mark.parametrize("name", ["blank_answer.json", "empty_answer.json"])
def test_an_empty_answer_is_refused_as_an_empty_caption_is(name):
    (row,) = instruct.read(CASES / "blank_answer" / name)
    assert row.refused is not None and row.refused[0] == "empty_text"


UNSEEN = ["", " ", "\n\t", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u200d\u2060 ", "\u00ad", "\x00", "\u2800", "\u3164", "\ufe0f", "\u200e\u202c"]


@pytest.mark.parametrize("text", UNSEEN, ids=ascii)
def test_a_text_of_which_nothing_can_be_seen_is_none(tmp_path, text):
    """An answer is refused, a caption is not there; whatever can be seen beside it makes it one."""
    (row,) = instruct.read(write(tmp_path / "i.json", json.dumps([{"conversations": turns("what?", text)}])))
    assert row.refused is not None and row.refused[0] == "empty_text"
    (row,) = instruct.read(write(tmp_path / "i.json", json.dumps([{"image_captions": [text, "a"], "conversations": turns("what?", f"{text}👍")}])))
    assert row.refused is None and row.texts == ("a",)
    if "\x00" not in text and "\n" not in text:
        assert [row.texts for row in cc3m.read(write(tmp_path / "a.tsv", f"{text}\tu.png\na{text}b\tv.png\n"))] == [(), (f"a{text}b",)]
        assert [row.texts for row in webvid.read(write(tmp_path / "v.csv", f"videoid,contentUrl,name\n7,u,{text}\n8,u,x\n"))] == [(), ("x",)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('[{"a": 1},]', "line 1: not JSON"),
        ('{"a": 1}', "top level is an object"),
        ("[" * 100_000, "not usable JSON"),
        ("[1" + "0" * 5000 + "]", "not usable JSON"),
    ],
)
def test_instruct_damaged_file(tmp_path, body, problem):
    with pytest.raises(AnyloomError, match=problem):
        list(instruct.read(write(tmp_path / "i.json", body)))


def test_writers_and_readers_agree(tmp_path):
    nasty = 'a "red", <tab>\nthing é'
    write_cc3m(tmp_path, "stamps_train", [(nasty, "u.png")])
    write_webvid(tmp_path, "clips_train", [("v", "v.mp4", 2, nasty)])
    write_audiocaps(tmp_path, "sounds_train", [("s", nasty)])
    assert next(cc3m.read(list_path(tmp_path, "stamps_train"))).texts == (nasty.replace("\n", " "),)
    assert next(webvid.read(list_path(tmp_path, "clips_train"))).texts == (nasty,)
    assert next(audiocaps.read(list_path(tmp_path, "sounds_train"), SOUNDS)).texts == (nasty,)


# ---- assets ---------------------------------------------------------------------------------------------------------


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        write(site / path, data)
    write(site / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def demo_config(sha256: str | None = None) -> AssetsConfig:
    file = PackageFile(
        package="demo-model", version="1.0", path="demo_model/m.bin", sha256=sha256 or hashlib.sha256(b"weights").hexdigest(), target="model.bin", licence="MIT"
    )
    listing = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("test/q.json", b"[]"), ("train/q.json", b"[]")))
    tree = PackageTree(
        package="demo-data",
        version="1.0",
        path="demo_data",
        folders=("train", "test"),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        target="data",
        licence="MIT",
    )
    return AssetsConfig(files=(file,), easy_vqa=tree, stamps_mode="none")


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    install(folder, "demo-model", "1.0", {"demo_model/m.bin": b"weights", "demo_model/__init__.py": b"raise SystemExit('imported')"})
    install(folder, "demo-data", "1.0", {"demo_data/train/q.json": b"[]", "demo_data/test/q.json": b"[]"})
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_assets_are_taken_without_import_and_described(site, tmp_path):
    ctx = context(tmp_path / "run", demo_config())
    result = assets.run(ctx)
    assert result == {"stamps": False, "left_out": ["stamps: switched off in the recipe"], "files": 3}
    assert (ctx.output / "model.bin").read_bytes() == b"weights" and (ctx.output / "data/train/q.json").exists()
    described = json.loads((ctx.output / "assets.json").read_text())
    assert described["stamps"] is False and [f["file"] for f in described["files"]] == ["model.bin", "data"]


def test_assets_changed_file_is_refused_with_both_hashes(site, tmp_path):
    with pytest.raises(AnyloomError, match=rf"demo_model/m\.bin.*{hashlib.sha256(b'weights').hexdigest()}, expected {'0' * 64}"):
        assets.run(context(tmp_path / "run", demo_config("0" * 64)))
    write(site / "demo_data/train/q.json", b"[1]")
    with pytest.raises(AnyloomError, match=r"demo_data of demo-data==1\.0: sha256 is"):
        assets.run(context(tmp_path / "run2", demo_config()))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"package": "demo-absent"}, "demo-absent==1.0 is not installed"),
        ({"version": "2.0"}, "is version 1.0, expected 2.0"),
        ({"path": "demo_model/none.bin"}, "has no demo_model/none.bin"),
    ],
)
def test_assets_absent_package_version_or_file_names_the_remedy(site, tmp_path, change, problem):
    config = demo_config()
    config = replace(config, files=(replace(config.files[0], **change),))
    with pytest.raises(AnyloomError, match=rf"{problem}; run `make demo-assets`"):
        assets.run(context(tmp_path / "run", config))


def test_stamps_are_left_out_where_apt_is_missing_or_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(assets.shutil, "which", lambda tool: None)
    assert assets.fetch_debian(DebianPackage(), tmp_path) == (None, "stamps: apt-get is not on this machine")
    monkeypatch.setattr(assets.shutil, "which", lambda tool: tool)

    def fail(arguments, cwd=None):
        raise subprocess.CalledProcessError(100, arguments, stderr="E: Version '1' for 'x' was not found")

    monkeypatch.setattr(assets, "_command", fail)
    archive, reason = assets.fetch_debian(DebianPackage(), tmp_path)
    assert archive is None and reason == "stamps: apt-get update failed (version not found)"


def test_a_changed_debian_package_is_refused_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(assets.shutil, "which", lambda tool: tool)
    archive = write(tmp_path / "apt" / "tuxpaint-stamps-default.deb", b"other bytes")
    with pytest.raises(AnyloomError, match="sha256 is"):
        assets.fetch_debian(DebianPackage(), tmp_path)
    assert not archive.exists()


def test_required_stamps_raise(site, tmp_path, monkeypatch):
    monkeypatch.setattr(assets.shutil, "which", lambda tool: None)
    with pytest.raises(AnyloomError, match="this recipe requires them"):
        assets.run(context(tmp_path / "run", replace(demo_config(), stamps_mode="required")))


# ---- tiny -----------------------------------------------------------------------------------------------------------


def test_tiny_lists_are_complete_readable_and_reproducible(tmp_path):
    results = [tiny.run(context(tmp_path / name, TinyListsConfig())) for name in ("a", "b")]
    root = tmp_path / "a" / "output"
    assert digest_tree(root) == digest_tree(tmp_path / "b" / "output")
    assert set(results[0]["rows"]) == {dataset for datasets in GROUPS.values() for dataset in datasets} and results[0]["left_out"] == []
    readers = {"cc3m": cc3m, "webvid": webvid, "audiocaps": audiocaps, "instruct": instruct}
    for group, datasets in GROUPS.items():
        for dataset in datasets:
            rows = list(readers[group].read(list_path(root, dataset), SOUNDS if group == "audiocaps" else ReadOptions()))
            assert len(rows) == results[0]["rows"][dataset]
            assert all((root / m.uri).is_file() for row in rows for m in row.media)
    test = json.loads(list_path(root, "easyvqa_test").read_text())
    ids = [number for record in test for number in record["question_ids"]]
    assert ids == list(range(len(ids))) and len(ids) >= 60 and len(test) >= 12


def test_tiny_another_seed_gives_other_pictures_and_true_answers(tmp_path):
    tiny.run(context(tmp_path / "a", TinyListsConfig()))
    tiny.run(context(tmp_path / "b", TinyListsConfig(seed=1)))
    assert digest_tree(tmp_path / "a" / "output") != digest_tree(tmp_path / "b" / "output")
    captions = {row.media[0].uri: row.texts[0] for row in cc3m.read(list_path(tmp_path / "b" / "output", "easyvqa_captions"))}
    for row in instruct.read(list_path(tmp_path / "b" / "output", "easyvqa_train")):
        asked = list(zip(row.conversations[::2], row.conversations[1::2], strict=True))
        known = set().union(*(smol.affirmed(q.removeprefix("<image>\n"), a) for (_, q), (_, a) in asked))
        assert f"a {' '.join(sorted(known, key=lambda w: w in smol.SHAPES))}" == captions[row.media[0].uri]


# ---- smol -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("what is the red shape?", "circle", {"red", "circle"}),
        ("what color is the shape?", "teal", {"teal"}),
        ("what color is the triangle?", "blue", {"blue", "triangle"}),
        ("is there a green shape?", "yes", {"green"}),
        ("is there a green shape?", "no", set()),
        ("is no circle present?", "no", {"circle"}),
        ("is no circle present?", "yes", set()),
        ("does the image not contain a gray shape?", "no", {"gray"}),
        ("is there not a circle in the image?", "yes", set()),
    ],
)
def test_only_what_a_question_affirms_is_known(question, answer, words):
    assert smol.affirmed(question, answer) == words


def test_captions_say_only_what_is_known():
    assert smol.caption_of([(0, "what is the red shape?", "circle")]) == "a red circle"
    assert smol.caption_of([(0, "what color is the shape?", "red")]) == "a red shape"
    assert smol.caption_of([(0, "is there a circle?", "yes")]) == "a circle"
    assert smol.caption_of([(0, "is there a circle?", "no")]) == ""
    with pytest.raises(AnyloomError, match="affirm"):
        smol.caption_of([(0, "is there a circle?", "yes"), (1, "is there a triangle?", "yes")])


def test_caption_inside_a_sentence():
    assert in_sentence("A frog.") == "a frog" and in_sentence("US flag.") == "US flag"
    assert smol.is_noun_phrase("An owl.", 8) and not smol.is_noun_phrase("Remember to flush!", 8)
    assert not smol.is_noun_phrase("A knight. It can jump.", 8)


def fake_assets(root: Path, stamps: int) -> Path:
    """Assets in the shape of the real ones: `stamps` pictures (two share a caption, two share their bytes) and 6 + 2 easy-VQA pictures."""
    for split, count in (("train", 6), ("test", 2)):
        asked = [[q, a, n] for n in range(count) for q, a in (("what is the red shape?", "circle"), ("is there a circle?", "yes"))]
        write(root / "easy_vqa" / split / "questions.json", json.dumps(asked))
        for n in range(count):
            (root / "easy_vqa" / split / "images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (200, n, 0 if split == "train" else 9)).save(root / "easy_vqa" / split / "images" / f"{n}.png")
    for n in range(stamps):
        stem = root / "stamps" / "animals" / f"x{n:02d}"
        write(stem.with_suffix(".txt"), f"A thing {max(n, 1)}.\nfr.utf8=Une chose.\n")
        Image.new("RGBA", (20, 10), (min(n, stamps - 2), 90, 0, 128)).save(stem.with_suffix(".png"))
        if n % 3 == 0:
            write(stem.with_suffix(".ogg"), f"sound {n}")
        if n % 2 == 0:
            write(stem.with_name(f"{stem.name}_desc.ogg"), f"spoken {n}")
            write(stem.with_name(f"{stem.name}_desc_fr.ogg"), f"dite {n}")
    return root


def test_stamps_keep_effects_and_the_asked_spoken_descriptions(tmp_path):
    root = fake_assets(tmp_path, 7) / "stamps"
    write(root / "symbols" / "one.txt", "One.")
    write(root / "symbols" / "one.ogg", "the word one")
    write(root / "symbols" / "one_desc_fr.ogg", "un")
    kept = assets.stamp_files(root, ("en", "fr"))
    assert {"animals/x06.ogg", "animals/x06_desc.ogg", "animals/x06_desc_fr.ogg", "symbols/one_desc_fr.ogg"} <= set(kept)
    assert "symbols/one.ogg" not in kept and "animals/x01.ogg" not in kept
    assert assets.stamp_files(root, ()) == [name for name in kept if "_desc" not in name and not name.startswith("symbols")]


def test_smol_lists_hold_out_whole_groups_with_their_clips_and_sounds(tmp_path):
    source = fake_assets(tmp_path / "assets", 40)
    config = SmolListsConfig(heldout=0.4, clips=30, spoken_each=9, clip_side=32, clip_frames=3, draw_per_caption=3)
    ctx = context(tmp_path / "run", config, assets=source)
    result = smol.run(ctx)
    root = ctx.output
    assert result["left_out"] == ["no voice: spoken_train and speak_train are empty"]
    assert result["rows"]["stamps_train"] + result["rows"]["stamps_heldout"] == 40
    assert min(result["rows"][f"{kind}_{split}"] for kind in ("stamps", "sounds", "clips") for split in ("train", "heldout")) > 0
    sides = {s: {r.texts[0]: (root / r.media[0].uri).read_bytes() for r in cc3m.read(list_path(root, f"stamps_{s}"))} for s in ("train", "heldout")}
    assert not sides["train"].keys() & sides["heldout"].keys()
    assert not set(sides["train"].values()) & set(sides["heldout"].values())
    heard = {}
    for split in sides:
        things = {in_sentence(caption) for caption in sides[split]}
        sounds = [r.texts[0] for r in audiocaps.read(list_path(root, f"sounds_{split}"), SOUNDS)]
        assert {c.removeprefix("the sound of ") for c in sounds if c.startswith("the sound of ")} <= things
        spoken = [re.fullmatch("a voice names (.*) in (English|French)", c) for c in sounds if not c.startswith("the sound of ")]
        assert spoken and {match[1] for match in spoken} <= things
        heard[split] = len(sounds)
        assert {r.texts[0].split(",")[0] for r in webvid.read(list_path(root, f"clips_{split}"))} <= things
    assert sum(heard.values()) == 14 + 2 * 9  # every effect; of each language as many as asked for
    drawn = {r.texts[0] for r in instruct.read(list_path(root, "draw_train"))}
    assert "a red circle" in drawn and not drawn & {in_sentence(caption) for caption in sides["heldout"]}


def test_smol_lists_continue_after_a_kill_with_the_same_bytes(tmp_path):
    source = fake_assets(tmp_path / "assets", 12)
    config = SmolListsConfig(clips=6, clip_side=32, clip_frames=3)
    whole = context(tmp_path / "whole", config, assets=source)
    smol.run(whole)
    killed = context(tmp_path / "killed", config, assets=source)

    def stop(done, total, note=""):
        if note == "videos" and done > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smol.run(replace(killed, progress=stop))
    kept = {p: p.stat().st_mtime_ns for p in (killed.work / "clips").iterdir()}
    again = replace(killed, output=tmp_path / "again")
    again.output.mkdir()
    smol.run(again)
    assert kept and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert digest_tree(again.output) == digest_tree(whole.output)


def test_smol_lists_without_stamps_say_so(tmp_path):
    ctx = context(tmp_path / "run", SmolListsConfig(clips=4, clip_side=32, clip_frames=3), assets=fake_assets(tmp_path / "assets", 0))
    result = smol.run(ctx)
    assert result["rows"]["stamps_train"] == 0 and result["rows"]["easyvqa_train"] == 6 and "no stamps" in result["left_out"][0]
    assert result["rows"]["clips_train"] + result["rows"]["clips_heldout"] == 4
    assert list(cc3m.read(list_path(ctx.output, "stamps_train"))) == []
    assert list(audiocaps.read(list_path(ctx.output, "sounds_train"), SOUNDS)) == []


def test_clips_move_as_their_caption_says():
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 255))
    for motion in MOTIONS:
        shown = list(frames(picture, motion, 4, 64))
        assert len(shown) == 4 and all(f.size == (64, 64) and f.mode == "RGB" for f in shown)
    left = [min(x for x in range(64) if f.getpixel((x, 32)) == (0, 0, 0)) for f in frames(picture, "moving left", 4, 64)]
    assert left == sorted(left, reverse=True) and left[0] > left[-1]
    dark = [sum(v < 128 for v in f.convert("L").tobytes()) for f in frames(picture, "zooming in", 4, 64)]
    assert dark == sorted(dark) and dark[0] < dark[-1]


def test_clips_have_the_same_bytes_whatever_the_memory_held_before(tmp_path):
    shown = list(frames(Image.new("RGBA", (40, 30), (200, 30, 30, 255)), "moving right", 6, 96))
    made = set()
    for turn in range(30):
        junk = [os.urandom(1000 + 7919 * turn * k % 300_000) for k in range(6)]
        made.add(encode_mp4(iter(shown), 12))
        del junk
    assert len(made) == 1


@pytest.mark.parametrize("restate", (False, True))
def test_conversations_go_from_a_picture_to_a_request_for_another_thing(restate):
    asked = {number: [(number * 10 + i, f"question {number}.{i}?", f"answer {i}") for i in range(3)] for number in range(5)}
    captions = {0: "a red circle", 1: "a red circle", 2: "a blue triangle", 3: "a shape", 4: "a teal rectangle"}
    uris = {number: f"media/{number}.png" for number in asked}
    records = converse_records(asked, captions, uris, len(KINDS), voice=True, restate=restate)
    assert len(records) == 3 * len(KINDS) and len({record["id"] for record in records}) == len(records)
    assert records == converse_records(asked, captions, uris, len(KINDS), voice=True, restate=restate)
    for record in records:
        turns = [turn["value"] for turn in record["conversations"]]
        given = "audio" if "output_audio" in record else "image"
        (caption,) = record[f"{given}_captions"]
        answers = turns[1::2]
        assert ("image" in record) == turns[0].startswith("<image>\n") and sum("<" in answer for answer in answers) == 1
        request = turns[turns.index(f"{caption if restate else ''}<{given}>") - 1]
        assert all(word in request for word in caption.replace('the words "', "").rstrip('"').split() if word not in ("a",))
        if given == "image":
            assert captions[int(record["output_image"].split("/")[1].split(".")[0])] == caption
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if question.startswith("<image>"):
                assert record["image"] == f"media/{question.split()[2].split('.')[0]}.png" and answer.startswith("answer")
    assert {len(record["conversations"]) // 2 for record in records} == {2, 3}
    assert not any("output_audio" in record for record in converse_records(asked, captions, uris, 12, voice=False, restate=restate))
    assert {record["image"] for record in records if "image" in record} == set(uris.values())


def test_conversations_are_records_that_the_reader_takes(tmp_path):
    asked, captions = {0: [(0, "what is it?", "circle")]}, {0: "a red circle"}
    write_instruct(tmp_path, "converse_train", converse_records(asked, captions, {0: "media/0.png"}, len(KINDS), voice=True, restate=False))
    rows = list(instruct.read(tmp_path / "instruct" / "converse_train.json"))
    assert [row.modality for row in rows] == ["image", "image", "image", "text", "image", "text"]
    assert all(len(row.texts) == 1 for row in rows)
