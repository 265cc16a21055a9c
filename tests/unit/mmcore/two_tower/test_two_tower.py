"""The two-tower model: loss and masks against a plain float64 reference, gradients through the gather, world size, kill and resume."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infra.fingerprint import to_plain
from infra.step import AnyloomError
from mmcore.config import PairsStage, TowerShape, TwoTowerSpec
from mmcore.encoder_config import BertText, TimmImage, WhisperAudio
from mmcore.training.checkpoint import load_latest
from mmcore.training.stages import saved_tensors
from mmcore.two_tower.model import MAX_LOG_SCALE, TwoTower, gather_rows, info_nce, load_two_tower, same_pairs
from mmcore.two_tower.pairs import TwoTowerData
from mmcore.types import Sample
from pipelines.training.loop import Collective, run_stage

SPEC = TwoTowerSpec(
    encoders=(("image", TimmImage(arch="x", width=12, grid=1)), ("audio", WhisperAudio(arch="x", width=6, tokens=1))),
    text=BertText(arch="bert", width=8),
    shape=TowerShape(width=5, hidden=7),
)
STAGE = PairsStage(
    stage="two_tower", steps=7, batch=9, lr=1e-2, warmup_steps=2, weight_decay=0.01, checkpoint_every=2, mixture=(("pictures", 2.0), ("sounds", 1.0))
)


class Features:
    """One to three seeded tokens per key."""

    def __init__(self, width, tokens=None):
        self.width, self.tokens = width, tokens

    def gather(self, keys):
        lengths = np.array([self.tokens or 1 + sum(key.encode()) % 3 for key in keys], np.int64)
        features = np.zeros((len(keys), int(lengths.max(initial=0)), self.width), np.float32)
        for row, key, length in zip(features, keys, lengths, strict=True):
            row[:length] = np.random.default_rng(list(key.encode())).normal(1.0, 2.0, (length, self.width))
        return features, lengths


def samples():
    """Pictures, two of them with the same bytes and two with the same caption, and sounds with two captions each."""
    pictures = [
        Sample(key=f"pictures-{i:06d}", source="pictures", modality="image", texts=(f"picture {i % 6}",), media_sha256=f"sha{max(1, i)}") for i in range(8)
    ]
    sounds = [Sample(key=f"sounds-{i:06d}", source="sounds", modality="audio", texts=(f"sound {i}", f"noise {i}"), media_sha256=f"sound{i}") for i in range(4)]
    return {"pictures": pictures, "sounds": sounds}


def prepared(config=STAGE, spec=SPEC, collective=None):
    model = TwoTower(spec)
    data = TwoTowerData(config, samples(), {"image": Features(12), "audio": Features(6)}, Features(8, 1), (collective or Collective()).sum_)
    data.fit(model)
    return model, data


def reference(media, texts, names, scale):
    """Sum of the symmetric InfoNCE in float64, one pair at a time. names: (modality, medium, caption) of each row."""
    total = 0.0
    for own, other in ((media, texts), (texts, media)):
        for i in range(len(own)):
            kept = [j for j in range(len(own)) if j == i or (names[i][0] == names[j][0] and names[i][1] != names[j][1] and names[i][2] != names[j][2])]
            logits = [scale * float(np.dot(own[i], other[j])) for j in kept]
            total += math.log(sum(math.exp(x) for x in logits)) - logits[kept.index(i)]
    return total / 2


def test_loss_is_the_float64_reference_with_masks():
    model, data = prepared(dataclasses.replace(STAGE, batch=20))
    rows = data.batch(0)
    names = [(sample.modality, sample.media_sha256, text) for sample, text in rows]
    assert len({name[1] for name in names}) < len(names) > len({name[2] for name in names})  # media and captions come several times
    (loss,) = data.losses(model, 0, 0, 1)
    with torch.no_grad():
        media, texts = (part.double().numpy() for part in data._vectors(model, rows))
    assert float(loss.total) == pytest.approx(reference(media, texts, names, 1 / 0.07), rel=1e-5)
    assert float(loss.weight) == len(rows) and float(loss.parts[:, 1].sum()) == len(rows)
    assert np.allclose(np.linalg.norm(media, axis=1), 1, atol=1e-6) and np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)


def test_several_captions_and_equal_captions_are_no_negatives():
    media, texts = torch.tensor([1, 1, 2, 3, 4]), torch.tensor([7, 8, 9, 9, 5])
    modalities = torch.tensor([0, 0, 0, 0, 1])
    same = same_pairs(media, texts, modalities)
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    expected[4, :4] = expected[:4, 4] = True
    assert torch.equal(same, expected)
    expected[4, :4] = expected[:4, 4] = False
    assert torch.equal(same_pairs(media, texts, modalities, across=True), expected)

    vectors = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    other = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    loss = info_nce(slice(0, 5), vectors, other, same, torch.tensor(10.0))
    moved = other.clone()
    moved[1] = -moved[1]  # a second caption of medium 0, and of row 1 itself
    after = info_nce(slice(0, 5), vectors, moved, same, torch.tensor(10.0))
    assert after[0] == loss[0] and after[1] != loss[1] and after[2] != loss[2]
    assert loss[4] == 0  # nothing to tell it from


def test_padding_changes_nothing_and_attention_starts_as_the_mean():
    attention, mean = (TwoTower(dataclasses.replace(SPEC, shape=dataclasses.replace(SPEC.shape, pooling=name))) for name in ("attention", "mean"))
    features, lengths = Features(12).gather(["pictures-000003", "b"])
    assert lengths.tolist() == [3, 3] or lengths[0] != lengths[1]
    padded = np.concatenate([features, np.full((2, 2, 12), 99.0, np.float32)], 1)
    for model in (attention, mean):
        assert np.allclose(model.vectors("image", padded, lengths), model.vectors("image", features, lengths), atol=1e-6)
    assert np.allclose(attention.vectors("image", features, lengths), mean.vectors("image", features, lengths), atol=1e-6)
    assert attention.tower("image").query_E is not None and mean.tower("image").query_E is None


def test_gather_hands_back_the_gradient_of_every_rank():
    own = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    calls = []

    def sum_(tensor):
        """Another rank that holds rows 2..4 and whose loss says 1 about every row."""
        calls.append(tensor.clone())
        tensor.add_(torch.cat([torch.zeros(2, 3), torch.ones(3, 3)]) if len(calls) == 1 else torch.ones(5, 3))

    everything = gather_rows(own, 0, 5, sum_)
    assert torch.equal(everything, torch.cat([own.detach(), torch.ones(3, 3)]))
    (everything * torch.arange(5.0)[:, None]).sum().backward()
    assert torch.equal(own.grad, torch.tensor([[1.0] * 3, [2.0] * 3]))


RANK = """
import sys
sys.path[:0] = sys.argv[1].split(":")
import torch
torch.set_num_threads(1)
from test_two_tower import WORLDS, one_step
from pipelines.training.loop import TorchCollective
rank, where = int(sys.argv[2]), sys.argv[3]
for world, batch in WORLDS:
    if rank < world:
        torch.distributed.init_process_group("gloo", init_method=f"file://{where}/meet{world}", rank=rank, world_size=world)
        torch.save(one_step(TorchCollective(), batch), f"{where}/rank{rank}of{world}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
"""
WORLDS = ((3, 2), (2, 9))
"""(ranks, global batch): a rank without rows, uneven shares. The same processes run one after the other, the third only the first."""


def one_step(collective, batch=9):
    """Global loss and gradients of step 1, as every rank sees them."""
    model, data = prepared(dataclasses.replace(STAGE, batch=batch), collective=collective)
    total = torch.zeros(())
    for loss in data.losses(model, 1, collective.rank, collective.world):
        loss.total.backward()
        total = total + loss.total.detach()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in sorted(model.named_parameters())}
    for tensor in (total, *gradients.values()):
        collective.sum_(tensor)
    return {"loss": total, **gradients}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Directory with the step of every rank of WORLDS, each a process of its own under gloo."""
    where = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-c", RANK, os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[3] / "helpers")])]
    most = max(world for world, _ in WORLDS)
    started = [subprocess.Popen([*command, str(rank), str(where)], cwd=Path(__file__).parents[4], stderr=subprocess.PIPE, text=True) for rank in range(most)]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]
    return where


