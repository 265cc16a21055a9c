"""Retrieval: ranks, recall, chance and neighbours by hand; pooled captions in the store; the sheet and the errors of search."""

import argparse
import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from data_steps import pictures, png, row, run_step, tree, wav, write_manifest
from PIL import Image

from evals.captions.retrieval import caption_groups, category, chance_level, mean_vectors, neighbour_hits, ranks, retrieval_metrics
from evals.config import RetrievalEvalConfig
from evals.heldout import Media, distinct_media
from evals.pages.gallery import MAX_AUDIO_BYTES, Shown, preview, sheet
from flows.cli.search import add_search, search
from infra.step import AnyloomError, Artifact
from mmcore.encoder_config import BertText, HfText, encoder_config
from mmcore.encoders import load_encoder
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.shards import ShardSet
from mmcore.training.signals import target_key
from pipelines.dag.build import build
from pipelines.demo.clips import encode_mp4, frames
from pipelines.embed.config import EmbedConfig
from pipelines.embed.search import SharedSpace, nearest_media
from pipelines.recipes import get_recipe
from pipelines.shards.config import ShardsConfig
from pipelines.weights.config import ImageBindConfig

POOLED = BertText(arch="bert", width=32, tokens=0, batch=3, part_rows=4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from pipelines.toys.parts import tiny_bert

    directory = tmp_path_factory.mktemp("weights_text")
    model, tokenizer = tiny_bert(0)
    model.save_pretrained(directory / "encoder")
    tokenizer.save_pretrained(directory / "encoder")
    return directory


# ---- pooled captions


def test_pooled_text_is_the_mean_of_its_own_tokens_whatever_stands_beside_it(bert):
    texts = ["a cat", "a much longer caption about a cat", "", "x" * 200]
    encoder = load_encoder(dataclasses.replace(POOLED, dtype="float32"), bert)
    found = encoder.encode([text.encode() for text in texts])
    for text, vector in zip(texts, found, strict=True):
        ids = encoder._tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            expected = encoder._model(**ids).last_hidden_state[0].mean(0, keepdim=True).numpy()
        assert vector.shape == (1, 32) and np.allclose(vector, expected, atol=1e-6)
        assert np.allclose(vector, encoder.encode([text.encode()])[0], atol=1e-6)


def test_pooled_text_is_that_of_sentence_transformers(bert):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    word = models.Transformer(str(bert / "encoder"), max_seq_length=64)
    reference = sentence_transformers.SentenceTransformer(modules=[word, models.Pooling(32, pooling_mode="mean")], device="cpu")
    texts = ["a dog barking", "the sound of a bell, twice as long"]
    found = load_encoder(dataclasses.replace(POOLED, dtype="float32"), bert).encode([text.encode() for text in texts])
    assert np.allclose(np.concatenate(found), reference.encode(texts, normalize_embeddings=False), atol=1e-5)


def test_one_or_two_tokens_are_refused(bert):
    with pytest.raises(ValueError, match="or 0 for one pooled vector, got 2"):
        load_encoder(dataclasses.replace(POOLED, tokens=2), bert)


def prepared(root, bert):
    rows = pictures(root, 7)
    rows[4]["texts"] = ["caption 0", "another"]
    rows[5]["split"] = "heldout"
    rows[6]["split"] = "test"
    write_manifest(root, rows)
    run_step(root, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    (root / "weights").symlink_to(bert)
    return root


def test_every_distinct_caption_is_stored_once_and_a_second_run_encodes_nothing(tmp_path, bert):
    root = prepared(tmp_path, bert)
    entry, inputs = "pipelines.embed.texts:run", {"weights": "weights", "shards_cc3m": "shards", "shards_again": "shards"}
    result = run_step(root, "texts", entry, EmbedConfig(spec=POOLED), inputs)
    assert result == {"samples": 6, "media": 6, "tokens": 6, "parts": 2, "width": 32}
    stored = EmbeddingSet(root / "texts", root / "stores")
    assert target_key("another") in stored and target_key("caption 5") in stored and target_key("caption 6") not in stored
    features, lengths = stored.gather([target_key("another")])
    computed = load_encoder(POOLED, bert).encode([b"another"])[0]
    assert lengths.tolist() == [1] and np.allclose(features[0], computed, atol=2e-3)
    before = tree(root, "texts")
    run_step(root, "more", entry, EmbedConfig(spec=POOLED), inputs)
    assert tree(root, "more")["more"] == before["texts"] and tree(root)["stores"] == before["stores"]
    with pytest.raises(AnyloomError, match="no sample in the splits nowhere has a caption"):
        run_step(root, "none", entry, EmbedConfig(spec=POOLED, splits=("nowhere",)), inputs)


# ---- metrics


def test_ranks_by_hand_with_ties_against_us():
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.3, 0.8, 0.7]])
    correct = np.array([[True, False, False], [False, True, False], [True, False, True]])
    assert ranks(scores, correct).tolist() == [1, 3, 2]
    with pytest.raises(ValueError, match="not a number"):
        ranks(scores * np.nan, correct)


