"""Weights of the user's own: the needed half by name, the same features as the stock model, one clear line for what does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from data_steps import png, run_step, wav
from safetensors.torch import load_file, save_file
from twins import spec_of, weights_of

from infra.plan import identity
from infra.step import AnyloomError
from mmcore.encoder_config import shared_values
from mmcore.encoders import load_encoder
from mmcore.encoders.catalogue import TWINS
from mmcore.runtime.seeding import seeded
from pipelines.dag.build import build
from pipelines.recipes import get_recipe
from pipelines.recipes.overrides import described
from pipelines.toys import parts as weights_tiny

BODY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**BODY, "vocab_size": 60, "eos_token_id": 2}
CLIP = {"image.kind": "hf_image", "image.arch": "clip:mine", "image.width": 16, "image.grid": 0, "image.dtype": "float32"}
CLIP |= {"video.kind": "hf_video", "video.arch": "clip:mine", "video.width": 32, "video.grid": 2}


def clip_directory(folder: Path) -> transformers.CLIPModel:
    """A whole CLIP, both halves, as save_pretrained writes it, beside files that play no part."""
    with seeded(1):
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=TEXT, vision_config={**BODY, "image_size": 32, "patch_size": 8, "projection_dim": 16}, projection_dim=16)
        )
    model.save_pretrained(folder)
    weights_tiny.tiny_clip(0)[2].save_pretrained(folder)
    (folder / "README.md").write_text("not read")
    return model.eval()


def take(root: Path, part: str, path: Path, overrides: dict, name: str = "taken"):
    """Run the weights step of `part` of a recipe with the user's files. Returns (result, artifact directory, step)."""
    step = build(get_recipe("tiny", overrides), own_weights={part: path})[f"weights_{part}"]
    (root / name).exists() and shutil.rmtree(root / name)
    return run_step(root, name, step.run, step.config, {}, sources=dict(step.sources)), root / name, step


def test_the_vision_half_of_a_clip_directory_gives_the_stock_models_features(tmp_path):
    model = clip_directory(tmp_path / "clip")
    result, output, step = take(tmp_path, "image", tmp_path / "clip", CLIP)
    data = [png(0), png(1)]
    encoder = load_encoder(step.config.specs[0], output)
    pixels = torch.stack([encoder.prepare(item) for item in data])
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=pixels)
    expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
    unit = torch.nn.functional.normalize(expected, dim=-1).numpy()
    assert np.allclose(np.concatenate(encoder.encode(data)), unit, rtol=0, atol=1e-6)  # a tensor's place in its file moves the last bit
    names = set(load_file(output / "encoder" / "model.safetensors"))
    assert names and not [name for name in names if name.startswith(("text_", "logit_"))]
    assert result["parameters"] == sum(p.numel() for n, p in model.named_parameters() if n.startswith(("vision", "visual")))
    licence = json.loads((output / "licence.json").read_text())
    assert (licence["licence"], licence["commercial_use"]) == ("MIT", "yes") and "not read from the files" in licence["source"]
    assert json.loads((output / "encoder.json").read_text())["arch"] == "clip:mine"


def test_the_files_count_by_their_bytes_and_others_do_not(tmp_path):
    clip_directory(tmp_path / "clip")
    step = build(get_recipe("tiny", CLIP), own_weights={"image": tmp_path / "clip"})["weights_image"]
    assert set(step.sources) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    before = identity(step, {})
    (tmp_path / "clip" / "README.md").write_text("changed")
    assert identity(step, {}) == before
    (tmp_path / "clip" / "preprocessor_config.json").write_text((tmp_path / "clip" / "preprocessor_config.json").read_text() + "\n")
    assert identity(step, {}) != before