@pytest.mark.parametrize(("world", "batch"), WORLDS, ids=["a rank without rows", "uneven shares"])
def test_gloo_ranks_give_the_loss_and_gradients_of_one_process(world, batch, ranks):
    alone = one_step(Collective(), batch)
    for rank in range(world):
        found = torch.load(ranks / f"rank{rank}of{world}.pt", weights_only=True)
        assert found.keys() == alone.keys() and float(alone["loss"]) > 0
        for name, value in alone.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-5), name
    assert any(bool(value.abs().max() > 1e-3) for name, value in alone.items() if name.startswith("media."))


@pytest.mark.parametrize("kill_at", [1, 4, 6])
def test_resume_equals_uninterrupted_bit_for_bit(kill_at, tmp_path):
    model, data = prepared()
    whole, whole_log, _ = run_stage(STAGE, model, data, tmp_path / "whole")

    class Killed(Exception):
        pass

    def bomb(done, total, note=""):
        if done == kill_at:
            raise Killed

    model, data = prepared()
    with pytest.raises(Killed):
        run_stage(STAGE, model, data, tmp_path / "killed", progress=bomb)
    torch.manual_seed(999)
    model, data = prepared()
    seen = []
    resumed, log, _ = run_stage(STAGE, model, data, tmp_path / "killed", progress=lambda done, total, note="": seen.append(done))
    last = kill_at // 2 * 2  # the last checkpoint, which is named first; 0: none
    assert seen[:2] == ([last, last + 1] if last else [1, 2]) and log.rows == whole_log.rows
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert load_latest(tmp_path / "killed" / "checkpoints").step == 6
    model, data = prepared(dataclasses.replace(STAGE, batch=4))
    with pytest.raises(AnyloomError, match="made from other data"):
        run_stage(STAGE, model, data, tmp_path / "killed")


