"""ImageBind: the released layout loads strictly, outputs equal those of the public implementation, preprocessing follows it.

The golden files were made by tests/golden/imagebind_reference.py, which runs the public code (not part of this repository) on the same seeded inputs.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_steps import png, run_step, wav
from PIL import Image
from safetensors import safe_open

from infra.step import AnyloomError
from mmcore.encoder_config import ImageBindImage, ImageBindText, ImageBindVideo, encoder_config
from mmcore.encoders import MODALITY_OF, load_encoder
from mmcore.encoders.imagebind import clip_bpe, inputs
from mmcore.encoders.imagebind.kaldi import fbank, mel_bank
from mmcore.encoders.imagebind.network import HUGE, ImageBind, load_imagebind, modality_of, toy
from mmcore.encoders.resample import resample
from mmcore.encoders.squares import padded_square
from mmcore.media.decode import MediaError
from pipelines.demo.clips import encode_mp4
from pipelines.weights.config import ImageBindConfig

GOLDEN = Path(__file__).parents[3] / "golden" / "imagebind"
PUBLISHED = {"vision": 632_829_440, "text": 354_032_641, "audio": 86_235_648, "depth": 21_871_872, "thermal": 86_211_072, "imu": 19_600_384}
"""Parameters of stem, trunk, head and logit scale of each modality in the released file."""
HERE = Path(__file__).parents[3] / "golden"


def load_maker():
    """The module that made the golden files: seeded weights and inputs are defined once."""
    spec = importlib.util.spec_from_file_location("imagebind_reference", HERE / "imagebind_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()
SMALL = toy(**MAKER.SMALL, vocabulary=HUGE["text"].size[0])


def small_state(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    shapes = ImageBind(SMALL, MAKER.OUT).state_dict()
    return MAKER.seeded_state({name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in shapes.items()})


@pytest.fixture(scope="module")
def golden() -> dict:
    return {name: json.loads((GOLDEN / f"{name}.json").read_text()) for name in ("outputs", "inputs")}


@pytest.mark.parametrize("modality", list(HUGE))
def test_outputs_equal_the_public_implementation(modality, golden):
    expected = torch.tensor(golden["outputs"][modality], dtype=torch.float64)
    for dtype, limit in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        state = {name: value for name, value in small_state().items() if modality_of(name) == modality}
        model = load_imagebind(
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}, {modality: SMALL[modality]}, MAKER.OUT
        )
        got = model(modality, MAKER.item(modality, dtype)).double()
        assert float((got - expected).norm() / expected.norm()) < limit


def test_full_layout_has_the_published_names_and_counts():
    with torch.device("meta"):
        model = ImageBind()
    counts = {name: 0 for name in HUGE}
    for name, parameter in model.named_parameters():
        counts[modality_of(name)] += parameter.numel()
    assert counts == PUBLISHED and sum(counts.values()) == 1_200_781_057
    assert len(model.state_dict()) == 1311
    assert [HUGE[name].num_tokens for name in ("vision", "text", "audio", "depth", "thermal", "imu")] == [257, 77, 229, 197, 197, 251]


def released(model: ImageBind) -> dict[str, torch.Tensor]:
    """A state dict of the released names and shapes that takes no room: one number, repeated."""
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in model.state_dict().items()}


def test_full_layout_is_the_released_one():
    with torch.device("meta"):
        model = ImageBind()
    found = {(re.sub(r"blocks\.\d+", "blocks.{i}", name), "x".join(map(str, tensor.shape))) for name, tensor in model.state_dict().items()}
    assert found == {tuple(line.partition(" ")[::2]) for line in (GOLDEN / "layout.txt").read_text().splitlines()}


def test_the_released_file_gives_the_wanted_trunk_and_a_missing_key_fails_by_name(tmp_path):
    with torch.device("meta"):
        model = ImageBind()
    state = released(model)
    torch.save(state, tmp_path / "imagebind_huge.pth")
    config = ImageBindConfig(kind="pretrained", arch="imagebind_huge", trunks=("depth",))
    given = {"imagebind": tmp_path / "imagebind_huge.pth"}
    result = run_step(tmp_path, "weights_depth", "pipelines.weights.parts:run_imagebind", config, {}, sources=given)
    assert result["parameters"] == PUBLISHED["depth"]
    with safe_open(tmp_path / "weights_depth" / "encoder" / "model.safetensors", framework="pt") as handle:
        assert {modality_of(name) for name in handle.keys()} == {"depth"}
    del state["modality_trunks.depth.blocks.7.mlp.fc2.bias"]
    torch.save(state, tmp_path / "imagebind_huge.pth")
    with pytest.raises(AnyloomError, match=r"imagebind_huge\.pth: the ImageBind file lacks modality_trunks\.depth\.blocks\.7\.mlp\.fc2\.bias$"):
        run_step(tmp_path, "weights_again", "pipelines.weights.parts:run_imagebind", config, {}, sources=given)
    (tmp_path / "imagebind_huge.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(AnyloomError, match="is no safetensors file and no PyTorch weights file"):
        run_step(tmp_path, "weights_bad", "pipelines.weights.parts:run_imagebind", config, {}, sources=given)


def test_a_file_loads_strictly_and_only_the_wanted_trunks():
    state = small_state(torch.float32)
    model = load_imagebind(state, {"audio": SMALL["audio"]}, MAKER.OUT)
    assert {modality_of(name) for name in model.state_dict()} == {"audio"} and not any(p.requires_grad for p in model.parameters())
    broken = dict(state)
    del broken["modality_trunks.audio.blocks.1.attn.bias_k"]
    with pytest.raises(ValueError, match=r"lacks modality_trunks\.audio\.blocks\.1\.attn\.bias_k$"):
        load_imagebind(broken, SMALL, MAKER.OUT)
    with pytest.raises(ValueError, match=r"has the unknown modality_heads\.audio\.9\.weight$"):
        load_imagebind(state | {"modality_heads.audio.9.weight": torch.zeros(1)}, SMALL, MAKER.OUT)
    name = "modality_heads.audio.2.weight"
    with pytest.raises(ValueError, match=r"modality_heads\.audio\.2\.weight of shape \(3, 3\), expected \(32, 32\)"):
        load_imagebind(state | {name: torch.zeros(3, 3)}, SMALL, MAKER.OUT)


def test_an_item_of_another_size_is_refused():
    model = load_imagebind(small_state(torch.float32), {"audio": SMALL["audio"]}, MAKER.OUT)
    with pytest.raises(ValueError, match=r"takes items of shape \(1, 128, 204\), got \(1, 64, 204\)"):
        model("audio", torch.zeros(2, 1, 64, 204))


def same(tensor: torch.Tensor, expected: dict, limit: float) -> None:
    got = MAKER.digest(tensor)
    assert got["shape"] == expected["shape"]
    assert np.abs(np.array(got["values"]) - np.array(expected["values"])).max() < limit
    assert abs(got["mean"] - expected["mean"]) < limit and abs(got["std"] - expected["std"]) < limit


def test_preprocessing_follows_the_public_code(golden):
    expected = golden["inputs"]
    same(inputs.image(Image.fromarray(MAKER.picture_array())), expected["picture"], 1e-6)
    same(inputs.clip([Image.fromarray(frame) for frame in MAKER.clip_array()]), expected["clip"], 1e-4)
    same(inputs.sound(MAKER.sound_array()), expected["sound"], 2e-3)
    same(inputs.sound(MAKER.sound_array(1.1)), expected["short_sound"], 2e-3)
    for hz in MAKER.RATES:
        same(
            inputs.sound(resample(MAKER.sound_array(hz=hz), hz, inputs.AUDIO_HZ)), expected[f"sound_{hz}"], 5e-3
        )  # near silence the logarithm amplifies rounding
    for seconds, starts in expected["clip_starts"].items():
        assert inputs.clip_starts(float(seconds), inputs.VIDEO_CLIPS) == pytest.approx(starts)


def test_text_keeps_its_end_token():
    words = {"a": 1, "dog": 2}
    ids = inputs.text("a dog", lambda text: [words[word] for word in text.split()], 98, 99)
    assert ids[:5].tolist() == [98, 1, 2, 99, 0] and len(ids) == 77
    assert inputs.text("a " * 200, lambda text: [1] * 200, 98, 99)[-1] == 99


def test_texts_have_the_ids_of_the_public_code(golden):
    for text, expected in golden["inputs"]["text"].items():
        assert inputs.text(text, clip_bpe.encode, clip_bpe.START, clip_bpe.END).tolist() == expected


def test_frames_of_a_clip_are_first_and_last_of_five_evenly_spread_spans():
    assert inputs.frame_indices(250, 25.0) == [0, 49, 50, 99, 100, 149, 150, 199, 200, 249]
    assert inputs.frame_indices(18, 12.0) == [0, 17] * 5
    assert inputs.frame_indices(1, 25.0) == [0] * 10


def test_mel_bank_covers_the_band_and_fbank_has_kaldis_frames():
    bank = mel_bank(128, 512, 16000)
    assert bank.shape == (256, 128) and bool((bank >= 0).all()) and float(bank.max()) <= 1
    assert fbank(torch.zeros(32000), 16000).shape == (198, 128) and fbank(torch.zeros(100), 16000).shape == (0, 128)


def test_a_sound_keeps_what_fits_below_the_new_rate_and_loses_the_rest():
    t = np.arange(44100) / 44100
    kept, lost = resample(np.sin(2 * np.pi * 5000 * t), 44100, 16000), resample(np.sin(2 * np.pi * 12000 * t), 44100, 16000)
    assert len(kept) == 16000 and kept.dtype == np.float32
    np.testing.assert_allclose(kept[500:-500], np.sin(2 * np.pi * 5000 * np.arange(16000) / 16000)[500:-500], atol=1e-2)
    assert np.abs(lost[500:-500]).max() < 1e-2
    np.testing.assert_array_equal(resample(kept, 16000, 16000), kept)
    odd = resample(np.ones(5003, np.float32), 44101, 16000)  # rates without a common divisor
    assert len(odd) == 1816 and odd[100:-100] == pytest.approx(np.ones(1616), abs=1e-2)
    assert len(resample(np.ones(3, np.float32), 8000, 16000)) == 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagebind")
    for trunk in ("vision", "audio", "text"):
        run_step(root, f"weights_{trunk}", "pipelines.weights.parts:run_imagebind", ImageBindConfig(kind="random", arch="imagebind_toy", trunks=(trunk,)), {})
    return root


def test_a_padded_picture_is_the_square_of_it(weights):
    """NExT-GPT pads before ImageBind's own preparation, which then cuts nothing off."""
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 120, 3), dtype=np.uint8))
    spec = ImageBindImage(arch="imagebind_toy", width=32, pad=True)
    padded, cut = (load_encoder(replace(spec, pad=pad), weights / "weights_vision") for pad in (True, False))
    assert torch.equal(padded.prepare_image(wide), inputs.image(padded_square(wide, inputs.MEAN)))
    assert not torch.equal(padded.prepare_image(wide), cut.prepare_image(wide))


