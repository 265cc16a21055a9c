"""Sampling: the same media as diffusers' own pipelines from the same noise, whatever the company; files; what cannot be made."""

from __future__ import annotations

import io
import json
import shutil
import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image
from toy_decoders import DIFFUSED, conditioning, decoder, directory, pipeline, streams

from infra.step import AnyloomError
from mmcore.decoders import load_decoder
from mmcore.decoders.contract import read_contract
from mmcore.decoders.sampling import SamplingOptions, generate, sample
from mmcore.media.encode import write_media
from mmcore.types import Medium

STEPS, GUIDANCE = 3, 2.0


def of_pipeline(name: str) -> np.ndarray:
    """What diffusers' pipeline makes of the toy's conditioning, empty conditioning and the noise of seeds 11 and 12."""
    pipe, opened = pipeline(name), decoder(name)
    shape = opened.contract.latent_shape
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (11, 12)])
    given, empty = opened.condition(*streams(name)), opened.empty(2)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": noise}
    if name == "tiny-audioldm":
        return pipe(prompt_embeds=given.streams[0][:, 0], negative_prompt_embeds=empty.streams[0][:, 0], **options).audios
    if name == "tiny-audioldm2":
        states, mask = empty.streams[1], torch.zeros(2, 16, dtype=torch.int64)
        mask[:, : states.shape[1]] = 1
        return pipe(
            prompt_embeds=given.streams[1],
            attention_mask=given.masks[1],
            generated_prompt_embeds=given.streams[0],
            negative_prompt_embeds=torch.nn.functional.pad(states, (0, 0, 0, 16 - states.shape[1])),
            negative_attention_mask=mask,
            negative_generated_prompt_embeds=empty.streams[0],
            max_new_tokens=8,
            **options,
        ).audios
    options |= {"prompt_embeds": given.streams[0], "negative_prompt_embeds": empty.streams[0], "output_type": "np"}
    if "cogvideox" in name:
        return pipe(num_frames=5, generator=[torch.Generator().manual_seed(seed) for seed in (21, 22)], **options).frames
    return pipe(**options).frames if name == "tiny-text-to-video" else pipe(**options).images


@pytest.mark.parametrize("name", [name for name in DIFFUSED if name != "tiny-cogvideox-rotary"])
def test_media_are_those_of_diffusers_pipeline(name):
    theirs = of_pipeline(name)
    ours = generate(decoder(name), conditioning(name), [11, 12], SamplingOptions(steps=STEPS, guidance=GUIDANCE))
    for medium, expected in zip(ours, theirs, strict=True):
        assert medium.data.shape == expected.shape
        if medium.modality == "audio":
            np.testing.assert_allclose(medium.data, expected, atol=2e-4)
        else:
            assert medium.data.dtype == np.uint8
            np.testing.assert_allclose(medium.data / 255, expected, atol=1.5 / 255)
            assert np.ptp(expected) > 0.1


def test_the_rotary_transformer_is_called_as_the_pipeline_calls_it(monkeypatch):
    """Its DPM solver draws noise in every step, so the pipeline's calls are compared, not its media."""
    name, seen = "tiny-cogvideox-rotary", []
    pipe = pipeline(name)
    inner = pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda **given: (seen.append((given, inner(**given))), seen[-1][1])[1])
    noise = torch.randn(1, *decoder(name).contract.latent_shape, generator=torch.Generator().manual_seed(0))
    pipe(prompt_embeds=streams(name, 1)[0], guidance_scale=1.0, num_inference_steps=2, num_frames=5, latents=noise, output_type="latent")
    assert len(seen) == 2
    for given, (output,) in seen:
        mine = decoder(name).predict(given["hidden_states"], given["timestep"], conditioning(name, 1))
        torch.testing.assert_close(mine, output, atol=1e-5, rtol=1e-5)
    without = decoder(name).denoiser(seen[0][0]["hidden_states"], streams(name, 1)[0], seen[0][0]["timestep"], return_dict=False)[0]
    assert not torch.allclose(without, seen[0][1][0], atol=1e-3)


@pytest.mark.parametrize("name", DIFFUSED)
def test_an_item_is_the_same_whatever_its_company(name):
    options = SamplingOptions(steps=2, guidance=GUIDANCE)
    both = sample(decoder(name), conditioning(name), [3, 4], options)
    first = decoder(name).condition(*(tensor[1:] for tensor in streams(name)))
    alone = sample(decoder(name), first, [4], options)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(both, sample(decoder(name), conditioning(name), [3, 4], options))
    assert not torch.allclose(both, sample(decoder(name), conditioning(name), [3, 5], options), atol=1e-2)


def test_guidance_pushes_away_from_the_empty_conditioning_whatever_its_length():
    opened = decoder("tiny-sd15")
    noisy, steps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 500])
    for count in (64, 24):
        given = opened.condition(*(tensor[:, :count] for tensor in streams("tiny-sd15")))
        empty, conditioned = opened.predict(noisy, steps, opened.empty(2)), opened.predict(noisy, steps, given)
        torch.testing.assert_close(opened.guided(noisy, steps, given, 3.0), empty + 3.0 * (conditioned - empty), atol=1e-5, rtol=1e-4)
        assert torch.equal(opened.guided(noisy, steps, given, 1.0), conditioned) and not torch.allclose(conditioned, empty, atol=1e-3)


