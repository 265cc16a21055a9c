"""Behaviour of the manifest and overlap steps."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from infra.step import AnyloomError, Artifact, StepContext
from pipelines.demo.tiny import SHAPES, Shape, image_of
from pipelines.shards import manifest, overlap
from pipelines.shards.config import DatasetSpec, ManifestConfig, OverlapConfig

STAMPS = DatasetSpec(name="stamps", format="cc3m", path="stamps.tsv", split="train", licence="MIT")


def run(folder: Path, config: object, sources: dict[str, Path] | None = None, lists: Path | None = None) -> tuple[dict, list[dict]]:
    folder.mkdir(exist_ok=True)
    inputs = {"lists": Artifact(name="lists", path=lists, fingerprint="f", digest="d", result={})} if lists else {}
    ctx = StepContext(name="manifest", config=config, inputs=inputs, sources=sources or {}, output=folder, work=folder, stores=folder)
    return manifest.run(ctx), pq.read_table(folder / "manifest.parquet").to_pylist()


@pytest.fixture
def lists(tmp_path):
    root = tmp_path / "lists"
    root.mkdir()
    (root / "stamps.tsv").write_text("A frog.\tmedia/frog.png\n\tmedia/none.png\n")
    (root / "sounds.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,bark,30,a dog\n")
    talk = [{"from": "human", "value": "draw é"}, {"from": "gpt", "value": "<image>"}]
    (root / "draw.json").write_text(json.dumps([{"output_image": "media/frog.png", "image_captions": ["é"], "conversations": talk}]))
    return root


def test_one_row_per_record_in_order_of_source_and_row(tmp_path, lists):
    sounds = DatasetSpec(name="sounds", format="audiocaps", path="sounds.csv", split="heldout", licence="CC0", span_s=10.0)
    draw = DatasetSpec(name="draw", format="instruct", path="draw.json", split="train", licence="MIT")
    result, rows = run(tmp_path / "out", ManifestConfig(datasets=(STAMPS, sounds, draw)), lists=lists)
    assert result == {"rows": {"draw": 1, "sounds": 1, "stamps": 2}, "total": 4, "without_text": 1, "refused": 0}
    assert [r["key"] for r in rows] == ["draw-000000", "sounds-000000", "stamps-000000", "stamps-000001"]
    assert rows[0]["modality"] == "text" and rows[0]["media"][0]["role"] == "output" and json.loads(rows[0]["conversations"])[0]["value"] == "draw é"
    assert rows[1]["media"] == [{"role": "input", "modality": "audio", "uri": "media/audio/bark.ogg", "start_s": 30.0, "end_s": 40.0}]
    assert (rows[1]["split"], rows[1]["licence"]) == ("heldout", "CC0")
    assert rows[2]["texts"] == ["A frog."] and rows[2]["conversations"] == "[]" and rows[2]["media"][0]["start_s"] is None
    assert rows[3]["texts"] == []  # stays: the shards step writes it to the ledger as empty_text


def test_order_of_the_datasets_changes_nothing(tmp_path, lists):
    other = replace(STAMPS, name="again")
    for name, datasets in (("a", (STAMPS, other)), ("b", (other, STAMPS))):
        run(tmp_path / name, ManifestConfig(datasets=datasets), lists=lists)
    assert (tmp_path / "a" / "manifest.parquet").read_bytes() == (tmp_path / "b" / "manifest.parquet").read_bytes()


def test_a_list_from_outside_takes_the_place_of_the_path(tmp_path, lists):
    mine = tmp_path / "mine.tsv"
    mine.write_text("my caption\tx.png\n")
    _, rows = run(tmp_path / "out", ManifestConfig(datasets=(STAMPS,)), sources={"stamps": mine})
    assert [r["texts"] for r in rows] == [["my caption"]]
    with pytest.raises(AnyloomError, match="no lists artifact and no source file"):
        run(tmp_path / "none", ManifestConfig(datasets=(STAMPS,)))


def test_empty_lists_give_an_empty_manifest_with_the_full_schema(tmp_path, lists):
    (lists / "stamps.tsv").write_text("")
    result, rows = run(tmp_path / "out", ManifestConfig(datasets=(STAMPS,)), lists=lists)
    assert rows == [] and result["total"] == 0
    assert pq.read_schema(tmp_path / "out" / "manifest.parquet").names == manifest.SCHEMA.names


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "laion"}, "format is 'laion'; it is one of cc3m"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"name": "a-b"}, "letters, digits and _ only"),
    ],
)
def test_bad_specs_are_refused(tmp_path, lists, change, problem):
    with pytest.raises(AnyloomError, match=problem):
        run(tmp_path / "out", ManifestConfig(datasets=(replace(STAMPS, **change),)), lists=lists)
    with pytest.raises(AnyloomError, match="listed 2 times"):
        run(tmp_path / "out2", ManifestConfig(datasets=(STAMPS, STAMPS)), lists=lists)


def test_batches_join_without_a_seam(tmp_path, lists, monkeypatch):
    monkeypatch.setattr(manifest, "BATCH_ROWS", 3)
    (lists / "stamps.tsv").write_text("".join(f"caption {i}\t{i}.png\n" for i in range(7)))
    _, rows = run(tmp_path / "out", ManifestConfig(datasets=(STAMPS,)), lists=lists)
    assert [r["key"] for r in rows] == [f"stamps-{i:06d}" for i in range(7)]


# ---- overlap --------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def fake_shards(samples: list[tuple[str, str, bytes]]) -> SimpleNamespace:
    """(source, split, bytes) as a ShardSet."""
    import hashlib

    keys = [f"{source}-{i:06d}" for i, (source, _, _) in enumerate(samples)]
    data = dict(zip(keys, (b for _, _, b in samples), strict=True))
    index = pa.table(
        {
            "key": keys,
            "source": [s for s, _, _ in samples],
            "split": [p for _, p, _ in samples],
            "modality": ["image"] * len(samples),
            "media_sha256": [hashlib.sha256(b).hexdigest() for _, _, b in samples],
        }
    )
    return SimpleNamespace(index=index, media=data.__getitem__)


def compare(tmp_path: Path, samples: list[tuple[str, str, bytes]], monkeypatch, **settings: int) -> tuple[dict, list[dict]]:
    monkeypatch.setattr("pipelines.shards.overlap.ShardSet", lambda path, stores: fake_shards(samples))
    inputs = {"shards_cc3m": Artifact(name="s", path=tmp_path, fingerprint="f", digest="d", result={})}
    ctx = StepContext(name="overlap", config=OverlapConfig(**settings), inputs=inputs, sources={}, output=tmp_path, work=tmp_path, stores=tmp_path)
    result = overlap.run(ctx)
    assert json.loads((tmp_path / "overlap.json").read_text())["pairs"] == result["pairs"]
    return {(c["heldout"], c["train"]): (c["exact"], c["near"]) for c in result["pairs"]}, pq.read_table(tmp_path / "overlap.parquet").to_pylist()


def scene(seed: int) -> Image.Image:
    """A picture with enough in it to be told apart."""
    draws = random.Random(seed)
    image = Image.new("RGB", (96, 96), (240, 240, 230))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = draws.randrange(96), draws.randrange(96), draws.randrange(8, 24)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(draws.randrange(256) for _ in range(3)))
    return image


def test_exact_and_near_pictures_are_counted_apart_and_others_not_at_all(tmp_path, monkeypatch):
    seen, other = scene(1), scene(2)
    samples = [
        ("train", "train", encoded(seen)),
        ("train", "train", encoded(scene(3))),
        ("test", "test", encoded(seen)),
        ("test", "test", encoded(seen, "JPEG")),
        ("test", "test", encoded(seen.resize((200, 200)))),
        ("test", "test", encoded(other)),
    ]
    counts, pairs = compare(tmp_path, samples, monkeypatch)
    assert counts == {("test", "train"): (1, 2)}
    assert [(p["heldout_key"], p["train_key"], p["kind"]) for p in pairs] == [
        ("test-000002", "train-000000", "exact"),
        ("test-000003", "train-000000", "near"),
        ("test-000004", "train-000000", "near"),
    ]


def test_colour_tells_apart_what_the_grey_hash_cannot(tmp_path, monkeypatch):
    pictures = [image_of(Shape(colour, SHAPES[0]), 48, random.Random(5)) for colour in ("red", "teal")]
    assert overlap.difference_hash(pictures[0]) == overlap.difference_hash(pictures[1])
    counts, _ = compare(tmp_path, [("train", "train", encoded(pictures[0])), ("test", "test", encoded(pictures[1]))], monkeypatch)
    assert counts == {("test", "train"): (0, 0)}


def test_counts_do_not_depend_on_how_much_is_compared_at_once(tmp_path, monkeypatch):
    images = [encoded(scene(i % 5), "PNG" if i < 10 else "JPEG") for i in range(20)]
    samples = [("train", "train", b) for b in images[:10]] + [("held", "heldout", b) for b in images[10:]] + [("held", "heldout", images[0])]
    whole = compare(tmp_path, samples, monkeypatch)
    monkeypatch.setattr(overlap, "COMPARED_AT_ONCE", 7)
    monkeypatch.setattr(overlap, "COLOURS_AT_ONCE", 1)
    assert compare(tmp_path, samples, monkeypatch) == whole and whole[0] == {("held", "train"): (1, 10)}
    assert np.bincount([row["heldout_key"] == "held-000020" for row in whole[1]])[1] == 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [("cc3m", ""), ("cc3m", "\n \n"), ("cc3m", "\ufeff\n"), ("cc3m", "caption\turl\n"), ("webvid", "videoid,contentUrl,name\n"), ("instruct", "[]")],
)
def test_a_list_of_the_users_own_without_rows_is_refused(tmp_path, kind, text):
    own = tmp_path / "own.tsv"
    own.write_text(text)
    spec = DatasetSpec(name="own", format=kind, path="own.tsv", split="train", licence="own")
    with pytest.raises(AnyloomError, match=r"own\.tsv: the list of dataset 'own' has no rows"):
        run(tmp_path / "out", ManifestConfig(datasets=(spec,)), sources={"own": own})
