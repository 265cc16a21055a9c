"""Tiles: the grid is the one worked out by hand, every tile is encoded like the picture cut out, and lengths differ from picture to picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from data_steps import row, run_step, write_manifest
from PIL import Image
from safetensors.torch import save_file

from mmcore.encoder_config import HfImage, TimmImage, encoder_config
from mmcore.encoders import load_encoder
from mmcore.encoders.tiled import cut, grid
from mmcore.runtime.seeding import seeded
from mmcore.stores.embeddings import EmbeddingSet
from pipelines.embed.config import EmbedConfig
from pipelines.shards.config import ShardsConfig
from pipelines.weights.config import ImageBindConfig


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((100, 100), 6, (1, 1)),  # fits
        ((336, 336), 6, (1, 1)),
        ((336, 20), 6, (1, 1)),
        ((672, 336), 4, (2, 1)),  # exactly
        ((336, 672), 4, (1, 2)),
        ((672, 672), 4, (2, 2)),
        ((672, 672), 3, (1, 1)),  # two or three in a row keep no more of a square than one does
        ((1000, 300), 3, (3, 1)),  # all 300,000 pixels; (2, 1) would keep 672 x 201
        ((1000, 300), 2, (2, 1)),
        ((800, 600), 4, (2, 2)),  # 672 x 504 = 338,688 pixels of it
        ((800, 600), 6, (3, 2)),  # 896 x 672: all 480,000; (2, 3) keeps 672 x 504
        ((600, 800), 6, (2, 3)),
        ((400, 300), 6, (2, 1)),  # 448 x 336: all 120,000 in two squares; (2, 2) too, with more padding
    ],
)
def test_the_grid_is_the_one_worked_out_by_hand(size, most, expected):
    assert grid(*size, 336, most) == expected


def test_the_grid_agrees_with_the_published_rule():
    from transformers.image_processing_utils import select_best_resolution

    draws = np.random.default_rng(0)
    pinpoints = [(r * 32, c * 32) for c, r in sorted(((c, r) for c in range(1, 7) for r in range(1, 6 // c + 1)), key=lambda cr: (cr[0] * cr[1], cr[0]))]
    for width, height in draws.integers(1, 300, (500, 2)).tolist():
        assert tuple(side // 32 for side in reversed(select_best_resolution((height, width), pinpoints))) == grid(width, height, 32, 6)


def test_tiles_are_scaled_centred_on_white_and_cut_row_by_row():
    black = Image.new("RGB", (60, 40))
    tiles = cut(black, 32, 4)  # grid (2, 2): 64 x 43 of it, 10 white rows above and 11 below
    assert [tile.size for tile in tiles] == [(32, 32)] * 4
    left, below = np.asarray(tiles[0])[..., 0], np.asarray(tiles[2])[..., 0]
    assert (left[:10] == 255).all() and (left[10:] == 0).all() and (below[:21] == 0).all() and (below[21:] == 255).all()
    exact = picture(96, 64)
    for number, tile in enumerate(cut(exact, 32, 6)):
        x, y = 32 * (number % 3), 32 * (number // 3)
        assert tile.tobytes() == exact.crop((x, y, x + 32, y + 32)).tobytes()
    assert cut(picture(20, 31), 32, 6) == [] and cut(picture(500, 1), 32, 6) == [] and len(cut(picture(500, 9), 32, 6)) == 6


def timm_weights(root: Path) -> Path:
    with seeded(0):
        state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    (root / "encoder").mkdir(parents=True)
    save_file(state, root / "encoder" / "model.safetensors")
    (root / "encoder.json").write_text(json.dumps({"arch": "test_efficientnet"}))
    return root


def hf_weights(root: Path, family: str) -> Path:
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    with seeded(0):
        if family == "siglip":
            model, processor = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**body)), transformers.SiglipImageProcessor(size=(32, 32))
        else:  # resized to 37, then 32 cut out of the middle, as the released DINOv2 does with 256 and 224
            config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=8)
            model = transformers.Dinov2Model(config)
            processor = transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32})
    for part in (model, processor):
        part.save_pretrained(root / "encoder")
    return root


def imagebind_weights(root: Path) -> Path:
    root.mkdir(parents=True)
    run_step(root, "weights", "pipelines.weights.parts:run_imagebind", ImageBindConfig(kind="random", arch="imagebind_toy", trunks=("vision",)), {})
    return root / "weights"


@pytest.mark.parametrize(
    ("kind", "arch", "width", "size", "cells", "make"),
    [
        ("timm_image", "test_efficientnet", 256, 32, 2, timm_weights),
        ("hf_image", "siglip", 32, 32, 2, lambda root: hf_weights(root, "siglip")),
        ("imagebind_image", "imagebind_toy", 32, 224, 0, imagebind_weights),
    ],
)
def test_thumbnail_and_tiles_are_what_the_encoder_gives_for_each_alone(kind, arch, width, size, cells, make, tmp_path):
    folder = make(tmp_path / "weights")
    spec = {"arch": arch, "width": width, "grid": cells, "batch": 4} | ({} if kind == "imagebind_image" else {"image_size": size})
    plain, tiled = (load_encoder(encoder_config(kind, spec | {"tiles": tiles}), folder) for tiles in (0, 6))
    large, small = picture(3 * size, 2 * size), picture(size - 3, size // 2, 1)
    found = tiled.encode([png(large), png(small), png(large)])
    rows = max(cells, 1) ** 2
    assert [f.shape for f in found] == [(7 * rows, width), (rows, width), (7 * rows, width)] and found[0].dtype == np.float16
    alone = plain.encode([png(large), *(png(tile) for tile in cut(large, size, 6))])
    np.testing.assert_allclose(found[0].astype(np.float32), np.concatenate(alone).astype(np.float32), atol=4e-3)
    np.testing.assert_allclose(found[1].astype(np.float32), plain.encode([png(small)])[0].astype(np.float32), atol=4e-3)
    assert np.abs(found[0][:rows].astype(np.float32) - found[0][rows : 2 * rows].astype(np.float32)).max() > 5e-3


def test_no_rim_of_a_tile_is_lost(tmp_path):
    folder = hf_weights(tmp_path, "dinov2")
    encoder = load_encoder(HfImage(arch="dinov2", width=32, grid=2, image_size=32, tiles=4), folder)
    framed = Image.new("RGB", (64, 64), "white")
    plain = encoder.prepare(png(framed))
    framed.paste("black", (0, 0, 64, 1))  # only the outermost row
    thumbnail, *tiles = encoder.prepare(png(framed))
    assert tiles[0].shape == thumbnail.shape == (3, 32, 32)
    assert not torch.equal(tiles[0][:, 0], plain[1][:, 0]) and torch.equal(tiles[0][:, 1:], plain[1][:, 1:])


def test_lengths_are_ragged_in_the_store(tmp_path):
    timm_weights(tmp_path / "weights")
    (tmp_path / "lists").mkdir()
    sizes = [(30, 30), (64, 32), (64, 64), (40, 200)]
    for number, size in enumerate(sizes):
        (tmp_path / "lists" / f"{number}.png").write_bytes(png(picture(*size, seed=number)))
    write_manifest(tmp_path, [row(number, f"{number}.png") for number in range(4)])
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    spec = TimmImage(arch="test_efficientnet", width=256, grid=2, image_size=32, tiles=4, batch=3, part_rows=3)
    result = run_step(tmp_path, "embed", "pipelines.embed.media:run", EmbedConfig(spec=spec), {"weights": "weights", "shards_pets": "shards"})
    stored = EmbeddingSet(tmp_path / "embed", tmp_path / "stores")
    features, lengths = stored.gather(stored.keys())
    assert lengths.tolist() == [4, 12, 20, 20] and features.shape == (4, 20, 256) and result["tokens"] == 56
    assert not features[0, 4:].any() and features[1, 4:12].any()
    computed = load_encoder(spec, tmp_path / "weights").encode([png(picture(40, 200, seed=3))])[0]
    np.testing.assert_allclose(stored.get("pets-000003").astype(np.float32), computed.astype(np.float32), atol=4e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiles": 1}, "with tiles 1: set it to 0"),
        ({"tiles": -4}, "with tiles -4: set it to 0"),
    ],
)
def test_useless_settings_are_named(change, message, tmp_path):
    folder = timm_weights(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_encoder(TimmImage(arch="test_efficientnet", width=256, grid=2, image_size=32, **change), folder)


def test_squares_of_another_size_than_the_models_are_named(tmp_path):
    folder = hf_weights(tmp_path, "siglip")
    with pytest.raises(ValueError, match="siglip sees 32 x 32 pixels, the spec says 224: tiles need image_size 32"):
        load_encoder(HfImage(arch="siglip", width=32, tiles=4), folder)