def test_chance_level_is_exact():
    assert chance_level(1, 40, 5) == pytest.approx(5 / 40)
    assert chance_level(2, 4, 1) == pytest.approx(1 / 2) and chance_level(2, 4, 2) == pytest.approx(1 - 1 / 6)
    assert chance_level(1, 3, 10) == 1
    draws = np.random.default_rng(0)
    hits = np.mean([bool(set(draws.choice(20, 5, replace=False)) & {0, 1, 2}) for _ in range(4000)])
    assert chance_level(3, 20, 5) == pytest.approx(hits, abs=0.03)


def test_recall_counts_a_hit_for_any_carrier_of_the_caption():
    base = {"modality": "image", "source": "s", "media_sha256": "m", "caption": "c", "key": "k", "candidates": 10}
    samples = [
        {**base, "direction": "media_to_text", "media_group": group, "rank": rank, "correct": correct}
        for group, rank, correct in (("a", 1, 1), ("b", 5, 2), ("c", 6, 1), ("d", 11, 1))
    ]
    rows = {(row["condition"], row["metric"]): row for row in retrieval_metrics("image", samples, RetrievalEvalConfig(bootstrap_draws=200))}
    assert [rows["media_to_text", f"recall_at_{k}"]["value"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    floor = rows["media_to_text chance", "recall_at_5"]
    assert floor["kind"] == "floor" and floor["value"] == pytest.approx((3 * 0.5 + chance_level(2, 10, 5)) / 4)
    gain = rows["media_to_text - chance", "recall_at_1"]
    assert gain["value"] == pytest.approx(0.25 - (3 * 0.1 + 0.2) / 4) and gain["ci_lo"] < gain["value"] < gain["ci_hi"]
    assert {row["n"] for row in rows.values()} == {4} == {row["clusters"] for row in rows.values()}
    assert not any(condition.startswith("text_to_media") for condition, _ in rows)


def test_media_that_share_captions_are_one_group():
    media = Media(list("abcde"), ["5", "4", "3", "2", "1"], [["x"], ["x", "y"], ["z"], ["y"], ["q"]], [""] * 5)
    assert caption_groups(media) == ["2", "2", "3", "2", "1"]


def test_distinct_media_keep_every_caption(tmp_path):
    rows = pictures(tmp_path, 4)
    (tmp_path / "lists" / "media" / "3.png").write_bytes(png(0))
    write_manifest(tmp_path, rows)
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    found = distinct_media(ShardSet(tmp_path / "shards", tmp_path / "stores"), ("pets",))
    assert found.keys == ["pets-000000", "pets-000001", "pets-000002"] and found.captions[0] == ["caption 0", "caption 3"]
    assert found.uris == ["media/0.png", "media/1.png", "media/2.png"] and len(set(found.sha256)) == 3


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("media/stamps/animals/dogs/dog.png", "animals"),
        ("media/audio/animals__dog.ogg", "animals"),
        ("media/clips/train_000.mp4", ""),
        ("dog.png", ""),
    ],
)
def test_category_of_a_path(uri, name):
    assert category(uri, 2) == name