def test_a_mask_hides_the_padding_of_audioldm2():
    opened = decoder("tiny-audioldm2")
    generated, text = streams("tiny-audioldm2", 1)
    noisy, step = torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    short = opened.predict(noisy, step, opened.condition(generated, text[:, :5]))
    mask = torch.zeros(1, 16)
    mask[:, :5] = 1
    torch.testing.assert_close(opened.predict(noisy, step, opened.condition(generated, text, masks=(None, mask))), short, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(opened.predict(noisy, step, opened.condition(generated, text)), short, atol=1e-4)


def test_sizes_frames_and_seconds_can_be_asked_for():
    picture = generate(decoder("tiny-sd15"), conditioning("tiny-sd15", 1), [0], SamplingOptions(steps=1, height=16, width=48))[0]
    assert picture.data.shape == (16, 48, 3)
    clip = generate(decoder("tiny-text-to-video"), conditioning("tiny-text-to-video", 1), [0], SamplingOptions(steps=1, frames=3))[0]
    assert clip.data.shape == (3, 32, 32, 3) and clip.rate_hz == 8.0
    longer = generate(decoder("tiny-cogvideox"), conditioning("tiny-cogvideox", 1), [0], SamplingOptions(steps=1, frames=9, guidance=1.0))[0]
    assert longer.data.shape == (9, 32, 32, 3)
    sound = generate(decoder("tiny-audioldm"), conditioning("tiny-audioldm", 1), [0], SamplingOptions(steps=1, seconds=0.1))[0]
    assert sound.data.shape == (1600,) and sound.rate_hz == 16000


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny-sd15", {"height": 20}, "height 20 is no multiple of 8 pixels"),
        ("tiny-sd15", {"frames": 4}, "makes images: it has no frames"),
        ("tiny-sd15", {"seconds": 1.0}, "makes image: ask for height, width and frames"),
        ("tiny-audioldm", {"width": 8}, "makes audio: ask for seconds"),
        ("tiny-audioldm", {"seconds": 0.01}, "audio clips of at least 0.04 s: 0.01 s were asked for"),
        ("tiny-text-to-video", {"frames": 0}, "at least one frame, not 0"),
        ("tiny-sd15", {"steps": 0}, "0 denoising steps were asked for"),
    ],
)
def test_what_cannot_be_made_is_named(name, options, message):
    with pytest.raises(AnyloomError, match=message):
        generate(decoder(name), conditioning(name, 1), [0], SamplingOptions(**({"steps": 1} | options)))
    with pytest.raises(AnyloomError, match="1 conditionings and 2 seeds were given"):
        generate(decoder(name), conditioning(name, 1), [0, 1])


def test_latent_frames_come_in_the_transformers_patches(tmp_path):
    """CogVideoX 1.5 has patches over two latent frames: the surplus one is made and dropped."""
    copy = tmp_path / "copy"
    shutil.copytree(directory("tiny-cogvideox-rotary"), copy)
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size_t": 2, "sample_frames": 9, "patch_bias": False}))
    contract = read_contract(copy)
    assert contract.latent_shape == (4, 4, 4, 4) and contract.latent_frames(contract.frames) == 3
    assert contract.sized(frames=5) == (2, 4, 4, 4) and contract.sized(frames=1)[0] == 2


def test_half_precision_generates_and_the_scheduler_stays_untouched():
    opened = load_decoder(directory("tiny-sd2"), dtype="bfloat16")
    before = opened.scheduler.timesteps.clone()
    medium = generate(opened, opened.condition(*streams("tiny-sd2", 1)), [0], SamplingOptions(steps=2, guidance=1.0))[0]
    full = generate(decoder("tiny-sd2"), conditioning("tiny-sd2", 1), [0], SamplingOptions(steps=2, guidance=1.0))[0]
    assert np.abs(medium.data.astype(int) - full.data).mean() < 12
    assert torch.equal(opened.scheduler.timesteps, before)


# -- files ------------------------------------------------------------------------------------------------------------------------------------------------


def test_pictures_and_sounds_are_written_as_they_are(tmp_path):
    picture = Medium("image", np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8))
    path = write_media(picture, tmp_path / "a" / "picture")
    assert path.name == "picture.png" and np.array_equal(np.asarray(Image.open(path)), picture.data)
    sound = Medium("audio", np.array([0.0, 0.5, -1.0, 2.0], np.float32), 16000.0)
    with wave.open(io.BytesIO(write_media(sound, tmp_path / "s.wav").read_bytes())) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, -32767, 32767]


def test_clips_play_and_have_the_same_bytes_every_time(tmp_path):
    data = np.zeros((5, 32, 48, 3), np.uint8)
    data[:, :, :, 0] = 50 * np.arange(5)[:, None, None]
    first, second = (write_media(Medium("video", data, 8.0), tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert first.read_bytes() == second.read_bytes()
    with av.open(str(first)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 8 and len(frames) == 5
    assert np.abs(np.stack(frames).astype(int) - data).mean() < 6


def test_what_cannot_be_written_is_named_and_leaves_no_file(tmp_path):
    with pytest.raises(AnyloomError, match=r"image is written as \.png; use that suffix"):
        write_media(Medium("image", np.zeros((2, 2, 3), np.uint8)), tmp_path / "a.wav")
    with pytest.raises(AnyloomError, match="5 x 4 pixels cannot be written as mp4"):
        write_media(Medium("video", np.zeros((1, 4, 5, 3), np.uint8), 8.0), tmp_path / "a.mp4")
    with pytest.raises(AnyloomError, match="samples that are not finite"):
        write_media(Medium("audio", np.array([np.nan], np.float32), 16000.0), tmp_path / "a.wav")
    assert not list(tmp_path.iterdir())
