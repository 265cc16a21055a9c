"""VAE latents: those of diffusers, the same every time, and back to a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from data_steps import png
from diffusers import AutoencoderKL
from PIL import Image
from twins import spec_of, weights_of

from mmcore.encoders import load_encoder
from mmcore.encoders.vae import latents


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return weights_of(tmp_path_factory.mktemp("vae"), "vae_image", "tiny-vae")


def square(data: bytes, side: int) -> torch.Tensor:
    """[1, 3, side, side] in [-1, 1] of a picture that is wider than high: its middle."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    left = (width - height) // 2
    picture = picture.crop((left, 0, left + height, height)).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_latents_are_diffusers_means_and_decode(weights):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(0, 64))).resize((96, 48)).save(buffer, "PNG")
    data = buffer.getvalue()
    encoder = load_encoder(spec_of("vae_image", "tiny-vae", dtype="float32", image_size=48), weights)
    rows = encoder.encode([data, png(1, 48)])
    assert [r.shape for r in rows] == [(36, 4)] * 2 and np.array_equal(rows, encoder.encode([data, png(1, 48)]))
    model = AutoencoderKL.from_pretrained(weights / "encoder").eval()
    with torch.inference_mode():
        expected = model.encode(square(data, 48)).latent_dist.mean * model.config.scaling_factor
        np.testing.assert_allclose(latents(rows[0]), expected[0].numpy(), atol=1e-6)
        decoded = model.decode(torch.from_numpy(latents(rows[0]))[None] / model.config.scaling_factor).sample
        straight = model.decode(expected / model.config.scaling_factor).sample
    assert decoded.shape == (1, 3, 48, 48)
    np.testing.assert_allclose(decoded.numpy(), straight.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="35 latent rows are no square image"):
        latents(rows[0][:-1])


def test_a_shifted_latent_space_is_in_its_own_units(weights, tmp_path):
    model = AutoencoderKL.from_pretrained(weights / "encoder").eval()
    model.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    model.save_pretrained(tmp_path / "encoder")
    found = load_encoder(spec_of("vae_image", "tiny-vae", dtype="float32"), tmp_path).encode([png(0)])[0]
    plain = load_encoder(spec_of("vae_image", "tiny-vae", dtype="float32"), weights).encode([png(0)])[0]
    np.testing.assert_allclose(found, (plain / 0.18215 - 0.5) * 2.0, atol=1e-5)


def test_wrong_channels_and_sizes_are_named(weights):
    with pytest.raises(ValueError, match="has 4 latent channels, the spec says width 16"):
        load_encoder(spec_of("vae_image", "tiny-vae", width=16), weights)
    with pytest.raises(ValueError, match="one cell of 8 x 8 pixels: image_size 36 is no multiple"):
        load_encoder(spec_of("vae_image", "tiny-vae", image_size=36), weights)
