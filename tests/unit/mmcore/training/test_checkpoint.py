"""Checkpoints: a damaged one is never trained on and never the end of it: the one before is taken, in one line, and the same bytes come out."""

import json
import logging

import pytest
import torch
from data_steps import flip

from infra.entries import commit_entry
from infra.step import AnyloomError
from infra.storage import new_staging
from mmcore.config import FitConfig
from mmcore.training.checkpoint import KEEP, load_latest, remove_unusable
from mmcore.training.fit import fit

FILES = ("tensors.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "record.json")
CONFIG = FitConfig(steps=10, batch=4, lr=0.05, warmup_steps=2, checkpoint_every=2)


class Killed(Exception):
    pass


def run(folder, kill_at=None):
    """Fit two numbers; returns (them, rows of the log, what the progress said)."""
    torch.manual_seed(1)
    weight, said = torch.nn.Parameter(torch.tensor([0.5, -1.0])), []

    def loss(step):
        return (weight - torch.tensor([step / 7, 2.0])).square().sum()

    def progress(done, total, note=""):
        said.append((done, note))
        if done == kill_at:
            raise Killed

    log = fit({"weight": weight}, CONFIG, loss, folder, {"images": 4}, progress)
    return weight.detach().clone(), log.rows, said


@pytest.fixture
def killed(tmp_path):
    """Directory of the two checkpoints of a run that was killed after step 7."""
    with pytest.raises(Killed):
        run(tmp_path / "killed", 7)
    assert KEEP >= 2 and sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["step-000000004", "step-000000006"]
    return tmp_path / "killed"


def harmed(path, harm):
    if harm == "flip":
        flip(path, len(path.read_bytes()) * 2 // 3, 1)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone"])
def test_the_one_before_is_taken_in_one_line(tmp_path, killed, name, harm, caplog):
    whole, rows, _ = run(tmp_path / "whole")
    harmed(killed / "step-000000006" / name, harm)
    with pytest.raises(AnyloomError):
        load_latest(killed)
    with caplog.at_level(logging.WARNING):
        resumed, log, said = run(killed)
    assert torch.equal(resumed, whole) and log == rows
    (line,) = [record.message for record in caplog.records if "goes on from" in record.message]
    assert said[0][0] == 4 and line in said[0][1] and "step-000000006" in line and line.endswith("goes on from step-000000004") and "\n" not in line


def test_without_a_whole_one_it_begins_again(tmp_path, killed):
    whole, rows, _ = run(tmp_path / "whole")
    for path in killed.glob("*/tensors.safetensors"):
        flip(path)
    resumed, log, said = run(killed)
    assert torch.equal(resumed, whole) and log == rows and said[0][0] == 0 and said[0][1].endswith("goes on from the beginning")


def test_an_older_damaged_one_is_nobodys_business(killed):
    flip(killed / "step-000000004" / "state.json")
    assert remove_unusable(killed) == "" and load_latest(killed).step == 6


def test_a_save_that_was_killed_leaves_nothing(killed):
    (killed / ".staging-step-000000008-1-ab").mkdir()
    (killed / ".removed-step-000000002-ab").mkdir()
    assert remove_unusable(killed) == "" and sorted(path.name for path in killed.iterdir()) == ["step-000000004", "step-000000006"]


def test_a_checkpoint_without_a_record_is_none(killed):
    """What was saved by an earlier version, or lost its record, cannot be told from a damaged one."""
    staging = new_staging(killed / "step-000000008")
    (staging / "state.json").write_text(json.dumps({"step": 8}))
    commit_entry(killed / "step-000000008", staging, {})
    (killed / "step-000000008" / "record.json").unlink()
    assert "never committed" in remove_unusable(killed) and load_latest(killed).step == 6
