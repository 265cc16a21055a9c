"""Media and captions without features: left out of training and of every evaluation, told with their number and reason, and no stop."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from data_steps import pictures, run_step, write_manifest
from PIL import Image
from safetensors.torch import save_file
from test_embed import SPEC, weights  # noqa: F401  # a fixture
from test_retrieval import POOLED, bert  # noqa: F401  # a fixture

from evals.captions.alignment import scored_captions
from evals.captions.captions import pair_up
from evals.config import AlignmentEvalConfig, CaptionEvalConfig, RetrievalEvalConfig
from infra.step import AnyloomError, Artifact, StepContext
from mmcore.config import InputProjectorSpec, ModelSpec, OutputProjectorSpec, PairsStage, TowerShape, TwoTowerSpec
from mmcore.encoders.squares import refuse_thin
from mmcore.encoders.timm_image import TimmImageEncoder
from mmcore.media.decode import decode_image
from mmcore.stores.shards import ShardSet
from mmcore.training.signals import caption_key, target_key
from mmcore.training.targets import with_targets
from mmcore.two_tower.pairs import with_vectors
from mmcore.types import Sample
from pipelines.embed.config import EmbedConfig
from pipelines.shards.config import ShardsConfig
from pipelines.training.config import TrainConfig

MODEL = ModelSpec(encoders=(("image", SPEC),), input_projector=InputProjectorSpec(), output_projector=OutputProjectorSpec())


def strip(height: int = 900) -> bytes:
    """An image that decodes, and that an encoder may refuse."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def embed(folder: Path) -> dict:
    """Features by an encoder that takes no strips."""
    original = TimmImageEncoder.prepare

    def prepare(self, data, *more):
        refuse_thin(decode_image(data))
        return original(self, data, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimmImageEncoder, "prepare", prepare)
        return run_step(folder, "embed", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), {"weights": "weights", "shards_cc3m": "shards"})