@pytest.mark.parametrize(("kind", "more", "rows"), [("image", {}, 1), ("image", {"grid": 2}, 4), ("audio", {}, 1), ("audio", {"tokens": 6}, 6)])
def test_encoders_give_the_pooled_vector_or_tokens(weights, kind, more, rows):
    data = [png(0), png(1)] if kind == "image" else [wav(0, 0.5), wav(1, 3.0)]
    spec = encoder_config(f"imagebind_{kind}", {"arch": "imagebind_toy", "width": 32, "batch": 2, **more})
    encoder = load_encoder(spec, weights / f"weights_{'audio' if kind == 'audio' else 'vision'}")
    features = encoder.encode(data)
    assert [f.shape for f in features] == [(rows, 32)] * 2 and features[0].dtype == np.float16
    if rows == 1 and kind == "image":
        assert np.linalg.norm(features[0].astype(np.float32)) == pytest.approx(1, abs=1e-2)
    assert np.abs(features[0].astype(np.float32) - features[1].astype(np.float32)).max() > 1e-3


def test_a_text_is_one_unit_vector_in_the_space_of_the_others(weights):
    assert MODALITY_OF["imagebind_text"] == "text"
    spec = ImageBindText(arch="imagebind_toy", width=32, dtype="float32", batch=2)
    encoder = load_encoder(spec, weights / "weights_text")
    texts = ["A dog.", "two cats &amp; a café 🐕", "tree " * 100]
    vectors = np.concatenate(encoder.encode([text.encode() for text in texts]))
    assert vectors.shape == (3, 32) and np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3))
    ids = torch.stack([inputs.text(text, clip_bpe.encode, clip_bpe.START, clip_bpe.END) for text in texts])
    with safe_open(weights / "weights_text" / "encoder" / "model.safetensors", framework="pt") as handle:
        state = {name: handle.get_tensor(name) for name in handle.keys()}
    model = load_imagebind(state, {"text": toy(vocabulary=HUGE["text"].size[0])["text"]}, 32)
    np.testing.assert_allclose(vectors * (1 / 0.07), model("text", ids).numpy(), rtol=1e-4, atol=1e-4)  # without the logit scale
    np.testing.assert_array_equal(np.concatenate(encoder.encode([b"a DOG."])), np.concatenate(encoder.encode([b"A  dog."])))
    with pytest.raises(MediaError, match="text of 3 bytes: byte 1 is not UTF-8"):
        encoder.encode([b"a\xff."])


def test_clips_have_tokens_for_each_of_five_moments(weights):
    data = encode_mp4([Image.fromarray(frame) for frame in MAKER.clip_array()], 5)
    for grid, rows in ((0, 1), (2, 20)):
        spec = ImageBindVideo(arch="imagebind_toy", width=32, grid=grid, batch=2)
        assert load_encoder(spec, weights / "weights_vision").encode([data])[0].shape == (rows, 32)


def test_wrong_sizes_are_named(weights):
    with pytest.raises(ValueError, match="gives width 32, the spec says 64"):
        load_encoder(ImageBindImage(arch="imagebind_toy", width=64), weights / "weights_vision")
    with pytest.raises(ValueError, match="asks for imagebind_huge"):
        load_encoder(ImageBindImage(arch="imagebind_huge", width=1024), weights / "weights_vision")


def test_the_released_file_is_asked_for_and_a_broken_one_named(tmp_path):
    config = ImageBindConfig(kind="pretrained", arch="imagebind_huge", trunks=("audio",))
    with pytest.raises(AnyloomError, match="--weights imagebind=FILE"):
        run_step(tmp_path, "weights", "pipelines.weights.parts:run_imagebind", config, {})
