"""Embeddings: each medium once, same bytes with one worker or many, killed or not, cached equals computed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from data_steps import flip, pictures, pinned, png, row, run_step, tree, wav, write_manifest
from safetensors.torch import save_file

import pipelines.embed.pool
import pipelines.embed.worker
from infra import ray_session
from infra.garbage import garbage
from infra.materialize import Place, materialize
from infra.step import AnyloomError, Artifact, Resources, Step
from mmcore.encoder_config import TimmImage, WhisperAudio
from mmcore.encoders import load_encoder
from mmcore.encoders.timm_image import fold_batch_norm
from mmcore.stores.embeddings import EmbeddingSet, space_fields
from mmcore.stores.shards import ShardSet
from pipelines.embed.config import EmbedConfig, TargetsConfig
from pipelines.embed.fill import cut
from pipelines.embed.space import Space, text_sha256
from pipelines.shards.config import ShardsConfig

SPEC = TimmImage(arch="test_efficientnet", width=256, grid=2, image_size=32, batch=4, part_rows=8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("weights_image")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    (directory / "encoder").mkdir()
    save_file(model.state_dict(), directory / "encoder" / "model.safetensors")
    (directory / "encoder.json").write_text(json.dumps({"arch": "test_efficientnet"}))
    return directory


@pytest.fixture(scope="module", autouse=True)
def _ray_ends() -> Iterator[None]:
    """The tests that want Ray share a cluster; the tests of other files do without."""
    yield
    ray_session.stop()


def prepare(root: Path, weights: Path, count: int = 20) -> Path:
    """Shards of `count` pictures (the last one has the bytes of the first) and the weights, below root."""
    root.mkdir(exist_ok=True)
    rows = pictures(root, count)
    (root / "lists" / rows[-1]["media"][0]["uri"]).write_bytes(png(0))
    write_manifest(root, rows)
    run_step(root, f"shards_{count}", "pipelines.shards.plan:run", ShardsConfig(samples_per_shard=10), {"manifest": "manifest", "lists": "lists"})
    if not (root / "weights").exists():
        (root / "weights").symlink_to(weights)
    return root


def embed(root: Path, count: int = 20, name: str = "embed", **resources) -> dict:
    return run_step(root, name, "pipelines.embed.media:run", EmbedConfig(spec=SPEC), {"weights": "weights", "shards_pets": f"shards_{count}"}, **resources)


def test_cached_equals_computed_and_shared_media_are_stored_once(tmp_path, weights):
    root = prepare(tmp_path, weights)
    assert embed(root) == {"samples": 20, "media": 19, "tokens": 76, "parts": 5, "width": 256}
    stored = EmbeddingSet(root / "embed", root / "stores")
    assert stored.keys() == [f"pets-{i:06d}" for i in range(20)] and stored.width == 256 and space_fields(stored.spec) == space_fields(SPEC)
    features, lengths = stored.gather(stored.keys())
    assert features.shape == (20, 4, 256) and features.dtype == np.float32 and lengths.tolist() == [4] * 20
    assert np.array_equal(features[0], features[19])
    computed = load_encoder(SPEC, weights).encode([png(i) for i in range(19)])
    assert computed[0].dtype == np.float16 and np.allclose(features[:19], np.stack(computed), atol=2e-3)
    with pytest.raises(ValueError, match="no image features"):
        stored.gather(["pets-999999"])


def test_bytes_do_not_depend_on_workers(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(pipelines.embed.pool, "IN_PROCESS_S", 0.0)
    for name, resources in (("one", {}), ("two", {"threads": 2}), ("ray", {"workers": 2, "use_ray": True})):
        embed(prepare(tmp_path / name, weights), **resources)
    assert artifact(tmp_path / "one") == artifact(tmp_path / "two") == artifact(tmp_path / "ray")


@pytest.mark.parametrize("decoders", [1, 3])
def test_decoding_ahead_as_beside_a_gpu_gives_the_same_bytes(tmp_path, weights, monkeypatch, decoders):
    embed(prepare(tmp_path / "calm", weights))
    original, names = pipelines.embed.worker.PartBuilder.__init__, []

    def ahead(self, *arguments):
        original(self, *arguments[:4], decoders)
        self._decodes_ahead = True
        prepare_item = self._encoder.prepare
        self._encoder.prepare = lambda *item: names.append(threading.current_thread().name) or prepare_item(*item)

    monkeypatch.setattr(pipelines.embed.worker.PartBuilder, "__init__", ahead)
    embed(prepare(tmp_path / "ahead", weights))
    assert artifact(tmp_path / "ahead") == artifact(tmp_path / "calm")
    assert names and all(name.startswith("decode") for name in names)


def test_what_does_not_begin_in_time_goes_to_actors_with_the_same_bytes(tmp_path, weights, monkeypatch):
    embed(prepare(tmp_path / "one", weights))
    here = []

    class Slow(pipelines.embed.pool.PartBuilder):
        def build(self, task):
            here.append(task)
            time.sleep(0.5)
            return super().build(task)

    monkeypatch.setattr(pipelines.embed.pool, "PartBuilder", Slow)
    monkeypatch.setattr(pipelines.embed.pool, "IN_PROCESS_S", 0.2)
    monkeypatch.setattr(pipelines.embed.pool, "WORTH_ACTORS_S", 0.0)
    embed(prepare(tmp_path / "both", weights), threads=2, workers=2, use_ray=True)
    assert len(here) == 2 and artifact(tmp_path / "one") == artifact(tmp_path / "both")


def test_an_error_in_an_actor_arrives_as_it_was(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(pipelines.embed.pool, "IN_PROCESS_S", 0.0)
    root = prepare(tmp_path, weights)
    (root / "weights").unlink()
    (root / "weights").mkdir()
    (root / "weights" / "encoder.json").write_text('{"arch": "resnet18"}')
    with pytest.raises(ValueError, match="asks for test_efficientnet"):
        embed(root, workers=2, use_ray=True)


def artifact(root: Path) -> dict[str, str]:
    return tree(root, "embed")


@pytest.mark.parametrize("lose_plan", [False, True])
def test_killed_and_run_again_ends_with_the_same_bytes(tmp_path, weights, monkeypatch, lose_plan):
    embed(prepare(tmp_path / "calm", weights))
    root = prepare(tmp_path / "killed", weights)
    original, calls = pipelines.embed.worker.PartBuilder._write, []

    def break_at_2(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipelines.embed.worker.PartBuilder, "_write", break_at_2)
        embed(root)
    (root / "embed").rmdir()
    if lose_plan:
        (root / "work" / "embed" / "plan.json").unlink()
    embed(root)
    timing = json.loads((root / "embed" / "info" / "timing.json").read_text())
    assert timing["encoded"] == 15 and timing["reused"] == 4
    assert artifact(tmp_path / "calm") == artifact(root)


def test_parts_of_a_build_that_died_are_no_garbage(tmp_path, weights, monkeypatch):
    prepare(tmp_path, weights)
    inputs = {"weights": "weights", "shards_pets": "shards_20"}
    sources = {key: Artifact(name=key, path=tmp_path / folder, fingerprint="f" * 64, digest=key, result={}) for key, folder in inputs.items()}
    places = {key: Step(name=key, config=None, run="") for key in inputs}
    step = Step(name="embed_image", config=EmbedConfig(spec=SPEC), run="pipelines.embed.media:run", inputs=places)
    original, calls = pipelines.embed.worker.PartBuilder._write, []

    def break_at_3(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipelines.embed.worker.PartBuilder, "_write", break_at_3)
        materialize(step, sources, Place(root=tmp_path), resources=Resources(use_ray=False))
    (space,) = Space.all(tmp_path / "stores")
    assert len(space.records) == 2
    unpinned = [path.name for path, _ in garbage(tmp_path, ()) if path.parent.name == "parts"]
    given_up = [path.name for path, _ in garbage(tmp_path, (), unfinished=False) if path.parent.name == "parts"]
    assert unpinned == [] and given_up == sorted(space.records)
    made = materialize(step, sources, Place(root=tmp_path), resources=Resources(use_ray=False)).artifact
    assert json.loads((made.path / "info" / "timing.json").read_text())["reused"] == 8
    assert not [path for path, _ in garbage(tmp_path, {made.path}) if path.parent.name == "parts"]


def test_features_of_damaged_media_do_not_enter_the_store(tmp_path, weights):
    root = prepare(tmp_path, weights)
    shards = ShardSet(root / "shards_20", root / "stores")
    row = shards.index.to_pylist()[3]
    path = root / "stores" / row["shard"]
    whole = path.read_bytes()
    flip(path, row["media_offset"] + row["media_bytes"] - 20)
    with pytest.raises(AnyloomError, match=r"shard\.tar: the medium of pets-000003 was changed or damaged"):
        embed(root)
    (space,) = Space.all(root / "stores")
    assert row["media_sha256"] not in space.located
    path.write_bytes(whole)
    (root / "embed").rmdir()
    assert embed(root)["media"] == 19


@pytest.mark.parametrize("name", ["features.npy", "rows.parquet", "record.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damaged_features_are_refused_and_a_forced_build_makes_them_again(tmp_path, weights, name, harm):
    root = prepare(tmp_path, weights)
    embed(root)
    before, keys = tree(root, "embed"), EmbeddingSet(root / "embed", root / "stores").keys()
    path = root / "stores" / pinned(root, "embed")[2] / name
    if harm == "flip":
        flip(path, len(path.read_bytes()) // 2, 3)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    if name != "rows.parquet":  # the artifact's own rows say where the features are
        with pytest.raises(AnyloomError, match=r"damaged|cannot be (read|opened)|never committed"):
            EmbeddingSet(root / "embed", root / "stores").gather(keys)
    if name != "features.npy" and (name, harm) != ("record.json", "gone"):
        with pytest.raises(AnyloomError, match="run again again with --force again"):
            embed(root, name="again")
        (space,) = Space.all(root / "stores")
        assert len(space.damaged) == 1 and len(space.records) == 4
    embed(root, name="forced", force=True)
    assert tree(root, "forced")["forced"] == before["embed"] and tree(root, "embed") == before
    assert timing(root, "forced")["encoded"] == 4


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_every_file_of_the_features_is_looked_at(tmp_path, weights, dtype):
    root = prepare(tmp_path, weights)
    inputs = {"weights": "weights", "shards_pets": "shards_20"}
    run_step(root, "embed", "pipelines.embed.media:run", EmbedConfig(spec=replace(SPEC, dtype=dtype)), inputs)
    for name in ("features.npy", *(["scales.npy", "channels.npy"] if dtype == "int8" else [])):
        path = root / "stores" / pinned(root, "embed")[0] / name
        flip(path, -3)
        stored = EmbeddingSet(root / "embed", root / "stores")
        for read in (stored.get, lambda key, stored=stored: stored.gather([key])):
            refused = 0
            for key in stored.keys():
                try:
                    read(key)
                except AnyloomError as error:
                    assert f"{path} was changed or damaged" in str(error)
                    refused += 1
            assert 4 <= refused <= 5  # those of the part, and the one that shares its medium
        flip(path, -3)


@pytest.mark.parametrize(
    ("total", "missing", "sizes"), [(19, 19, [4] * 4 + [3]), (19, 6, [4, 2]), (70, 70, [8] * 8 + [6]), (4000, 20, [8, 8, 4]), (3, 3, [3]), (0, 0, [])]
)
def test_small_sets_are_cut_into_more_parts_but_whole_batches(total, missing, sizes):
    addresses = [f"{i:03d}" for i in range(missing)]
    parts = cut(addresses, total, SPEC)
    assert [len(part) for part in parts] == sizes and [address for part in parts for address in part] == addresses


def test_second_run_and_growth_encode_only_what_is_new(tmp_path, weights, monkeypatch):
    root = prepare(tmp_path, weights)
    embed(root)
    before = pinned(root, "embed")
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.embed.pool, "PartBuilder", lambda *_: pytest.fail("an encoder was loaded"))
        embed(root, name="again")
    assert tree(root, "embed")["embed"] == tree(root, "again")["again"]
    prepare(root, weights, 24)
    embed(root, 24, name="grown")
    assert set(before) < set(pinned(root, "grown"))
    assert json.loads((root / "grown" / "info" / "timing.json").read_text())["encoded"] == 4  # pictures 19..22; 23 has the bytes of 0


def timing(root: Path, name: str) -> dict:
    return json.loads((root / name / "info" / "timing.json").read_text())


def test_cutting_the_work_differently_computes_nothing_new(tmp_path, weights):
    root = prepare(tmp_path, weights)
    embed(root)
    for name, change, encoded in (("batch", {"batch": 3, "part_rows": 5}, 0), ("dtype", {"dtype": "int8"}, 19), ("size", {"image_size": 64}, 19)):
        config = EmbedConfig(spec=replace(SPEC, **change))
        run_step(root, name, "pipelines.embed.media:run", config, {"weights": "weights", "shards_pets": "shards_20"})
        assert timing(root, name)["encoded"] == encoded, name
    assert tree(root, "embed")["embed"] == tree(root, "batch")["batch"]
    assert len(list(Space.all(root / "stores"))) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_stored_types_end_to_end(tmp_path, weights, dtype):
    root = prepare(tmp_path, weights)
    spec = replace(SPEC, dtype=dtype)
    run_step(root, "embed", "pipelines.embed.media:run", EmbedConfig(spec=spec), {"weights": "weights", "shards_pets": "shards_20"})
    stored = EmbeddingSet(root / "embed", root / "stores", spec)
    exact = load_encoder(replace(SPEC, dtype="float32"), weights).encode([png(i) for i in range(19)])
    features, _ = stored.gather(stored.keys()[:19])
    error = float(np.linalg.norm(features - np.stack(exact)) / np.linalg.norm(np.stack(exact)))
    assert error < {"bfloat16": 4e-3, "float32": 1e-5, "int8": 1.5e-2}[dtype]
    (space,) = Space.all(root / "stores")
    recorded = max(record["relative_error"] for record in space.records.values())
    assert (recorded == 0) == (dtype == "float32") and (dtype == "float32" or abs(recorded - error) < 0.3 * error)


def test_running_out_of_memory_halves_the_batch_and_says_so(tmp_path, weights, monkeypatch):
    from mmcore.encoders.timm_image import TimmImageEncoder

    root, calls, forward, most = prepare(tmp_path, weights), [], TimmImageEncoder.forward, [2]

    def small_memory(self, items):
        calls.append(len(items))
        if len(items) > most[0]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return forward(self, items)

    monkeypatch.setattr(TimmImageEncoder, "forward", small_memory)
    embed(root)
    assert calls[:4] == [4, 2, 2, 2] and max(calls[1:]) == 2  # learnt once
    (space,) = Space.all(root / "stores")
    assert {(record["batch"], record["planned_batch"]) for record in space.records.values()} == {(2, 4)} and timing(root, "embed")["batch"] == 2
    features, _ = EmbeddingSet(root / "embed", root / "stores").gather([f"pets-{i:06d}" for i in range(19)])
    assert np.allclose(
        features, np.stack([forward(load_encoder(SPEC, weights), [load_encoder(SPEC, weights).prepare(png(i))])[0] for i in range(19)]), atol=2e-3
    )
    most[0] = 0
    with pytest.raises(AnyloomError, match="the encoder timm_image test_efficientnet needs more memory for it alone than cpu has"):
        run_step(root, "none", "pipelines.embed.media:run", EmbedConfig(spec=replace(SPEC, image_size=64)), {"weights": "weights", "shards_pets": "shards_20"})


def test_an_error_of_the_encoder_is_not_taken_for_lack_of_memory(tmp_path, weights, monkeypatch):
    from mmcore.encoders.timm_image import TimmImageEncoder

    monkeypatch.setattr(TimmImageEncoder, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        embed(prepare(tmp_path, weights))


def test_folding_keeps_the_function(weights):
    torch.manual_seed(1)
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=0).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = model.forward_features(pixels)
        fold_batch_norm(model)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        assert torch.allclose(before, model.forward_features(pixels), atol=1e-4)


def test_wrong_weights_are_named(weights):
    with pytest.raises(ValueError, match="asks for resnet18"):
        load_encoder(TimmImage(arch="resnet18", width=512, grid=2), weights)
    with pytest.raises(ValueError, match="gives 256 channels, the spec says 9"):
        load_encoder(TimmImage(arch="test_efficientnet", width=9, grid=2, image_size=32), weights).encode([png(0)])


def test_undecodable_medium_names_the_sample(tmp_path, weights, monkeypatch):
    root = prepare(tmp_path, weights)
    from mmcore.encoders.timm_image import TimmImageEncoder
    from mmcore.media.decode import MediaError

    def broken(*_):
        raise MediaError("decode", "broken")

    monkeypatch.setattr(TimmImageEncoder, "prepare", broken)
    with pytest.raises(AnyloomError, match=r"the encoder takes none of the 20 samples; the first is pets-000000: decode: broken"):
        embed(root)


def whisper_dir(root: Path) -> Path:
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        max_source_positions=100,
        num_mel_bins=80,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    WhisperEncoder(config).save_pretrained(root / "encoder")
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(root / "encoder")
    return root


def test_sounds_and_their_spans(tmp_path):
    whisper_dir(tmp_path / "weights")
    (tmp_path / "lists").mkdir()
    for i in range(3):
        (tmp_path / "lists" / f"{i}.wav").write_bytes(wav(i, 1.0))
    rows = [row(i, f"{i}.wav", modality="audio") for i in range(3)] + [row(3, "0.wav", modality="audio", start_s=0.5, end_s=0.9)]
    write_manifest(tmp_path, rows)
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    spec = WhisperAudio(arch="whisper", width=16, tokens=4, batch=1, part_rows=2)
    result = run_step(tmp_path, "embed", "pipelines.embed.media:run", EmbedConfig(spec=spec), {"weights": "weights", "shards_a": "shards"})
    assert result == {"samples": 4, "media": 4, "tokens": 16, "parts": 4, "width": 16}
    stored = EmbeddingSet(tmp_path / "embed", tmp_path / "stores")
    encoder = load_encoder(spec, tmp_path / "weights")
    assert np.array_equal(stored.get("pets-000001"), encoder.encode([wav(1, 1.0)])[0])
    assert np.array_equal(stored.get("pets-000003"), encoder.forward([encoder.prepare(wav(0, 1.0), 0.5, 0.9)])[0])
    assert not np.array_equal(stored.get("pets-000003"), stored.get("pets-000000"))


def test_targets_are_keyed_by_caption(tmp_path, weights):
    from pipelines.toys.parts import tiny_bert

    model, tokenizer = tiny_bert(0)
    model.save_pretrained(tmp_path / "text" / "encoder")
    tokenizer.save_pretrained(tmp_path / "text" / "encoder")
    rows = pictures(tmp_path, 5)
    rows[4]["texts"] = ["caption 0", "a very much longer caption"]
    write_manifest(tmp_path, rows)
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    config = TargetsConfig(width=32, tokens=16, batch=2, part_rows=3)
    result = run_step(tmp_path, "targets", "pipelines.embed.targets:run_targets", config, {"weights": "text", "shards_cc3m": "shards"})
    assert result["samples"] == result["media"] == 5
    stored = EmbeddingSet(tmp_path / "targets", tmp_path / "stores")
    keys = [f"text:{text_sha256(text)}" for text in ("caption 0", "a very much longer caption")]
    features, lengths = stored.gather(keys)
    assert lengths.tolist() == [11, 16] and features.shape == (2, 16, 32) and not features[0, 11:].any()


def test_models_that_are_opened_with_the_first_item_are_opened_one_after_the_other(monkeypatch):
    """transformers changes torch for all threads of a process while it loads a model: two loads at once leave torch changed."""
    at_work, most = [], []

    class Builder:
        def __init__(self, *_):
            self.first = True

        def build(self, task):
            if self.first:
                at_work.append(task)
                most.append(len(at_work))
                time.sleep(0.05)
                at_work.remove(task)
                self.first = False
            return pipelines.embed.worker.PartDone(items=1, encode_s=0.0, batch=1)

    monkeypatch.setattr(pipelines.embed.pool, "PartBuilder", Builder)
    done = list(pipelines.embed.pool._with_threads([object() for _ in range(9)], (None, None, None), Resources(threads=3, workers=3)))
    assert len(done) == 9 and most and max(most) == 1
