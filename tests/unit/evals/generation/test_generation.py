"""Media that are asked for: forced blocks, going on after a kill, where CLIPScore is allowed, scrambled controls, and the report's sections."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_report import _artifact
from toy_any import any_spec
from toy_decoders import directory
from toy_generation import spec_for

import evals.generation.generation
import evals.generation.scores
from evals.config import ReportConfig
from evals.generation.config import ASKED, FORCED, GenerationEvalConfig
from evals.generation.extractors import scrambled, shares_space
from evals.generation.generation import Job, _made, index_tsv
from evals.generation.prompts import CONCEPT_WORDINGS, WORDINGS, Request, in_sentence
from evals.pages.run.context import RunPage
from evals.pages.run.generation import media_section
from evals.statistics.intervals import mean_interval
from evals.tables import DETAILS, GENERATED, METRICS, detail, metric_row, write_table
from infra.fingerprint import to_plain
from infra.step import Artifact, StepContext
from infra.storage import sha256_file
from mmcore.chat.asking import request
from mmcore.chat.chat import Chat
from mmcore.chat.wordings import REQUESTS
from mmcore.concepts.shape_judge import TENSORS, ShapeJudge
from mmcore.encoder_config import ImageBindImage, ImageBindText, TimmImage
from mmcore.inference.drawer import DECODERS
from mmcore.inference.forced import forced_blocks
from mmcore.inference.generator import DESCRIPTION, Generator
from mmcore.lm.language_model import LanguageModel
from mmcore.media.decode import decode_image, decode_waveform
from mmcore.media.encode import wav
from mmcore.model.any_model import AnyModel
from mmcore.training.signals import compute_states
from pipelines.toys.parts import tiny_llama

SPEC = replace(spec_for(("tiny-sd15",)), encoders=any_spec("shared").encoders)
CONFIG = GenerationEvalConfig(how=(ASKED, FORCED), chunk=3, max_new_tokens=4, bootstrap_draws=100)


def toy() -> AnyModel:
    base, tokenizer = tiny_llama(0)
    lm = LanguageModel(base.eval(), SPEC.tokens, SPEC.seed)
    return AnyModel(SPEC, lm, Chat(tokenizer, lm.table)).requires_grad_(False)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A toy export with a picture decoder that is sampled in 2 steps."""
    root = tmp_path_factory.mktemp("export")
    base, tokenizer = tiny_llama(0)
    base.save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    trained = ("lm.new_head_rows", "input_projectors.", "output_projectors.")
    save_file({name: value.detach().clone() for name, value in toy().named_parameters() if name.startswith(trained)}, root / "tensors.safetensors")
    (root / DECODERS).mkdir()
    (root / DECODERS / "image").symlink_to(directory("tiny-sd15"))
    described = {"model": to_plain(SPEC), "caption_turn": False, "stages": [], "sampling": {"image": {"steps": 2, "guidance": 2.0}}}
    (root / DESCRIPTION).write_text(json.dumps(described))
    return root


def test_a_forced_block_has_the_conditioning_that_stage_2_learns_on():
    model, captions = toy(), ["a frog", "a rather longer caption of a thing"]
    blocks = forced_blocks(model, "image", [request("image", caption) for caption in captions])
    states, _ = compute_states(model, "image", captions)
    expected = model.conditioning("image", states[:, 1 : 1 + SPEC.tokens.image])
    assert torch.allclose(torch.stack([block.conditioning_QC for block in blocks]), expected, atol=1e-5)
    assert forced_blocks(model, "image", []) == []
    with pytest.raises(ValueError, match="no signal tokens for video"):
        forced_blocks(model, "video", ["film it"])


def test_captions_are_those_that_a_caption_turn_writes():
    model = toy()
    generator, features = Generator(model, caption_turn=True), np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    from mmcore.types import Question

    answer = generator.answer([Question(text="what?", media_key="m", modality="image", features_NE=features)], max_new_tokens=1)[0]
    assert generator.captions([("image", features), ("audio", features)])[0] == answer.caption and generator.captions([]) == []