def test_neighbours_against_random_ones():
    """Two tight clusters and one medium that has no other of its name."""
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.5, 0.6]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hits, chance = neighbour_hits(vectors, ["a", "a", "a", "b", "b", "c"], 2)
    assert hits.tolist() == [1, 1, 1, 1, 1, 0]
    assert chance.tolist() == pytest.approx([chance_level(2, 5, 2)] * 3 + [chance_level(1, 5, 2)] * 2 + [0])


def test_mean_vectors_ignore_padding():
    class Source:
        def gather(self, keys):
            return np.array([[[3, 4], [3, 4]], [[0, 2], [0, 0]]], np.float32)[[int(key) for key in keys]], np.array([2, 1])[[int(key) for key in keys]]

    assert np.allclose(mean_vectors(Source(), ["0", "1"], 1), [[0.6, 0.8], [0, 1]])


# ---- sheet


def test_sheet_is_self_contained_and_escaped():
    movie = encode_mp4(frames(Image.new("RGB", (40, 30), (200, 0, 0)), "zooming in", 6, 64), 12)
    caption = '<script>alert("x")</script> & co'
    items = [
        Shown(key="pets-000001", modality="image", caption=caption, score=0.5, data=png(1, 900)),
        Shown(key="clips-000001", modality="video", caption="a clip", score=0.4, data=movie),
        Shown(key="sounds-000001", modality="audio", caption="", score=0.3, data=wav(0)),
        Shown(key="sounds-000002", modality="audio", caption="long", score=0.2, data=wav(0, MAX_AUDIO_BYTES / 32000 + 1)),
    ]
    page = sheet('"><b>query', "about", items)
    assert "<script>" not in page and "&lt;script&gt;alert(&quot;x&quot;)" in page and "&quot;&gt;&lt;b&gt;query" in page
    assert not re.search(r"""(src|href)=["']https?:""", page) and "default-src 'none'" in page and "media-src data:" in page
    assert page.count("<audio") == 1 and "data:audio/wav;base64," in page and "too large to be played here" in page
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    assert [max(picture.size) for picture in thumbnails] == [240, 128]  # a clip: four frames of 64 x 64
    assert thumbnails[1].size == (128, 128) and "0.500" in page and "pets-000001" in page
    assert preview(items[1]) == preview(items[1])


# ---- a space that a model's own text side shares


