"""The picture decoder that is trained here: its steps at toy size, continued after a kill to the same bytes, opened by diffusers, judged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_steps import run_step
from diffusers import StableDiffusionPipeline

import mmcore.training.fit
from evals.generation.config import JudgeConfig, PicturesEvalConfig
from infra.storage import digest_tree
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.concepts.shapes import CONCEPTS, NEW_WORDINGS, WORDINGS, asked_crops, captioned_crops
from mmcore.config import FitConfig
from mmcore.stores.shards import ShardSet
from pipelines.demo.config import TinyListsConfig
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig
from pipelines.weights.config import WeightsConfig

TOY = ImageDecoderConfig(
    tokens=48,
    vae_widths=(8, 8, 8),
    vae=FitConfig(steps=12, batch=8, lr=2e-3, warmup_steps=2, checkpoint_every=5),
    unet_widths=(8, 16),
    heads=2,
    norm_groups=4,
    unet=FitConfig(steps=10, batch=8, lr=1e-3, warmup_steps=2, ema=0.99, checkpoint_every=4),
)
JUDGE = JudgeConfig(fit=FitConfig(steps=60, batch=32, lr=3e-3, warmup_steps=5, checkpoint_every=25))
INPUTS = {"weights": "weights", "shards_cc3m": "shards_cc3m"}


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Generated pictures in shards, and a toy text encoder."""
    root = tmp_path_factory.mktemp("pictures")
    lists = TinyListsConfig(
        easyvqa_train=72, easyvqa_test=144, stamps_train=1, stamps_heldout=1, clips_train=0, clips_heldout=0, sounds_train=0, sounds_heldout=0
    )
    run_step(root, "lists", "pipelines.demo.tiny:run", lists, {})
    for group, name, split, suffix in (("cc3m", "easyvqa_captions", "train", "tsv"), ("instruct", "easyvqa_test", "test", "json")):
        datasets = (DatasetSpec(name=name, format=group, path=f"{group}/{name}.{suffix}", split=split, licence="MIT"),)
        run_step(root, f"manifest_{group}", "pipelines.shards.manifest:run", ManifestConfig(datasets=datasets), {"lists": "lists"})
        run_step(root, f"shards_{group}", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": f"manifest_{group}", "lists": "lists"})
    run_step(root, "weights", "pipelines.weights.parts:run_text", WeightsConfig(kind="random", arch="tiny-bert"), {})
    return root


def train(root, name, config=TOY):
    return run_step(root, name, "pipelines.training.image_decoder:run", config, INPUTS)


@pytest.fixture(scope="module")
def decoder(root):
    return train(root, "image_decoder")


@pytest.fixture(scope="module")
def judge(root):
    return run_step(root, "picture_judge", "evals.generation.picture_judge:run", JUDGE, {"shards_instruct": "shards_instruct"})


def test_the_same_work_gives_the_same_bytes(root, decoder):
    assert train(root, "again") == decoder
    assert digest_tree(root / "again") == digest_tree(root / "image_decoder")
    assert not [path for path in (root / "image_decoder").rglob("*.json") if str(root) in path.read_text()]


@pytest.mark.parametrize("after", [7, 17])  # saves of the checkpoints at 5, 10 and 12 of the autoencoder, then at 4, 8 and 10 of the UNet
def test_a_killed_training_continues_to_the_same_bytes(root, decoder, monkeypatch, after):
    steps, true_rate = [], mmcore.training.fit.fit_rate

    def killing_rate(config, step):
        steps.append(step)
        if len(steps) > after:
            raise Killed
        return true_rate(config, step)

    monkeypatch.setattr(mmcore.training.fit, "fit_rate", killing_rate)
    with pytest.raises(Killed):
        train(root, f"killed_{after}")
    monkeypatch.undo()
    (root / f"killed_{after}").rename(root / f"remains_{after}")
    assert train(root, f"killed_{after}") == decoder
    assert digest_tree(root / f"killed_{after}") == digest_tree(root / "image_decoder")


def test_another_seed_gives_another_decoder(root, decoder):
    train(root, "other", replace(TOY, unet=replace(TOY.unet, seed=1)))
    vae, unet = "pipeline/vae", "pipeline/unet"
    assert digest_tree(root / "other" / vae) == digest_tree(root / "image_decoder" / vae)
    assert digest_tree(root / "other" / unet) != digest_tree(root / "image_decoder" / unet)


def test_diffusers_opens_it_and_words_equal_their_states(root, decoder):
    pipeline = StableDiffusionPipeline.from_pretrained(root / "image_decoder" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.tokenizer.model_max_length == 48 and pipeline.text_encoder.config.use_attention_mask is True
    assert pipeline.scheduler.config.prediction_type == "v_prediction" and pipeline.scheduler.config.rescale_betas_zero_snr
    from mmcore.concepts.latent_diffusion import prompt_states, sample

    states, mask = prompt_states(pipeline.tokenizer, pipeline.text_encoder, ["a red circle", ""])
    assert states.shape == (2, 48, 32) and mask.sum(1).tolist() == [14, 2]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    by_words = pipeline("a red circle", latents=noise, num_inference_steps=3, guidance_scale=4.0, output_type="pt").images
    by_states = sample(pipeline, states[:1], states[1], noise, 3, 4.0)
    assert by_words.shape == (1, 3, 32, 32) and torch.equal(by_words, by_states)


def test_it_works_without_its_text_encoder(root, decoder):
    folder = root / "image_decoder" / "pipeline"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    states = torch.randn(1, 48, 32, generator=torch.Generator().manual_seed(0))
    made = pipeline(prompt_embeds=states, negative_prompt_embeds=torch.zeros_like(states), num_inference_steps=2, output_type="pt").images
    assert made.shape == (1, 3, 32, 32) and torch.isfinite(made).all()


def test_states_of_prompts_are_those_the_targets_step_stores(root, decoder):
    from mmcore.concepts.latent_diffusion import load_pipeline, prompt_states
    from mmcore.encoder_config import BertText
    from mmcore.encoders import load_encoder

    encoder = load_encoder(BertText(arch="bert", width=32, tokens=48, dtype="float32"), root / "weights")
    pipeline = load_pipeline(root / "image_decoder" / "pipeline")
    states, mask = prompt_states(pipeline.tokenizer, pipeline.text_encoder, ["a teal triangle"])
    stored = encoder.encode([b"a teal triangle"])[0]
    np.testing.assert_allclose(states[0][mask[0]].numpy(), stored, atol=1e-6)


def test_the_latents_are_standard_and_mean_the_same_pictures(root, decoder):
    from mmcore.concepts.latent_diffusion import build_vae, decode, encode, standardise

    pixels = torch.from_numpy(captioned_crops(ShardSet(root / "shards_cc3m", root / "stores"), "easyvqa_captions", 32).pixels).float() / 127.5 - 1
    vae = build_vae(TOY).requires_grad_(False)
    before = encode(vae, pixels)
    pictures = decode(vae, before)
    standardise(vae, before)
    after = encode(vae, pixels)
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(decode(vae, after), pictures, atol=1e-4, rtol=0)


def test_the_judge_knows_real_pictures_and_the_draws_are_judged(root, decoder, judge):
    assert judge["learned"] + judge["tested"] == 144
    assert judge["shape"][1] > 1 / 3 and judge["colour"][1] > 1 / 8 and judge["both"][1] > 1 / 24  # lower ends of the intervals, above chance
    config = PicturesEvalConfig(draws=1, steps=2, bootstrap_draws=100)
    inputs = {name: name for name in ("image_decoder", "picture_judge", "shards_cc3m", "shards_instruct")}
    results = [run_step(root, name, "evals.generation.pictures:run", config, inputs) for name in ("eval_pictures", "eval_again")]
    assert results[0] == results[1] and digest_tree(root / "eval_pictures") == digest_tree(root / "eval_again")
    metrics = {(row["condition"], row["metric"], row["subgroup"]): row for row in pq.read_table(root / "eval_pictures" / "metrics.parquet").to_pylist()}
    assert metrics["chance", "judged_right", "both"]["value"] == pytest.approx(1 / 24)
    assert metrics["real", "judged_right", "shape"]["value"] == pytest.approx(judge["shape"][0], abs=1e-4)
    for part, chance in (("shape", 1 / 3), ("colour", 1 / 8), ("both", 1 / 24)):  # whatever one prompt gives, every concept in turn is asked of it
        assert metrics["unrelated", "judged_right", part]["n"] == 24 and metrics["unrelated", "judged_right", part]["value"] <= 3 * chance
    samples = pq.read_table(root / "eval_pictures" / "samples.parquet").to_pylist()
    assert len(samples) == 4 * 24 and {row["concept"] for row in samples} == {concept.caption for concept in CONCEPTS}
    assert {row["nearest_key"] for row in samples} <= set(json.loads((root / "image_decoder" / "learned.json").read_text())["keys"])
    assert {path.name for path in (root / "eval_pictures").glob("*.png")} == {
        "new_wording.png",
        "trained_wording.png",
        "targets.png",
        "unrelated.png",
        "nearest.png",
    }


def test_a_training_picture_is_its_own_nearest_one_mirrored_or_not(root):
    from evals.generation.pictures import nearest

    crops = captioned_crops(ShardSet(root / "shards_cc3m", root / "stores"), "easyvqa_captions", 32)
    pixels = torch.from_numpy(crops.pixels[:2]).float() / 255
    pixels[1] = pixels[1].flip(-1)
    rows, rmse = nearest(pixels, crops)
    assert rows[0] == 0 and rows[1] % len(crops) == 1
    assert rmse.max() < 1e-3


def test_the_control_asks_for_nothing_and_new_wordings_are_new():
    from evals.generation.pictures import prompts_of

    assert not set(NEW_WORDINGS) & set(WORDINGS)
    trained = {concept.worded(wording) for concept in CONCEPTS for wording in WORDINGS}
    prompts, numbers = prompts_of("new_wording", 4, 0)
    assert len(prompts) == 96 and not set(prompts) & trained
    assert all(CONCEPTS[n].colour in prompt and CONCEPTS[n].shape in prompt for prompt, n in zip(prompts, numbers, strict=True))
    assert set(prompts_of("unrelated", 2, 0)[0]) == {"hello world"}
    assert prompts_of("targets", 1, 0)[0] == [concept.caption for concept in CONCEPTS]


def test_the_crop_holds_the_whole_shape_and_its_pictures_come_from_the_right_split(root):
    train_crops = captioned_crops(ShardSet(root / "shards_cc3m", root / "stores"), "easyvqa_captions", 40)
    tests = asked_crops(ShardSet(root / "shards_instruct", root / "stores"), "easyvqa_test", 40)
    assert train_crops.pixels.shape == (72, 3, 40, 40) and len(tests) == 144 and not set(train_crops.sha256) & set(tests.sha256)
    assert set(train_crops.concepts.tolist()) == set(range(24))
    for crops in (train_crops, tests):
        assert (crops.shape_mask.sum((1, 2)) > 50).all()
        inner = crops.shape_mask[:, 1:-1, 1:-1].sum((1, 2)) / crops.shape_mask.sum((1, 2))
        assert np.median(inner) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "stamps"}, "no image of stamps is known to show a colour and a shape"),
        ({"side": 64}, "sample easyvqa_captions-.*has no crop of 64 x 64.*choose another `side`"),
        ({"side": 36}, "side 36: it must be a multiple of 8"),
    ],
)
def test_what_cannot_be_trained_on_is_one_clear_line(root, change, message):
    from infra.step import AnyloomError

    with pytest.raises(AnyloomError, match=message) as caught:
        train(root, f"wrong_{next(iter(change.items()))[1]}", replace(TOY, **change))
    assert "\n" not in str(caught.value)


def test_default_networks_have_the_sizes_that_were_tried():
    from mmcore.concepts.latent_diffusion import build_unet, build_vae

    with torch.device("meta"):
        unet, vae = build_unet(ImageDecoderConfig(), 384), build_vae(ImageDecoderConfig())
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 2) == 2.72
    assert round(sum(p.numel() for p in vae.parameters()) / 1e6, 2) == 0.23