def context(export, root) -> StepContext:
    inputs = {"export": Artifact(name="export", path=export, fingerprint="f" * 64, digest="d" * 64, result={})}
    return StepContext(name="eval_generation", config=CONFIG, inputs=inputs, sources={}, output=root / "out", work=root / "work", stores=root)


def test_a_killed_run_goes_on_with_the_next_batch_and_gives_the_same_media(export, tmp_path, monkeypatch):
    asked = [Request(suite="held_out", modality="image", text=f"draw thing {i}", caption=f"thing {i}") for i in range(4)]
    jobs = [Job(request=asked[i], how=how, number=i) for how in CONFIG.how for i in range(4)]
    whole = _made(context(export, tmp_path / "whole"), jobs)
    assert [bool(row["file"]) for row in whole[4:]] == [True] * 4 and all(row["emitted"] == 0 for row in whole[4:])
    assert len({row["media_sha256"] for row in whole[4:]}) == 4
    real, written = evals.generation.generation.write_media, []

    def dying(medium, path):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(medium, path)

    ctx = context(export, tmp_path / "killed")
    monkeypatch.setattr(evals.generation.generation, "write_media", dying)
    with pytest.raises(KeyboardInterrupt):
        _made(ctx, jobs)
    kept = (ctx.work / "made.jsonl").read_bytes()
    assert kept.count(b"\n") == 2  # the third batch died with its second picture
    monkeypatch.setattr(evals.generation.generation, "write_media", lambda medium, path: written.append(path.name) or real(medium, path))
    assert _made(ctx, jobs) == whole and (ctx.work / "made.jsonl").read_bytes().startswith(kept)
    assert len(written) == 3 + 2  # nothing of the first two batches again
    files = [row["file"] for row in whole if row["file"]]
    assert [sha256_file(tmp_path / name / "work" / file) for name in ("whole", "killed") for file in files] == [
        row["media_sha256"] for _ in range(2) for row in whole if row["file"]
    ]
    monkeypatch.setattr(Generator, "load", None)
    assert _made(ctx, jobs) == whole  # finished: no model is loaded


def test_a_medium_that_cannot_be_read_is_as_none_and_is_counted(export, tmp_path, monkeypatch):
    """A block whose image is not finite, a file that is cut short after it was written, and sound ones beside them."""
    asked = [Request(suite="concepts", modality="image", text=f"draw thing {i}", caption=f"thing {i}", concept=i) for i in range(4)]
    real = forced_blocks

    def second_is_nan(model, modality, texts):
        return [
            replace(block, conditioning_QC=block.conditioning_QC * torch.nan) if text == "draw thing 1" else block
            for block, text in zip(real(model, modality, texts), texts, strict=True)
        ]

    monkeypatch.setattr(evals.generation.generation, "forced_blocks", second_is_nan)
    monkeypatch.setattr(evals.generation.generation, "requests_of", lambda ctx: asked)
    judge = tmp_path / "judge"
    judge.mkdir()
    save_file(dict(ShapeJudge().state_dict()), judge / TENSORS)
    ctx = context(export, tmp_path)
    ctx.output.mkdir()
    ctx.inputs["picture_judge"] = Artifact(name="picture_judge", path=judge, fingerprint="f", digest="d", result={})
    monkeypatch.setattr(evals.generation.scores, "_compared", lambda *_: None)  # distances want more media and an encoder
    jobs = [Job(request=request, how=how, number=number) for how in CONFIG.how for number, request in enumerate(asked)]
    damaged = ctx.work / next(row["file"] for job, row in zip(jobs, _made(ctx, jobs), strict=True) if (job.how, job.number) == (FORCED, 2))
    damaged.write_bytes(damaged.read_bytes()[:-90])
    result = evals.generation.generation.run(ctx)
    assert result["unreadable"] == {"concepts, forced, image": 2} and result["media"] == 2
    rows = {(row["how"], row["prompt"]): row for row in pq.read_table(ctx.output / "samples.parquet").to_pylist()}
    nan, cut, good = (rows[FORCED, f"draw thing {n}"] for n in (1, 2, 3))
    assert nan["broken"] == "the medium has values that are not finite" and cut["broken"].startswith("the file cannot be read: truncated: png of")
    assert [(row["file"], row["seen"], row["right"], row["right_of_other"]) for row in (nan, cut)] == [("", "", 0.0, 0.0)] * 2 and good["file"] and good["seen"]
    metric = next(row for row in pq.read_table(ctx.output / "metrics.parquet").to_pylist() if row["condition"] == "concepts, forced")
    assert metric["n"] == 4
    assert sorted(path.name for path in (ctx.output / "media").iterdir()) == [rows[FORCED, f"draw thing {n}"]["file"][6:] for n in (0, 3)]


