"""Decoders as steps: toys from a seed, published weights from a directory, targets and latents by the decoder's own parts, errors while planning."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_steps import png, run_step
from diffusers import StableDiffusionPipeline
from PIL import Image
from toy_decoders import decoder, directory

from infra.step import AnyloomError
from infra.storage import digest_tree, read_json
from mmcore.decoders.projected import joined
from mmcore.decoders.texts import encode_texts
from mmcore.encoder_config import DecoderText, VaeAudio, VaeImage, VaeVideo
from mmcore.encoders import load_encoder
from mmcore.media.decode import decode_audio
from mmcore.stores.latents import LatentSet
from pipelines.dag.build import build
from pipelines.recipes import get_recipe
from pipelines.recipes.recipe import Recipe
from pipelines.toys.media import medium
from pipelines.weights.config import DecoderConfig
from pipelines.weights.given_files import given_decoder

SD2 = "stabilityai/stable-diffusion-2"
RUN = "pipelines.weights.decoders:run"


class Stored:
    """Rows of an encoder by key, as the embedding store gives them."""

    def __init__(self, rows: dict[str, np.ndarray]):
        self._rows = rows

    def gather(self, keys):
        found = [self._rows[key].astype(np.float32) for key in keys]
        return np.stack(found), np.array([len(rows) for rows in found])


def pipeline_of(tmp_path: Path, name: str) -> Path:
    """A directory with the toy in `pipeline/`, as a weights_decoder step leaves it."""
    shutil.copytree(directory(name), tmp_path / name / "pipeline")
    return tmp_path / name


def published(tmp_path: Path) -> Path:
    """The toy of Stable Diffusion 2 as somebody would have downloaded it: another precision beside the weights, a safety checker."""
    given = shutil.copytree(directory("tiny-sd2"), tmp_path / "sd2", ignore=shutil.ignore_patterns("empty.safetensors"))
    shutil.copyfile(given / "unet" / "diffusion_pytorch_model.safetensors", given / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (given / "safety_checker").mkdir()
    (given / "safety_checker" / "pytorch_model.bin").write_bytes(b"never opened")
    index = read_json(given / "model_index.json") | {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (given / "model_index.json").write_text(json.dumps(index))
    return given


def test_a_toy_is_made_with_equal_bytes_and_says_what_drives_it(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        result = run_step(tmp_path / place, "decoder", RUN, DecoderConfig(kind="random", name="tiny-sd2", modality="image"), {})
    assert digest_tree(tmp_path / "a" / "decoder") == digest_tree(tmp_path / "b" / "decoder")
    assert result["predicts"] == "v_prediction" and result["streams"] == {"text": [64, 32]}
    assert read_json(tmp_path / "a" / "decoder" / "contract.json")["latent_shape"] == [4, 4, 4]
    assert (tmp_path / "a" / "decoder" / "pipeline" / "empty.safetensors").is_file()
    assert "random weights" in read_json(tmp_path / "a" / "decoder" / "licence.json")["name"]
    with pytest.raises(AnyloomError, match="tiny-sd2 makes image, not audio"):
        (tmp_path / "c").mkdir()
        run_step(tmp_path / "c", "decoder", RUN, DecoderConfig(kind="random", name="tiny-sd2", modality="audio"), {})


def test_published_weights_come_in_from_a_directory_with_licence_and_contract(tmp_path):
    sources = given_decoder("image", published(tmp_path))
    assert "unet/diffusion_pytorch_model.safetensors" in sources and not any("fp16" in name or "safety" in name for name in sources)
    result = run_step(tmp_path, "decoder", RUN, DecoderConfig(kind="given", name=SD2, modality="image"), {}, sources)
    assert result["family"] == "StableDiffusionPipeline" and result["licence"] == "CreativeML OpenRAIL++-M"
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "decoder" / "pipeline", local_files_only=True).safety_checker is None
    assert torch.equal(encode_texts(tmp_path / "decoder" / "pipeline", ["a dot"])[0][0], encode_texts(directory("tiny-sd2"), ["a dot"])[0][0])
    with pytest.raises(AnyloomError, match=r"cvssp/audioldm is a AudioLDMPipeline, the given directory a StableDiffusionPipeline"):
        run_step(tmp_path, "other", RUN, DecoderConfig(kind="given", name="cvssp/audioldm", modality="audio"), {}, sources)


def test_a_directory_that_is_not_whole_is_named_while_planning(tmp_path):
    given = published(tmp_path)
    for path in (given / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(AnyloomError, match=r"--weights decoder_image=.*: unet has no \.safetensors"):
        given_decoder("image", given)
    shutil.rmtree(given / "unet")
    with pytest.raises(AnyloomError, match=r"model_index.json names unet, which is not there"):
        given_decoder("image", given)
    with pytest.raises(AnyloomError, match=r"it has no model_index\.json"):
        given_decoder("image", tmp_path)


@pytest.mark.parametrize("part", ["../outside", "/etc", "unet/../../outside", "..", ""])
def test_a_part_that_is_a_path_is_refused(part, tmp_path):
    """The index of a downloaded decoder says which folders are copied: none of them may lie elsewhere."""
    given = published(tmp_path)
    shutil.copytree(given / "unet", tmp_path / "outside")
    index = read_json(given / "model_index.json") | {part: ["diffusers", "UNet2DConditionModel"]}
    (given / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(AnyloomError, match=rf"model_index\.json names the part '{part}', which is no plain folder name: take the decoder") as caught:
        given_decoder("image", given)
    assert "\n" not in str(caught.value)


def nextgpt(**changes) -> Recipe:
    return replace(get_recipe("tiny_nextgpt"), **changes)


def test_published_decoders_are_asked_for_and_checked_against_the_projector_while_planning(tmp_path):
    recipe = nextgpt(decoders=(("image", SD2), *get_recipe("tiny_nextgpt").decoders[1:]))
    step = build(recipe)["weights_decoder_image"]
    with pytest.raises(AnyloomError, match=rf"{SD2} \(CreativeML OpenRAIL\+\+-M\) is not downloaded for you; give .* --weights decoder_image=DIR"):
        run_step(tmp_path, step.name, step.run, step.config, {})
    given = {"decoder_image": published(tmp_path)}
    steps = build(recipe, own_weights=given)
    assert steps["weights_decoder_image"].config.kind == "given" and "unet/config.json" in steps["weights_decoder_image"].sources
    assert steps["embed_latents"].inputs["weights"] is steps["targets"].inputs["weights"] is steps["stage2"].inputs["decoder_image"]
    with pytest.raises(AnyloomError, match="output projector of image makes 65 tokens of width 32, but StableDiffusionPipeline takes 1 to 64"):
        build(replace(recipe, output_projector=replace(recipe.output_projector, queries=65)), own_weights=given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoders": (("image", "sd9"),)}, "no decoder called 'sd9' is known for image"),
        ({"decoders": (("image", "cvssp/audioldm"),)}, "cvssp/audioldm makes audio, not image"),
        ({"decoders": (("image", "trained"),)}, "'trained' exists for image only, in a recipe that sets image_decoder"),
        ({"decoders": (("text", "tiny-sd2"),)}, "decoders names text: there are decoders of image, video, audio"),
        ({"decoders": ()}, "latents_video are made by a decoder: name one for video in decoders"),
        ({"latents_audio": None}, "denoise_loss needs a decoder and latents for sounds_train: set decoders and latents_audio for audio"),
        ({"latents_audio": VaeVideo(arch="x", width=8)}, "latents of audio are of the kind vae_audio, not vae_video"),
        ({"tokens": replace(get_recipe("tiny_nextgpt").tokens, video=0), "output_projectors": ()}, "has clips_train, but nothing makes targets of video"),
        (
            {"weights": replace(get_recipe("tiny_nextgpt").weights, kind="pretrained")},
            "tiny-sd2 is a random toy; with weights.kind=pretrained name a published",
        ),
    ],
)
def test_decoders_that_do_not_fit_the_recipe_are_named_while_planning(changes, message):
    with pytest.raises(AnyloomError, match=message):
        build(nextgpt(**changes))


def test_a_recipe_without_decoders_of_its_own_has_the_steps_it_had():
    steps = build(get_recipe("tiny"))
    assert not any(name.startswith("weights_decoder") or "latents" in name for name in steps)
    asked = {"shards_instruct", "embed_image", "embed_video", "embed_audio"}  # how instructions ask for the captions, and what their conversations are about
    assert set(steps["states"].inputs) == {"weights_lm", "stage1", "shards_cc3m", *asked}
    assert set(build(get_recipe("tiny", {"stage2.requests": 1}))["states"].inputs) == {"weights_lm", "stage1", "shards_cc3m"}
    assert set(steps["stage2"].inputs) == {"weights_lm", "stage1", "states", "targets", "shards_cc3m"}
    assert steps["targets"].run == "pipelines.embed.targets:run_targets"


@pytest.mark.parametrize(("name", "queries", "width"), [("tiny-sd2", 64, 32), ("tiny-audioldm", 1, 16), ("tiny-audioldm2", 12, 32)])
def test_caption_targets_are_what_the_decoders_own_text_encoders_say(name, queries, width, tmp_path):
    spec = DecoderText(arch=name, width=width, tokens=queries, dtype="float32", batch=1)
    rows = load_encoder(spec, pipeline_of(tmp_path, name)).encode([b"a red circle", b"two"])
    for row, text in zip(rows, ("a red circle", "two"), strict=True):
        streams, masks = encode_texts(directory(name), [text])
        np.testing.assert_allclose(row, joined(decoder(name).contract, streams, masks, queries, width)[0].numpy(), atol=1e-6)
    with pytest.raises(AnyloomError, match="set queries and out"):
        load_encoder(replace(spec, width=48), pipeline_of(tmp_path / "again", name))


def test_latents_of_pictures_are_in_the_units_and_the_shape_of_the_decoder(tmp_path):
    encoder = load_encoder(VaeImage(arch="tiny-sd2", width=4, image_size=32, dtype="float32"), pipeline_of(tmp_path, "tiny-sd2"))
    latents = LatentSet(Stored({"a": encoder.encode([png(0, 32)])[0]}), decoder("tiny-sd2").contract, encoder.spec).gather(["a", "a"])
    assert latents.shape == (2, *decoder("tiny-sd2").contract.latent_shape)
    pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(png(0, 32))).convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = decoder("tiny-sd2").vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(decoder("tiny-sd2").unscaled(latents[:1]), expected, atol=1e-5, rtol=1e-4)
    assert decoder("tiny-sd2").media(latents)[0].data.shape == (32, 32, 3)


@pytest.mark.parametrize(("name", "frames"), [("tiny-text-to-video", 4), ("tiny-cogvideox", 5)])
def test_latents_of_clips_hold_the_frames_in_order(name, frames, tmp_path):
    spec = VaeVideo(arch=name, width=4, image_size=32, frames=frames, dtype="float32")
    encoder = load_encoder(spec, pipeline_of(tmp_path, name))
    clip = encoder.prepare(medium("video"))
    latents = LatentSet(Stored({"a": encoder.forward([clip])[0]}), decoder(name).contract, spec).gather(["a"])
    pixels = torch.from_numpy(clip).float() / 127.5 - 1
    if name == "tiny-cogvideox":
        expected = decoder(name).vae.encode(pixels.transpose(0, 1)[None]).latent_dist.mean.transpose(1, 2)
    else:
        expected = decoder(name).vae.encode(pixels).latent_dist.mean.transpose(0, 1)[None]
    torch.testing.assert_close(decoder(name).unscaled(latents), expected, atol=1e-5, rtol=1e-4)
    assert latents.shape[1:] == decoder(name).contract.sized(frames=frames)
    made = decoder(name).media(latents)[0].data
    assert made.shape[1:] == (32, 32, 3) and len(made) >= frames  # CogVideoX shows an even number of latent frames with a longer start


def test_latents_of_sounds_are_the_mel_spectrogram_that_the_vocoder_reads(tmp_path):
    spec = VaeAudio(arch="tiny-audioldm", width=8, max_seconds=0.32, dtype="float32")
    encoder = load_encoder(spec, pipeline_of(tmp_path, "tiny-audioldm"))
    mel_TM = encoder.log_mel(np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000).astype(np.float32))
    assert mel_TM.shape == (32, 16) and set(mel_TM[2:-2].argmax(1).tolist()) == {5}  # Slaney: 1000 Hz is mel 15 of 45.2 up to 8 kHz, so 5.6 of 17 steps
    assert encoder.log_mel(np.zeros(100, np.float32)).max() == pytest.approx(np.log(1e-5))
    short, sound = encoder.prepare(medium("audio"), 0.0, 0.1), encoder.prepare(medium("audio"))
    assert short.shape == sound.shape and (short[20:] == np.float32(np.log(1e-5))).all()
    assert decode_audio(medium("audio"), 16000, 0.32).size == 5120
    rows = encoder.forward([sound])[0]
    latents = LatentSet(Stored({"a": rows}), decoder("tiny-audioldm").contract, spec).gather(["a"])
    assert latents.shape[1:] == decoder("tiny-audioldm").contract.latent_shape
    expected = decoder("tiny-audioldm").vae.encode(torch.from_numpy(sound)[None, None]).latent_dist.mean
    torch.testing.assert_close(decoder("tiny-audioldm").unscaled(latents), expected, atol=1e-5, rtol=1e-4)
    assert len(decoder("tiny-audioldm").media(latents)[0].data) == 5120


def test_latents_that_do_not_fit_a_decoder_are_named():
    contract, spec = decoder("tiny-sd2").contract, VaeImage(arch="x", width=4)
    with pytest.raises(ValueError, match="latents of the kind vae_audio were given for a decoder of image"):
        LatentSet(Stored({}), contract, VaeAudio(arch="x", width=4))
    with pytest.raises(ValueError, match="have 16 channels, the decoder takes 4"):
        LatentSet(Stored({}), contract, replace(spec, width=16))
    with pytest.raises(ValueError, match="15 latent cells are no image of 3 x 3 cells"):
        LatentSet(Stored({"a": np.zeros((15, 4))}), contract, spec).gather(["a"])
