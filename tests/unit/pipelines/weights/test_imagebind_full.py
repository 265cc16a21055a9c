"""ImageBind at full layout, trunk by trunk, against outputs of the public implementation (tests/golden/imagebind_reference.py --full).

One trunk is in memory at a time: at most 4.3 GB, about a minute of one idle core in all. Vision runs in float32 only: in float64 it takes 6 GB;
the maker of full.json compares that too.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from data_steps import run_step
from safetensors import safe_open

from infra.step import AnyloomError
from mmcore.encoders.imagebind.encoders import WEIGHTS, load_trunks
from mmcore.encoders.imagebind.network import HUGE, ImageBind, load_imagebind, modality_of
from pipelines.weights.config import ImageBindConfig

GOLDEN = Path(__file__).parents[3] / "golden"
LIMITS = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest norm of the difference over the norm of the public float64 output."""


def load_maker():
    """The module that made full.json: seeded weights and inputs are defined once."""
    spec = importlib.util.spec_from_file_location("imagebind_reference", GOLDEN / "imagebind_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()
FULL = json.loads((GOLDEN / "imagebind" / "full.json").read_text())


def compare(model: ImageBind, modality: str, dtype: torch.dtype) -> None:
    """Fails unless every output of full.json is met within the limit."""
    for name, batch in MAKER.full_inputs(modality, dtype).items():
        expected = torch.tensor(FULL[modality]["values"][name], dtype=torch.float64)
        assert expected.shape == (len(batch), 1024)
        with torch.inference_mode():
            assert MAKER.difference(model(modality, batch), expected) <= LIMITS[dtype], (name, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("modality", list(HUGE))
def test_full_layout_equals_the_public_implementation(modality):
    wide = modality != "vision"
    model = load_imagebind(MAKER.seeded_full(modality, torch.float64 if wide else torch.float32), {modality: HUGE[modality]})
    assert sum(parameter.numel() for parameter in model.parameters()) == FULL[modality]["parameters"]
    if wide:
        compare(model, modality, torch.float64)
    compare(model.float(), modality, torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_file_of_the_released_layout_loads_strictly_and_gives_the_public_outputs(tmp_path):
    with torch.device("meta"):
        shapes = ImageBind().state_dict()
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in shapes.items()} | MAKER.seeded_full("audio", torch.float32)
    assert len(state) == 1311
    file = tmp_path / "imagebind_huge.pth"
    torch.save(state, file)
    config = ImageBindConfig(kind="pretrained", arch="imagebind_huge", trunks=("audio",))
    result = run_step(tmp_path, "weights_audio", "pipelines.weights.parts:run_imagebind", config, {}, sources={"imagebind": file})
    assert result["parameters"] == FULL["audio"]["parameters"]
    with safe_open(tmp_path / "weights_audio" / WEIGHTS, framework="pt") as handle:
        assert {modality_of(name) for name in handle.keys()} == {"audio"}
    compare(load_trunks(tmp_path / "weights_audio" / WEIGHTS, "imagebind_huge", ("audio",)), "audio", torch.float32)
    del state["modality_trunks.audio.blocks.11.attn.bias_v"]
    torch.save(state, file)
    with pytest.raises(AnyloomError, match=r"imagebind_huge\.pth: the ImageBind file lacks modality_trunks\.audio\.blocks\.11\.attn\.bias_v$"):
        run_step(tmp_path, "weights_again", "pipelines.weights.parts:run_imagebind", config, {}, sources={"imagebind": file})
