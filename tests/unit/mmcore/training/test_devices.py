"""Training and generation on another device than the CPU: nothing stays behind, and the results are the same but for rounding.

No other device is here, so a pretended one stands in (pretended_device.py): it computes on the CPU, and fails like a GPU where an operation mixes devices.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended_device import pretended_device
from toy_any import MODES, STAGES, any_model, chat_data, signal_side

from infra.step import AnyloomError
from mmcore.inference.generator import Generator
from mmcore.runtime.devices import device_for
from mmcore.training.scoring import caption_nll
from mmcore.training.signals import compute_states
from mmcore.types import Question
from pipelines.training.loop import run_stage


def trained(stage, mode, folder, device="cpu"):
    model = any_model(mode, lora=stage == "stage3")
    if stage == "stage2":
        model, data = signal_side(model)
    else:
        data = chat_data(STAGES[stage], model)
    tensors, log, _ = run_stage(STAGES[stage], model.to(device), data, folder)
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, log.rows


def same(found, expected):
    """Equal but for rounding: another device takes other kernels."""
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


def test_the_pretended_device_tells_devices_apart():
    layer, here = torch.nn.Linear(3, 4), torch.ones(2, 3)
    wanted = layer(here)
    with pretended_device() as device:
        layer.to(device)
        there = layer(here.to(device))
        assert there.device == device and torch.equal(there.cpu(), wanted)
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            layer(here)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", list(STAGES))
def test_a_stage_trains_there_to_the_same_tensors(stage, mode, tmp_path):
    expected, expected_log = trained(stage, mode, tmp_path / "cpu")
    with pretended_device() as device:
        found, log = trained(stage, mode, tmp_path / "there", device)
    assert [row[0] for row in log] == [row[0] for row in expected_log]
    assert [row[1] for row in log] == pytest.approx([row[1] for row in expected_log], rel=1e-5)
    same(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_stage_continues_there(mode, tmp_path, monkeypatch):
    import pipelines.training.loop as loop

    expected, _ = trained("stage3", mode, tmp_path / "cpu")
    true_step = loop._one_step
    config = STAGES["stage3"]
    monkeypatch.setitem(STAGES, "stage3", replace(config, checkpoint_every=1))

    def dies(model, optimizer, data, step, *rest):
        if step == 2:
            raise KeyboardInterrupt
        true_step(model, optimizer, data, step, *rest)

    with pretended_device() as device:
        monkeypatch.setattr(loop, "_one_step", dies)
        with pytest.raises(KeyboardInterrupt):
            trained("stage3", mode, tmp_path / "there", device)
        monkeypatch.setattr(loop, "_one_step", true_step)
        found, _ = trained("stage3", mode, tmp_path / "there", device)
    same(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_answers_states_and_scores_are_the_same_there(mode):
    features = {modality: np.random.default_rng(i).normal(size=(3, 12)).astype(np.float32) for i, modality in enumerate(("image", "audio"))}
    questions = [Question(text=f"hue {i}?", media_key=modality, modality=modality, features_NE=features[modality]) for i in range(2) for modality in features]
    questions.append(Question(text="draw 1"))
    media = torch.from_numpy(features["image"])[None], torch.tensor([3])

    def work(device):
        model = any_model(mode).to(device).eval()
        answers = Generator(model, caption_turn=True).answer(questions, max_new_tokens=6)
        states = [tensor.cpu() for tensor in compute_states(model, "image", ["a dot", "a red dot"])]
        scores = caption_nll(model, *media, "image", ["a dot"])
        return [(answer.text, answer.caption, answer.token_ids) for answer in answers], [*states, *scores]

    texts, tensors = work("cpu")
    with pretended_device() as device:
        there, found = work(device)
    assert there == texts
    torch.testing.assert_close(found, tensors, atol=1e-5, rtol=1e-4)


def test_gpus_that_torch_does_not_see_are_an_error():
    assert device_for(0) == "cpu"
    if torch.cuda.is_available():
        assert device_for(1) == "cuda"
    else:
        with pytest.raises(AnyloomError, match=r"1 GPU\(s\) are to be used, but torch sees none: .* set ANYLOOM_GPUS=0"):
            device_for(1)
