"""Decoders: contracts read from configs, what is opened when, texts as the pipelines encode them, and clear refusals."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_decoders import ALL, FAMILIES, conditioning, decoder, directory, latents, pipeline, streams

from infra.step import AnyloomError
from mmcore.decoders import FAMILIES as REGISTERED
from mmcore.decoders import load_decoder
from mmcore.decoders.catalogue import CATALOGUE, known
from mmcore.decoders.contract import COG_SCALE, SD_SCALE, Stream, read_contract
from mmcore.decoders.denoising import denoising_loss
from mmcore.decoders.opening import EMPTY
from mmcore.decoders.sampling import SamplingOptions, generate
from mmcore.decoders.texts import encode_texts
from pipelines.toys.decoders import DECODERS

TEXTS = ["a red cat", "a dog that sings"]


def edited(name: str, tmp_path: Path, part: str, **changes) -> Path:
    """A copy of a toy whose config of `part` is changed; None removes a value."""
    copy = tmp_path / "copy"
    shutil.copytree(directory(name), copy)
    path = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json") if part else copy / "model_index.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy


def test_every_family_is_known_with_licence_use_and_twin():
    assert {entry.family for entry in CATALOGUE} == set(REGISTERED) and {entry.tiny for entry in CATALOGUE} == set(DECODERS) == set(ALL)
    assert len({entry.name for entry in CATALOGUE}) == len({entry.published for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert entry.licence and entry.commercial.split(",")[0].split()[0] in ("yes", "no", "after")
        assert ("NC" in entry.licence) == (entry.commercial == "no")
        contract = read_contract(directory(entry.tiny))
        assert (contract.family, contract.modality, contract.prediction_type) == (entry.family, entry.modality, entry.predicts)
    assert known("stabilityai/stable-diffusion-2").predicts == "v_prediction" and known("of/my-own") is None


def test_a_toy_is_a_standard_directory_made_by_its_seed_alone(tmp_path):
    """diffusers' own StableDiffusionPipeline opens it, and two builds have the same bytes."""
    from diffusers import StableDiffusionPipeline

    opened = StableDiffusionPipeline.from_pretrained(directory("tiny-sd15"), local_files_only=True, use_safetensors=True)
    again, other = DECODERS["tiny-sd15"](0), DECODERS["tiny-sd15"](1)
    for part in ("unet", "vae", "text_encoder"):
        state, same, differs = (getattr(pipe, part).state_dict() for pipe in (opened, again, other))
        assert state.keys() == same.keys() and all(torch.equal(value, same[key]) for key, value in state.items())
        assert not all(torch.equal(value, differs[key]) for key, value in state.items())
    assert not [path for path in directory("tiny-sd15").rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_contracts_and_catalogue_are_read_without_torch():
    code = "import sys; import mmcore.decoders.catalogue, mmcore.decoders as d; d.read_contract(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(directory("tiny-sd2"))], timeout=120).returncode == 0


def test_contracts_come_from_the_configs(tmp_path):
    sd15, sd2 = read_contract(directory("tiny-sd15")), read_contract(directory("tiny-sd2"))
    assert sd15.streams == sd2.streams == (Stream(name="text", tokens=64, width=32),)
    assert (sd15.prediction_type, sd15.scheduler) == ("epsilon", "PNDMScheduler")
    assert (sd2.prediction_type, sd2.scheduler) == ("v_prediction", "EulerDiscreteScheduler")
    assert sd15.latent_shape == (4, 4, 4) and (sd15.cell, sd15.latent_scale) == (8, SD_SCALE)
    video = read_contract(directory("tiny-text-to-video"))
    assert video.latent_shape == (4, 16, 4, 4) and (video.frames, video.rate_hz) == (16, 8.0)
    clap = read_contract(directory("tiny-audioldm"))
    assert clap.streams == (Stream(name="clap", tokens=1, width=16, pooled=True, normalised=True, any_length=False),)
    assert clap.latent_shape == (8, 8, 4) and (clap.rate_hz, clap.hop, clap.cell, clap.latent_scale) == (16000, 160, 4, 0.9227)
    two = read_contract(directory("tiny-audioldm2"))
    assert two.streams == (Stream(name="generated", tokens=8, width=32), Stream(name="text", tokens=16, width=24, masked=True))
    cog, rotary = read_contract(directory("tiny-cogvideox")), read_contract(directory("tiny-cogvideox-rotary"))
    assert cog.latent_shape == (2, 4, 4, 4) and cog.streams == (Stream(name="text", tokens=16, width=24, any_length=False),)
    assert rotary.streams[0].any_length and (cog.frames, cog.frame_cell, cog.prediction_type) == (5, 4, "v_prediction")
    changed = edited("tiny-sd15", tmp_path, "unet", sample_size=[3, 5], cross_attention_dim=48)
    assert (read_contract(changed).latent_shape, read_contract(changed).streams[0].width) == ((4, 3, 5), 48)


def test_values_a_config_leaves_out_are_those_of_the_classes_that_read_it(tmp_path):
    from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, PNDMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    def default(of: object, name: str):
        return inspect.signature(of).parameters[name].default

    old = read_contract(edited("tiny-sd15", tmp_path / "a", "scheduler", prediction_type=None))
    assert old.prediction_type == default(PNDMScheduler, "prediction_type")
    bare = read_contract(edited("tiny-sd15", tmp_path / "b", "vae", scaling_factor=None, shift_factor=None))
    assert bare.latent_scale == default(AutoencoderKL, "scaling_factor") and bare.latent_shift == 0.0 and default(AutoencoderKL, "shift_factor") is None
    names = ("in_channels", "sample_height", "sample_width", "sample_frames", "text_embed_dim", "max_text_seq_length")
    cog = read_contract(edited("tiny-cogvideox", tmp_path / "c", "transformer", **dict.fromkeys(names)))
    channels, height, width, frames, text, tokens = (default(CogVideoXTransformer3DModel, name) for name in names)
    ratio = default(AutoencoderKLCogVideoX, "temporal_compression_ratio")
    assert cog.latent_shape == ((frames - 1) // int(ratio) + 1, channels, height, width)
    assert cog.streams == (Stream(name="text", tokens=tokens, width=text, any_length=False),) and default(AutoencoderKLCogVideoX, "scaling_factor") == COG_SCALE
    video = read_contract(edited("tiny-text-to-video", tmp_path / "d", "unet", cross_attention_dim=None))
    assert video.streams[0].width == default(UNet3DConditionModel, "cross_attention_dim")
    assert video.frames == default(TextToVideoSDPipeline.__call__, "num_frames")


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_and_guidance_are_each_familys_own(name):
    """Not one setting for all decoders: AudioLDM samples in 10 steps at 2.5, Stable Diffusion in 50 at 7.5."""
    given = inspect.signature(type(pipeline(name)).__call__).parameters
    contract = read_contract(directory(name))
    assert (contract.steps, contract.guidance) == (given["num_inference_steps"].default, given["guidance_scale"].default)


def test_what_is_no_decoder_is_named(tmp_path):
    with pytest.raises(AnyloomError, match=r"it has no model_index\.json"):
        load_decoder(tmp_path)
    with pytest.raises(AnyloomError, match="no decoder of the family 'FluxPipeline' is known"):
        load_decoder(edited("tiny-sd15", tmp_path / "a", "", _class_name="FluxPipeline"))
    with pytest.raises(AnyloomError, match="'AutoencoderKL' is no scheduler of diffusers"):
        load_decoder(edited("tiny-sd15", tmp_path / "b", "scheduler", _class_name="AutoencoderKL"))
    with pytest.raises(AnyloomError, match=r"FlowMatchEulerDiscreteScheduler has no variance-preserving noise schedule"):
        load_decoder(edited("tiny-sd15", tmp_path / "c", "scheduler", _class_name="FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(AnyloomError, match="prediction_type 'flow' has no loss here"):
        load_decoder(edited("tiny-sd15", tmp_path / "d", "scheduler", prediction_type="flow"))
    with pytest.raises(AnyloomError, match="time_cond_proj_dim"):
        load_decoder(edited("tiny-sd15", tmp_path / "e", "unet", time_cond_proj_dim=8))
    with pytest.raises(AnyloomError, match="unknown dtype 'int8'"):
        load_decoder(directory("tiny-sd15"), dtype="int8")


def test_a_pickle_is_never_opened(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(directory("tiny-sd15"), copy)
    torch.save(load_file(copy / "unet" / "diffusion_pytorch_model.safetensors"), copy / "unet" / "diffusion_pytorch_model.bin")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AnyloomError, match="could not be opened as safetensors; convert them once"):
        load_decoder(copy)


@pytest.mark.parametrize(
    ("name", "part", "tensor"),
    [
        ("tiny-sd15", "text_encoder", "layers.1.mlp.fc1.weight"),
        ("tiny-sd15", "unet", "conv_in.weight"),
        ("tiny-audioldm", "text_encoder", "layer.0.output.dense.weight"),
        ("tiny-audioldm", "vocoder", "conv_post.weight"),
        ("tiny-audioldm2", "language_model", "h.0.mlp.c_fc.weight"),
        ("tiny-cogvideox", "text_encoder", "block.0.layer.0.SelfAttention.q.weight"),
    ],
)
def test_a_part_that_lacks_a_tensor_is_refused(name, part, tensor, tmp_path):
    """Both libraries would go on with random values in its place."""
    copy = tmp_path / "copy"
    shutil.copytree(directory(name), copy)
    (path,) = (copy / part).glob("*.safetensors")
    tensors = load_file(path)
    (dropped,) = (key for key in tensors if key.endswith(tensor))
    save_file({key: value for key, value in tensors.items() if key != dropped}, path, {"format": "pt"})
    with pytest.raises(AnyloomError, match=rf"{part}: the weights lack .*{tensor}; are they those of its config\.json, with every shard\?"):
        decoder = load_decoder(copy)
        if part == "vocoder":
            generate(decoder, conditioning(name, 1), [0], SamplingOptions(steps=1))
        encode_texts(copy, TEXTS[:1])


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_is_needed_is_opened(name, tmp_path):
    """Texts need no denoiser and no VAE, the loss no VAE and no text encoder, generating no text encoder: their weights are not even there."""
    bare = tmp_path / "bare"
    shutil.copytree(directory(name), bare, ignore=lambda folder, files: files if Path(folder).name in ("unet", "transformer", "vocoder") else [])
    (bare / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    for part in ("unet", "transformer", "vocoder"):
        if (config := directory(name) / part / "config.json").is_file():
            shutil.copy(config, bare / part / "config.json")
    assert torch.equal(encode_texts(bare, TEXTS[:1])[0][0], encode_texts(directory(name), TEXTS[:1])[0][0])
    copy = tmp_path / "copy"
    shutil.copytree(directory(name), copy)
    texts = [part for part in ("text_encoder", "text_encoder_2", "language_model", "projection_model") if (copy / part).is_dir()]
    for part in [*texts, "vae"]:
        for weights in (copy / part).glob("*.safetensors"):
            weights.rename(weights.with_suffix(".away"))
    opened = load_decoder(copy)
    loss_B = denoising_loss(opened, latents(name), conditioning(name), torch.Generator().manual_seed(0))
    assert torch.equal(loss_B, denoising_loss(decoder(name), latents(name), conditioning(name), torch.Generator().manual_seed(0)))
    with pytest.raises(AnyloomError, match="vae: its weights could not be opened"):
        generate(opened, conditioning(name), [0, 1], SamplingOptions(steps=1))
    for weights in (copy / "vae").glob("*.away"):
        weights.rename(weights.with_suffix(".safetensors"))
    assert len(generate(opened, conditioning(name), [0, 1], SamplingOptions(steps=1))) == 2
    (copy / EMPTY).unlink()
    assert len(generate(load_decoder(copy), conditioning(name, 1), [0], SamplingOptions(steps=1, guidance=1.0))) == 1
    with pytest.raises(AnyloomError, match=r"guidance needs the empty conditioning, but there is no empty\.safetensors and .*; or ask for guidance 1"):
        generate(load_decoder(copy), conditioning(name, 1), [0], SamplingOptions(steps=1, guidance=2.0))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_empty_conditioning_is_that_of_the_empty_text(name, tmp_path):
    empty = decoder(name).empty(3)
    again, masks = encode_texts(directory(name), [""])
    for stream, expected, mask in zip(empty.streams, again, masks, strict=True):
        assert stream.shape[0] == 3 and stream.abs().sum() > 0
        torch.testing.assert_close(stream[2:], expected if mask is None else expected[:, mask[0].bool()])
    save_file({"other": torch.zeros(1, 1, 1)}, tmp_path / EMPTY)
    copy = tmp_path / "copy"
    shutil.copytree(directory(name), copy)
    shutil.copy(tmp_path / EMPTY, copy / EMPTY)
    with pytest.raises(AnyloomError, match="was written for another decoder; run write_empty again"):
        load_decoder(copy).empty(1)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_encoded_as_the_pipeline_does(name, tmp_path):
    pipe, contract = pipeline(name), read_contract(directory(name))
    ours, masks = encode_texts(directory(name), TEXTS)
    assert ours[0].shape[1:] == (contract.streams[0].tokens, contract.streams[0].width)
    for row, text in enumerate(TEXTS):
        if name == "tiny-audioldm":
            theirs = [pipe._encode_prompt([text], "cpu", 1, False)[:, None]]
            torch.testing.assert_close(theirs[0].norm(dim=-1), torch.ones(1, 1))
        elif name == "tiny-audioldm2":
            states, mask, generated = pipe.encode_prompt(text, "cpu", 1, False, max_new_tokens=8)
            theirs = [generated, states]
            assert mask.sum() == masks[1][row].sum() == states.shape[1]
        elif name == "tiny-cogvideox":
            theirs = [pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=contract.streams[0].tokens)[0]]
        else:
            theirs = [pipe.encode_prompt(text, "cpu", 1, False)[0]]
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine[row : row + 1, : expected.shape[1]], expected.detach(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[0][0], ours[0][1])
    with pytest.raises(AnyloomError, match="no texts to encode"):
        encode_texts(directory(name), [])
    copy = tmp_path / "copy"
    shutil.copytree(directory(name), copy)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(AnyloomError, match=r"tokenizer.*; copy the (decoder's )?whole directory"):
        encode_texts(copy, TEXTS)


def test_conditioning_that_breaks_the_contract_is_named_with_both_counts():
    sd, clap, two, cog = (decoder(name) for name in ("tiny-sd15", "tiny-audioldm", "tiny-audioldm2", "tiny-cogvideox"))
    with pytest.raises(AnyloomError, match=r"takes 1 conditioning tensors \(text\), 2 were given"):
        sd.condition(torch.zeros(1, 64, 32), torch.zeros(1, 64, 32))
    with pytest.raises(AnyloomError, match=r"'text' is \[batch, tokens, 32\], \[1, 64, 48\] was given"):
        sd.condition(torch.zeros(1, 64, 48))
    with pytest.raises(AnyloomError, match="'text' has exactly 16 tokens, 12 were given"):
        cog.condition(torch.zeros(1, 12, 24))
    with pytest.raises(AnyloomError, match="'clap' has exactly 1 tokens, 8 were given"):
        clap.condition(torch.zeros(1, 8, 16))
    with pytest.raises(AnyloomError, match="different batches: 1, 2"):
        two.condition(torch.zeros(1, 8, 32), torch.zeros(2, 16, 24))
    with pytest.raises(AnyloomError, match=r"the mask of 'text' is \[1, 3\], its tokens are \[1, 16\]"):
        two.condition(torch.zeros(1, 8, 32), torch.zeros(1, 16, 24), masks=(None, torch.ones(1, 3)))
    with pytest.raises(AnyloomError, match="'text' takes no mask"):
        sd.condition(torch.zeros(1, 64, 32), masks=(torch.ones(1, 64),))
    assert sd.condition(torch.zeros(2, 24, 32)).streams[0].shape == (2, 24, 32), "attention takes any number of queries"
    vectors = clap.condition(3 * torch.randn(2, 16)).streams[0]
    assert vectors.shape == (2, 1, 16)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 1))
    with pytest.raises(AnyloomError, match="2 latents and 3 conditionings"):
        denoising_loss(sd, latents("tiny-sd15"), conditioning("tiny-sd15", 3), torch.Generator())
    with pytest.raises(AnyloomError, match=r"latents of the shape \[batch, 4, 16, 4, 4\] are wanted"):
        denoising_loss(decoder("tiny-text-to-video"), torch.zeros(2, 16, 4, 4, 4), conditioning("tiny-text-to-video"), torch.Generator())
    assert len(streams("tiny-audioldm2")) == 2
