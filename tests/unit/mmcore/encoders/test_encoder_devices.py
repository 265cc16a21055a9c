"""Where and in what precision encoders compute: placement, autocast, and what passes through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from data_steps import png
from safetensors.torch import load_file
from twins import pairs, spec_of, weights_of

from mmcore.encoders import MODALITY_OF, load_encoder
from mmcore.encoders.pooling import pool_grid, pool_map
from pipelines.toys.media import medium

TOLERANCE = {"bfloat16": 0.05, "float16": 0.01}
"""Largest distance from float32, relative to the norm, over the twins (found: 0.024 and 0.003, both of the VAE)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("twins")


@pytest.mark.parametrize(("kind", "twin"), list(pairs()))
def test_lower_precision_is_near_float32_and_is_really_used(kind, twin, root):
    data = [medium(MODALITY_OF[kind])]

    def encode(compute):
        return load_encoder(spec_of(kind, twin, dtype="float32", compute=compute), weights_of(root, kind, twin)).encode(data)[0]

    exact = encode("float32")
    assert exact.dtype == np.float32
    for compute, limit in TOLERANCE.items():
        found = encode(compute)
        assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < limit


def test_float32_is_the_stock_model_bit_for_bit(root):
    folder = weights_of(root, "hf_image", "tiny-clip")
    encoder = load_encoder(spec_of("hf_image", "tiny-clip", dtype="float32"), folder)
    pixels = torch.stack([encoder.prepare(png(n)) for n in range(2)])
    stock = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "encoder").eval()
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(stock(pixel_values=pixels).image_embeds, dim=-1).numpy()
    assert np.array_equal(np.concatenate(encoder.forward(list(pixels))), expected)

    folder = weights_of(root, "timm_image", "test_vit")
    encoder = load_encoder(spec_of("timm_image", "test_vit", dtype="float32", grid=10), folder)
    model = timm.create_model("test_vit", img_size=160).eval()
    model.load_state_dict(load_file(folder / "encoder" / "model.safetensors"))
    pixels = encoder.prepare(png(0))
    with torch.inference_mode():
        states = model.to(memory_format=torch.channels_last).forward_features(
            ((torch.from_numpy(pixels[None]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        )
    assert np.array_equal(encoder.forward([pixels])[0], states[0, 1:].numpy())


@pytest.mark.parametrize(("kind", "twin"), [pair for pair in pairs() if MODALITY_OF[pair[0]] != "text"])
def test_nothing_stays_behind_on_the_cpu(kind, twin, root):
    """No other device is here, so "meta" stands in: every tensor of the pass must be there, and only the way back of the features can fail.

    Text encoders are left out: transformers reads a value of their attention mask, which has none on meta.
    """
    encoder = load_encoder(spec_of(kind, twin), weights_of(root, kind, twin), device="meta")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        encoder.encode([medium(MODALITY_OF[kind])])


def test_unknown_compute_and_device_are_named(root):
    folder = weights_of(root, "hf_image", "tiny-clip")
    with pytest.raises(ValueError, match="encoder hf_image: unknown compute 'float8': choose one of float32, bfloat16, float16"):
        load_encoder(spec_of("hf_image", "tiny-clip", compute="float8"), folder)
    with pytest.raises(ValueError, match="unknown device 'gpu': use cpu, cuda"):
        load_encoder(spec_of("hf_image", "tiny-clip"), folder, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda:1': torch sees no CUDA device here"):
            load_encoder(spec_of("hf_image", "tiny-clip"), folder, device="cuda:1")


@pytest.mark.parametrize(("kind", "twin"), list(pairs()))
def test_out_of_memory_passes_through_unchanged(kind, twin, root):
    """The embedding store halves its batch on it."""
    encoder = load_encoder(spec_of(kind, twin), weights_of(root, kind, twin))
    error = torch.OutOfMemoryError("CUDA out of memory")

    def full(*_):
        raise error

    for module in encoder._model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        encoder.encode([medium(MODALITY_OF[kind])])
    assert caught.value is error


def test_patches_are_pooled_row_by_row():
    states = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 3)
    assert pool_grid(states, 2)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(pool_grid(states, 2), pool_map(states.transpose(1, 2).unflatten(2, (4, 4)), 2))
    with pytest.raises(ValueError, match="15 patch tokens are no square"):
        pool_grid(states[:, :15], 2)