def test_no_wording_is_trained_on():
    for modality, wordings in WORDINGS.items():
        assert not set(wordings) & set(REQUESTS[modality]) and all(wording.count("{}") == 1 for wording in wordings)
    assert set(CONCEPT_WORDINGS) == {"image", "audio"}
    assert [in_sentence(text) for text in ("A red frog.", "USA flag!", " An owl ")] == ["a red frog", "USA flag", "an owl"]


def test_clipscore_is_for_encoders_that_share_a_space_only():
    query, image = (kind(arch="imagebind_toy", width=32) for kind in (ImageBindText, ImageBindImage))
    assert shares_space(query, image) == ""
    assert "names no query encoder" in shares_space(None, image) and "no encoder" in shares_space(query, None)
    assert "of different models" in shares_space(query, TimmImage(arch="x", width=32, grid=1))
    assert "as tokens" in shares_space(query, replace(image, grid=2))


def test_scrambled_media_keep_their_pixels_and_samples_only():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    mixed = np.asarray(decode_image(scrambled("image", buffer.getvalue(), 0, 1)))
    assert mixed.shape == pixels.shape and (mixed != pixels).any()
    assert sorted(map(tuple, mixed.reshape(-1, 3))) == sorted(map(tuple, pixels.reshape(-1, 3)))
    sound = np.sin(np.arange(800) / 9).astype(np.float32)
    samples, hz = decode_waveform(scrambled("audio", wav(sound, 16_000), 0, 1), 9.0)
    assert hz == 16_000 and np.allclose(np.sort(samples), np.sort(decode_waveform(wav(sound, 16_000), 9.0)[0]), atol=1e-4)


def test_the_report_shows_seeded_draws_with_their_prompts_failures_included(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    artifact = _artifact(tmp_path, "eval_generation", {"not_scored": {"concepts clipscore image": "no <space>"}})
    (artifact.path / "media").mkdir()
    (artifact.path / "media" / "a.png").write_bytes(buffer.getvalue())
    base = {"suite": "concepts", "how": "asked", "modality": "image", "caption": "a <b>frog</b>", "cluster": "c", "seed": 0, "media_sha256": "", "emitted": 1.0}
    base |= {"text": "here", "broken": "", "seen": "red circle", "right": 1.0, "right_of_other": 0.0, "clipscore": None, "clipscore_of_other": None}
    rows = [
        base | {"prompt": "draw <it>", "file": "media/a.png", "shown": True},
        base | {"prompt": "draw nothing", "file": "", "shown": True, "broken": "the image block broke off", "right": 0.0, "seen": ""},
        base | {"prompt": "not drawn by lot", "file": "media/a.png", "shown": False},
    ]
    metric = metric_row(mean_interval([1.0, 0.0, 1.0], ["a", "b", "c"], draws=50), condition="concepts", metric="judged_right", subgroup="image", kind="score")
    write_table(artifact.path / "samples.parquet", rows, GENERATED)
    write_table(artifact.path / "metrics.parquet", [metric], METRICS)
    write_table(artifact.path / "details.parquet", [detail(metric, "x", "y", extractor="judge", extractor_sha256="e" * 64)], DETAILS)
    html = media_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={}), artifact)
    assert "draw &lt;it&gt;" in html and "no medium: the image block broke off" in html and "not drawn by lot" not in html and "<b>frog" not in html
    assert html.count("data:image/jpeg;base64,") == 1 and "no &lt;space&gt;" in html and "judge: red circle (right)" in html and "0.667" in html
    assert index_tsv(rows).splitlines()[1].startswith("media/a.png\tasked\tconcepts\timage\tdraw <it>\t")