def test_search_in_the_space_of_one_model(tmp_path):
    rows = pictures(tmp_path, 3)
    (tmp_path / "lists" / "media" / "2.png").write_bytes(png(0))  # the bytes of the first
    for i in range(2):
        (tmp_path / "lists" / f"{i}.wav").write_bytes(wav(i, 1.0))
    write_manifest(tmp_path, rows + [row(i, f"{i}.wav", source="sounds", modality="audio") for i in range(2)])
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    specs = {name: encoder_config(f"imagebind_{name}", {"arch": "imagebind_toy", "width": 32, "batch": 2}) for name in ("image", "audio", "text")}
    for name, trunk in (("image", "vision"), ("audio", "audio"), ("text", "text")):
        config = ImageBindConfig(kind="random", arch="imagebind_toy", trunks=(trunk,))
        run_step(tmp_path, f"weights_{name}", "pipelines.weights.parts:run_imagebind", config, {})
    for name in ("image", "audio"):
        run_step(tmp_path, f"embed_{name}", "pipelines.embed.media:run", EmbedConfig(spec=specs[name]), {"weights": f"weights_{name}", "shards_a": "shards"})
    names = {"embed_image": "embed_image", "embed_audio": "embed_audio", "shards_a": "shards"}
    artifacts = {name: Artifact(name=name, path=tmp_path / folder, fingerprint="f", digest="d", result={}) for name, folder in names.items()}
    space = SharedSpace(specs["text"], tmp_path / "weights_text", {name: specs[name] for name in ("image", "audio")})
    hits = nearest_media("a dog", 9, space, artifacts, tmp_path / "stores")
    (query,) = load_encoder(specs["text"], tmp_path / "weights_text").encode([b"a dog"])
    expected = {}
    for key, modality, data in (
        ("pets-000000", "image", png(0)),
        ("pets-000001", "image", png(1)),
        *((f"sounds-{i:06d}", "audio", wav(i, 1.0)) for i in range(2)),
    ):
        (vector,) = load_encoder(specs[modality], tmp_path / f"weights_{modality}").encode([data])
        expected[key] = float(np.dot(vector[0].astype(float), query[0].astype(float)))
    assert {hit.key: hit.score for hit in hits} == pytest.approx(expected, abs=2e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.caption for hit in hits} == {"caption 0", "caption 1"} and hits[0].data in (png(0), png(1), wav(0, 1.0), wav(1, 1.0))
    with pytest.raises(AnyloomError, match="no media encoder of the recipe stores pooled vectors of imagebind_toy"):
        SharedSpace(specs["text"], tmp_path / "weights_text", {"image": dataclasses.replace(specs["image"], grid=2), "audio": POOLED})


def test_the_query_encoders_weights_have_a_step():
    steps = build(get_recipe("tiny_nextgpt"))
    assert steps["weights_query"].config.trunks == ("text",) and "weights_query" not in build(get_recipe("tiny"))
    recipe = dataclasses.replace(get_recipe("tiny_nextgpt"), query_weights="weights_nowhere")
    with pytest.raises(AnyloomError, match="query_weights weights_nowhere: no such step; use weights_image"):
        build(recipe)
    joint = dataclasses.replace(recipe, query=HfText(arch=recipe.query.arch, width=recipe.query.width), query_weights="weights_image")
    assert "weights_query" not in build(joint)
    with pytest.raises(AnyloomError, match="query hf_text: give its files with --weights query=DIR"):
        build(dataclasses.replace(joint, query_weights=""))


# ---- errors of search


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": "  "}, "the query is empty"),
        ({"top": 0}, r"--top 0: at least 1"),
        ({"recipe": "clipp"}, "no recipe called clipp; there are: tiny"),
        ({"recipe": "tiny"}, "recipe tiny has no text side to search with; use --recipe clip_two_tower"),
        (
            {},
            r"nothing is embedded for this recipe \(embed_image, .*embed_text not done\) below .*; first: anyloom run two_tower --recipe tiny_two_tower --root",
        ),
        (
            {"recipe": "tiny_nextgpt"},
            r"\(embed_image, embed_video, embed_audio not done\) .*; first: anyloom run weights_query embed_image embed_video embed_audio",
        ),
        ({"out": "."}, "this is a directory"),
    ],
)
def test_search_says_what_is_wrong_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / arguments.pop("out", "sheet.html")
    with pytest.raises(AnyloomError, match=message) as caught:
        search(tmp_path / "runs", arguments.get("recipe", "tiny_two_tower"), arguments.get("query", "a dog"), arguments.get("top", 3), out)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.html"))


def test_the_command_has_its_options():
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--recipe", default="smol")
    parser = argparse.ArgumentParser()
    add_search(parser.add_subparsers(), [which])
    args = parser.parse_args(["search", "a dog barking", "--top", "4", "--recipe", "clip_two_tower", "--out", "x.html"])
    assert (args.query, args.top, args.recipe, str(args.out)) == ("a dog barking", 4, "clip_two_tower", "x.html") and callable(args.handler)