def test_every_parameter_learns_and_the_saved_model_is_the_trained_one(tmp_path):
    config = dataclasses.replace(STAGE, steps=40, weight_decay=0.0)
    model, data = prepared(config)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained, log, _ = run_stage(config, model, data, tmp_path)
    assert set(trained) == set(before) and all(not torch.equal(trained[name], before[name]) for name in before)
    assert log.columns[-2:] == ("loss_audio", "loss_image") and log.rows[-1][1] < 0.5 * log.rows[0][1]
    save_file(saved_tensors(model, config, trained), tmp_path / "tensors.safetensors")
    (tmp_path / "stage.json").write_text(json.dumps({"model": to_plain(SPEC)}))
    loaded = load_two_tower(tmp_path)
    features, lengths = Features(12).gather(["pictures-000000", "pictures-000001"])
    assert np.array_equal(loaded.vectors("image", features, lengths), model.vectors("image", features, lengths))
    with pytest.raises(ValueError, match="no tower for video"):
        loaded.tower("video")
    (tmp_path / "stage.json").write_text(json.dumps({"model": to_plain(dataclasses.replace(SPEC, shape=TowerShape(width=9)))}))
    with pytest.raises(ValueError, match="the tensors are not those of the model"):
        load_two_tower(tmp_path)


def test_temperature_is_clamped_and_can_come_back():
    model, _ = prepared()
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert float(model.scale()) == pytest.approx(100.0) and float(model.log_scale) == pytest.approx(MAX_LOG_SCALE)
    model.scale().backward()
    assert float(model.log_scale.grad) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"pooling": "max"}, "pooling 'max' is unknown"), ({"temperature": 0.0}, r"temperature 0\.0 must lie within")],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TwoTower(dataclasses.replace(SPEC, shape=dataclasses.replace(SPEC.shape, **change)))


def test_a_sample_that_cannot_be_trained_on_is_named():
    wrong = samples()
    wrong["sounds"][1] = dataclasses.replace(wrong["sounds"][1], texts=())
    with pytest.raises(ValueError, match="sample sounds-000001 has no caption: take sounds out"):
        TwoTowerData(STAGE, wrong, {"image": Features(12), "audio": Features(6)}, Features(8, 1), Collective().sum_)
    with pytest.raises(ValueError, match="has audio input but there are no audio features"):
        TwoTowerData(STAGE, samples(), {"image": Features(12)}, Features(8, 1), Collective().sum_)