def test_shards_and_bin_files_give_the_same_bytes_as_one_file(tmp_path):
    model = clip_directory(tmp_path / "clip")
    _, one, _ = take(tmp_path, "image", tmp_path / "clip", CLIP, "one")
    shutil.copytree(tmp_path / "clip", tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 1
    shutil.copytree(tmp_path / "clip", tmp_path / "bin")
    torch.save(load_file(tmp_path / "bin" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    for name in ("sharded", "bin"):
        _, other, _ = take(tmp_path, "image", tmp_path / name, CLIP, f"from_{name}")
        assert (other / "encoder" / "model.safetensors").read_bytes() == (one / "encoder" / "model.safetensors").read_bytes()


def test_what_does_not_fit_is_one_clear_line(tmp_path):
    clip_directory(tmp_path / "clip")
    weights, config = tmp_path / "clip" / "model.safetensors", tmp_path / "clip" / "config.json"
    state, described = load_file(weights), config.read_text()

    def refused(match: str, path: Path = tmp_path / "clip", part: str = "image", **overrides):
        with pytest.raises(AnyloomError, match=match) as caught:
            take(tmp_path, part, path, CLIP | overrides)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    refused(r"--weights image=.*empty: hf_image takes a directory with config.json.*this has no config.json", tmp_path / "empty")
    refused(r"clip: .*gives width 16, the spec says 24; change the recipe's spec", **{"image.width": 24})
    refused(r"config.json: model_type is clip, but hf_image siglip takes siglip or siglip_vision_model", **{"image.arch": "siglip", "video.arch": "siglip"})
    refused(r"share these weights: give them one kind and one arch", **{"video.arch": "dinov2"})
    refused(r"imagebind_audio takes the released file: --weights imagebind=FILE", part="audio", **{"audio.kind": "imagebind_audio"})
    save_file({name: value for name, value in state.items() if name != "vision_model.post_layernorm.bias"}, weights)
    refused(r"clip: the weights lack vision_model\.post_layernorm\.bias; are they those of this config.json\?")
    save_file({name: value for name, value in state.items() if "mlp" not in name}, weights)
    refused(r"the weights lack vision_model\.encoder\.layers\.0\.mlp\.fc1\.bias and 7 more")
    save_file(state | {"visual_projection.weight": torch.zeros(16, 8)}, weights)
    refused(r"have visual_projection\.weight of shape \(16, 8\), config.json says \(16, 32\)")
    save_file(state, weights)
    weights.write_bytes(weights.read_bytes()[:100])
    refused(r"clip: transformers cannot open it as CLIPVisionModelWithProjection: .*invalid header")
    weights.unlink()
    refused(r"--weights image=.*clip: the directory has no model.safetensors")
    save_file(state, weights)
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    refused(r"the directory has no preprocessor_config.json")
    assert config.read_text() == described


@pytest.mark.parametrize("twin", ["tiny-siglip", "tiny-dinov2", "tiny-vae", "tiny-clap", "tiny-hubert", "tiny-whisper", "tiny-bert"])
def test_every_family_is_taken_in_and_encodes_the_same(twin, tmp_path):
    kind = TWINS[twin].kind
    made = weights_of(tmp_path, kind, twin)
    part = made.name.partition("_")[0]
    spec = spec_of(kind, twin, dtype="float32")
    if part == "text":
        overrides = {"output_projector.out": 32, "output_projector.queries": 16}
    else:
        overrides = {part: described(spec)}
        overrides |= {"video": {**shared_values(spec, "hf_video"), "kind": "hf_video"} if kind == "hf_image" else described(spec)} if part == "image" else {}
    result, output, _ = take(tmp_path, part, made / "encoder", overrides)
    data = {"image": png(0), "audio": wav(0, 0.7), "text": b"a red circle"}[part]
    ours, whole = (load_encoder(spec, folder).encode([data])[0] for folder in (output, made))
    assert np.allclose(ours, whole, rtol=1e-5, atol=1e-5)  # a tensor's place in its file moves the last bit
    of_its_type = {"tiny-whisper": "MIT", "tiny-vae": "unknown: see publisher"}  # one type of autoencoder has many publishers
    assert result["licence"] == of_its_type.get(twin, "Apache-2.0")


def test_hubert_under_the_older_names_of_its_published_file(tmp_path):
    """weight_g and weight_v of the positional convolution, as in files from before torch's parametrizations."""
    made = weights_of(tmp_path, "hf_audio", "tiny-hubert") / "encoder"
    state = load_file(made / "model.safetensors")
    end = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {name.replace(new, short): value for name, value in state.items() for new, short in [next(((n, s) for n, s in end.items() if n in name), ("", ""))]}
    shutil.copytree(made, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save({f"hubert.{name}": value for name, value in old.items()} | {"lm_head.weight": torch.zeros(3, 32)}, tmp_path / "old" / "pytorch_model.bin")
    spec = spec_of("hf_audio", "tiny-hubert", dtype="float32")
    overrides = {f"audio.{name}": getattr(spec, name) for name in ("kind", "arch", "width", "tokens", "dtype")}
    _, output, _ = take(tmp_path, "audio", tmp_path / "old", overrides)
    assert np.array_equal(load_encoder(spec, output).encode([wav(0)])[0], load_encoder(spec, made.parent).encode([wav(0)])[0])


def test_a_whole_whisper_checkpoint_gives_its_encoder_and_lacks_are_named(tmp_path):
    made = weights_of(tmp_path, "whisper_audio", "tiny-whisper")
    shutil.copytree(made / "encoder", tmp_path / "whole")
    with seeded(2):
        whole = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig.from_pretrained(made / "encoder"))
    whole.save_pretrained(tmp_path / "whole")
    overrides = {"audio.arch": "whisper", "audio.width": 32, "audio.tokens": 4}
    _, output, _ = take(tmp_path, "audio", tmp_path / "whole", overrides)
    state = load_file(output / "encoder" / "model.safetensors")
    assert torch.equal(state["layers.1.fc1.weight"], whole.model.encoder.layers[1].fc1.weight) and not [name for name in state if "decoder" in name]
    broken = load_file(tmp_path / "whole" / "model.safetensors")
    del broken["model.encoder.layers.1.fc1.weight"]
    save_file(broken, tmp_path / "whole" / "model.safetensors")
    with pytest.raises(AnyloomError, match=r"whole: the weights lack layers\.1\.fc1\.weight$"):
        take(tmp_path, "audio", tmp_path / "whole", overrides)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_timm_file_with_its_classifier(suffix, tmp_path):
    with seeded(3):
        model = timm.create_model("test_vit", num_classes=7).eval()
    path = tmp_path / f"vit.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(model.state_dict(), path)
    overrides = {f"{m}.{k}": v for m in ("image", "video") for k, v in {"arch": "test_vit", "width": 64, "grid": 10, "image_size": 160}.items()}
    result, output, step = take(tmp_path, "image", path, overrides)
    assert result["licence"] == "unknown: see publisher" and json.loads((output / "licence.json").read_text())["commercial_use"] == "unknown"
    features = load_encoder(replace(step.config.specs[0], dtype="float32"), output).encode([png(0, 160)])[0]
    with torch.inference_mode():
        pixels = torch.from_numpy(load_encoder(step.config.specs[0], output).prepare(png(0, 160))).permute(2, 0, 1)[None].float() / 127.5 - 1
        np.testing.assert_allclose(features, model.forward_features(pixels)[0, 1:].numpy(), atol=1e-4)


def test_a_timm_file_that_does_not_fit(tmp_path):
    with seeded(3):
        model = timm.create_model("test_vit", num_classes=0)
    state = model.state_dict()
    same = {f"{m}.{k}": v for m in ("image", "video") for k, v in {"arch": "test_vit", "width": 64, "image_size": 160}.items()}
    path = tmp_path / "vit.safetensors"

    def refused(match, **changes):
        with pytest.raises(AnyloomError, match=match) as caught:
            take(tmp_path, "image", path, same | {f"{m}.{k}": v for m in ("image", "video") for k, v in changes.items()})
        assert "\n" not in str(caught.value)

    refused("takes a timm weights file")
    save_file(state, path)
    refused(r"timm has no architecture 'no_such_net'", arch="no_such_net")
    refused(r"gives 64 channels, the spec says 32; change the recipe's spec", width=32)
    refused(r"the weights have pos_embed of shape \(1, 101, 64\), expected \(1, 17, 64\); check arch, and image_size", image_size=64)
    save_file({name: value for name, value in state.items() if name != "norm.weight"}, path)
    refused(r"vit\.safetensors: the weights lack norm\.weight$")
    save_file(state | {"extra.weight": torch.zeros(2)}, path)
    refused(r"vit\.safetensors: the weights have the unknown extra\.weight$")
    path.write_bytes(b"not weights")
    refused("is no safetensors file and no PyTorch weights file")