@pytest.fixture(scope="module")
def root(tmp_path_factory, weights, bert):  # noqa: F811
    """Shards of ten training and eight held-out images, their features and vectors of their captions; one image of each side is a strip."""
    folder = tmp_path_factory.mktemp("left_out")
    train, heldout = pictures(folder, 10, source="train"), pictures(folder, 18, source="heldout")[10:]
    heldout = [{**row, "key": f"heldout-{number:06d}", "split": "heldout"} for number, row in enumerate(heldout)]
    for number in (3, 12):
        (folder / "lists" / "media" / f"{number}.png").write_bytes(strip(900 + number))
    write_manifest(folder, [*train, *heldout])
    run_step(folder, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    (folder / "weights").symlink_to(weights)
    (folder / "weights_text").symlink_to(bert)
    result = embed(folder)
    assert (result["failed"], result["reasons"]) == (2, {"too_large": 2})
    run_step(folder, "texts", "pipelines.embed.texts:run", EmbedConfig(spec=POOLED), {"weights": "weights_text", "shards_cc3m": "shards"})
    return folder


def context(root: Path, config: object, **inputs: str) -> StepContext:
    given = {name: Artifact(name=name, path=root / folder, fingerprint="f", digest="d", result={}) for name, folder in inputs.items()}
    return StepContext(name="eval", config=config, inputs=given, sources={}, output=root, work=root, stores=root / "stores")


def test_captions_are_paired_among_those_that_have_features(root):
    ctx = context(root, CaptionEvalConfig(model=MODEL, datasets=(("image", "heldout"),)), shards_cc3m="shards", embed_image="embed")
    rows, (line,) = pair_up(ctx, "image", "heldout")
    assert len(rows) == 7 and not {"heldout-000002"} & {key for row in rows for key in (row["key"], row["other_key"])}
    assert line.startswith("1 of 8 captions of heldout are not scored (too_large 1), the first is heldout-000002: ")
    whole, none = pair_up(ctx, "image", "train")
    assert len(whole) == 9 and len(none) == 1
    assert pair_up(ctx, "image", "no_such_list") == ([], [])


def test_too_few_captions_are_told_where_features_are_missing_and_stop_where_none_are(root, tmp_path, weights):  # noqa: F811
    def pair(data: dict[int, bytes]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        rows = pictures(folder, len(data), source="few")
        for number, content in data.items():
            (folder / "lists" / "media" / f"{number}.png").write_bytes(content)
        write_manifest(folder, rows)
        run_step(folder, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
        (folder / "weights").symlink_to(weights)
        embed(folder)
        ctx = context(folder, CaptionEvalConfig(model=MODEL), shards_cc3m="shards", embed_image="embed")
        return pair_up(ctx, "image", "few")

    good = (root / "lists" / "media" / "0.png").read_bytes()
    rows, lines = pair({0: good, 1: strip()})
    assert rows == [] and lines[0].startswith("1 of 2 captions of few are not scored") and lines[1].startswith("the other captions of few: ")
    with pytest.raises(AnyloomError, match="dataset few: "):
        pair({0: good})


def test_two_towers_are_trained_and_scored_without_what_has_no_features(root):
    shape = TwoTowerSpec(encoders=(("image", SPEC),), text=POOLED, shape=TowerShape(width=8))
    stage = PairsStage(stage="two_tower", steps=3, batch=4, lr=1e-2, warmup_steps=1, checkpoint_every=2, mixture=(("train", 1.0),))
    given = {"shards_cc3m": "shards", "embed_image": "embed", "embed_text": "texts"}
    result = run_step(root, "two_tower", "pipelines.training.train:run", TrainConfig(model=shape, stage=stage), given)
    (line,) = result["left_out"]
    assert line.startswith("1 of 10 records are not trained on (no_features 1), the first is train-000003: ")
    (row,) = pq.read_table(root / "two_tower" / "ledger.parquet").to_pylist()
    assert (row["key"], row["status"], row["reason"]) == ("train-000003", "left_out", "no_features")
    neighbours = (("image", ("train", "heldout")),)
    config = RetrievalEvalConfig(datasets=(("image", "heldout"),), neighbours=neighbours, category_folder=0, num_neighbours=2, bootstrap_draws=50)
    result = run_step(root, "retrieval", "evals.captions.retrieval:run", config, {**given, "two_tower": "two_tower"})
    assert [line.partition(",")[0] for line in result["left_out"]] == [
        "1 of 8 media of heldout are no candidates (too_large 1)",
        "2 of 18 media of train",
    ]
    samples = pq.read_table(root / "retrieval" / "samples.parquet").to_pylist()
    assert {sample["candidates"] for sample in samples} == {7} and "heldout-000002" not in {sample["key"] for sample in samples}
    (metric,) = [m for m in pq.read_table(root / "retrieval" / "metrics.parquet").to_pylist() if m["condition"] == "neighbours"]
    assert metric["n"] == 16
    with pytest.raises(AnyloomError, match=r"10 of 10 records are not trained on \(no_features 10\).*more than max_lost 0\.5 of them"):
        run_step(root, "none", "pipelines.training.train:run", TrainConfig(model=shape, stage=stage), {**given, **elsewhere(root)})


def elsewhere(root: Path) -> dict[str, str]:
    """Features of other samples."""
    write_manifest(root, pictures(root, 2, source="others"), "manifest_others")
    run_step(root, "shards_others", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest_others", "lists": "lists"})
    run_step(root, "embed_others", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), {"weights": "weights", "shards_cc3m": "shards_others"})
    return {"embed_image": "embed_others"}


def test_captions_without_states_or_targets_are_not_aligned(root, tmp_path):
    shards = ShardSet(root / "shards", root / "stores")
    train, heldout = ({text for meta in shards.metas(shards.keys(source=name)) for text in meta["texts"]} for name in ("train", "heldout"))
    heldout -= train
    (tmp_path / "states").mkdir()
    known = sorted(heldout)[1:]
    keys = [caption_key("image", caption) for caption in known]
    save_file({"states": torch.zeros(len(keys), 1, 1), "lse": torch.zeros(len(keys), 1)}, tmp_path / "states" / "part.safetensors")
    index = {"vocabulary": 4, "signals": {}, "parts": [{"file": "part.safetensors", "keys": keys}]}
    (tmp_path / "states" / "states.json").write_text(json.dumps(index))
    ctx = context(root, None, targets="texts", states=str(tmp_path / "states"))
    of_train, captions, (line,) = scored_captions(ctx, AlignmentEvalConfig(model=MODEL), train | {"never embedded"}, heldout | {"nor this", "never embedded"})
    assert of_train == sorted(train) and captions == known
    assert line.startswith("2 of 9 held-out captions are not scored (no_features 1, too_long 1), the first is nor this: ")


class Known:
    """A source of features that knows some keys."""

    def __init__(self, *keys: str):
        self.keys = keys

    def __contains__(self, key: object) -> bool:
        return key in self.keys


def sample(number: int, *texts: str, source: str = "pets", modality: str = "image") -> Sample:
    return Sample(key=f"{source}-{number}", source=source, modality=modality, texts=texts, media_sha256=f"sha{number}")


def test_samples_without_targets_or_latents_are_left_out_and_the_others_are_the_same_objects():
    rows = {"pets": [sample(0, "a", "b"), sample(1, "b"), sample(2, "a"), sample(3, "a")], "talk": [sample(4, "c", source="talk")]}
    targets = {"image": Known(target_key("a"))}
    kept, lost = with_targets(rows, {"pets": "image", "talk": ""}, targets, {"image": Known("pets-0", "pets-1", "pets-3")})
    assert kept == {"pets": [replace(rows["pets"][0], texts=("a",)), rows["pets"][3]], "talk": rows["talk"]}
    assert [(one.key, one.status, one.reason) for one in lost] == [
        ("pets-0", "cut", "no_features"),
        ("pets-1", "left_out", "no_features"),
        ("pets-2", "left_out", "no_features"),
    ]
    assert "targets" in lost[1].detail and "latents" in lost[2].detail
    everything = {"image": Known(*map(target_key, "abc"))}
    whole, none = with_targets(rows, {"pets": "image", "talk": ""}, everything, {})
    assert not none and all(one is other for name in rows for one, other in zip(whole[name], rows[name], strict=True))


def test_samples_without_vectors_are_left_out_of_two_towers():
    rows = {"pets": [sample(0, "a", "b"), sample(1, "b"), sample(2, "a"), sample(3), sample(4, "a")]}
    kept, lost = with_vectors(rows, {"image": Known("pets-0", "pets-1", "pets-4")}, Known(target_key("a")))
    assert kept["pets"] == [replace(rows["pets"][0], texts=("a",)), rows["pets"][4]] and kept["pets"][1] is rows["pets"][4]
    assert [(one.key, one.status, one.reason) for one in lost] == [
        ("pets-0", "cut", "no_features"),
        ("pets-1", "left_out", "no_features"),
        ("pets-2", "left_out", "no_features"),
        ("pets-3", "left_out", "nothing_to_learn"),
    ]
