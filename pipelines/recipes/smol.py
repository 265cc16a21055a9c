"""smol: real pretrained parts and real data on a laptop, without a model hub.

SmolLM2-135M, EfficientNet-lite0 and the Whisper tiny.en encoder; Tux Paint stamps (images, audio clips, videos rendered from them) and easy-vqa. It answers
with images of easy-vqa's shapes and, by the audio half of a Piper voice, with their spoken names: a world of 24 concepts.
"""

from __future__ import annotations

from dataclasses import replace

from evals.config import EvalConfig, SuiteConfig
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.config import InputProjectorSpec, OutputProjectorSpec, RowsStage, SpecialTokens, StatesStage
from mmcore.encoder_config import TimmImage, TimmVideo, WhisperAudio
from pipelines.demo.config import QUESTIONS
from pipelines.recipes.recipe import Dataset, Recipe, change_stage

STAMPS, VQA, VOICE, OURS = "GPL-2 (Tux Paint stamps)", "MIT (easy-vqa)", "CC0-1.0 (the Piper voice joe says them)", "Apache-2.0 (written for this demo)"

DATASETS = (
    Dataset(name="stamps_train", format="cc3m", split="train", licence=STAMPS),
    Dataset(name="stamps_heldout", format="cc3m", split="heldout", licence=STAMPS),
    Dataset(name="easyvqa_captions", format="cc3m", split="train", licence=VQA),
    Dataset(name="clips_train", format="webvid", split="train", licence=STAMPS),
    Dataset(name="clips_heldout", format="webvid", split="heldout", licence=STAMPS),
    Dataset(name="sounds_train", format="audiocaps", split="train", licence=STAMPS),
    Dataset(name="sounds_heldout", format="audiocaps", split="heldout", licence=STAMPS),
    Dataset(name="spoken_train", format="audiocaps", split="train", licence=VOICE),
    Dataset(name="easyvqa_train", format="instruct", split="train", licence=VQA),
    Dataset(name="draw_train", format="instruct", split="train", licence=f"{VQA}; {STAMPS}"),
    Dataset(name="speak_train", format="instruct", split="train", licence=VOICE),
    Dataset(name="talk_train", format="instruct", split="train", licence=OURS),
    Dataset(name="converse_train", format="instruct", split="train", licence=f"{VQA}; {VOICE}; {OURS}"),
    Dataset(name="easyvqa_test", format="instruct", split="test", licence=VQA),
)

MEDIA_QUESTIONS = tuple(Dataset(name=name, format="instruct", split=name.rsplit("_", 1)[-1], licence=STAMPS) for names in QUESTIONS.values() for name in names)
"""Questions about videos and audio clips, both sides."""


ASKED_FOR = (("stamps_train", 1.0), ("easyvqa_captions", 1.0), ("spoken_train", 0.7))
"""Captions that both stages 2 ask for."""


def smol() -> Recipe:
    """The demo on 2 cores: real small models, stages 1-2-3-2; draws and speaks.

    The helped recipe (caption turn, balanced yes/no); the order of the stages is the one that draws and speaks best (docs/any_to_any.md).
    """
    return Recipe(
        name="smol",
        lists="smol",
        datasets=DATASETS,
        easyvqa_pictures=1600,
        image=TimmImage(arch="tf_efficientnet_lite0", width=1280, grid=3, image_size=192),
        video=TimmVideo(arch="tf_efficientnet_lite0", width=1280, grid=2, frames=4, image_size=192, part_rows=32),
        audio=WhisperAudio(arch="whisper", width=384, tokens=8, max_seconds=6.0, part_rows=16),
        input_projector=InputProjectorSpec(kind="linear", init_std=0.136),
        output_projector=OutputProjectorSpec(kind="transformer", width=256, layers=2, heads=4, ffn=1024, queries=16, out=384),
        output_projectors=(("audio", OutputProjectorSpec(kind="transformer", width=256, layers=2, heads=4, ffn=1024, queries=30, out=768)),),
        tokens=SpecialTokens(image=4, video=0, audio=8),
        restate=True,
        decoders=(("image", "trained"), ("audio", "voice")),
        stages=(
            RowsStage(
                stage="stage1",
                steps=140,
                batch=8,
                lr=3e-3,
                mixture=(("stamps_train", 1.0), ("easyvqa_captions", 2.0), ("clips_train", 1.5), ("sounds_train", 1.0)),
            ),
            StatesStage(stage="stage2", steps=150, requests=2, batch=32, lr=1e-3, checkpoint_every=100, mixture=ASKED_FOR),
            RowsStage(
                stage="stage3",
                steps=200,
                batch=4,
                lr=1e-3,
                caption_turn=True,
                balance_answers=True,
                dialogues=("converse_train",),
                mixture=(
                    ("easyvqa_train", 4.0),
                    ("draw_train", 0.4),
                    ("speak_train", 0.3),
                    ("talk_train", 0.3),
                    ("converse_train", 0.6),
                    ("stamps_train", 0.4),
                ),
            ),
            StatesStage(stage="stage2", steps=450, requests=16, batch=32, lr=1e-3, checkpoint_every=100, mixture=ASKED_FOR),
        ),
        evaluation=EvalConfig(num_questions=1000),
        image_decoder=ImageDecoderConfig(),
    )


def smol_judged() -> Recipe:
    """smol with every evaluation.

    The same model, asked the stand-in suites, and judged by what it generates, by its captions and by what it says of things
    that are not there.
    """
    return replace(smol(), name="smol_judged", suites=("stand_in",), suite=SuiteConfig(num_questions=200), generation=True)


def smol_plain() -> Recipe:
    """smol without help: no caption turn, no balanced answers.

    More questions, a higher rate and more steps make up for it.
    """
    recipe = change_stage(
        smol(),
        "stage3",
        steps=480,
        questions=8,
        lr=2e-3,
        warmup_steps=15,
        caption_turn=False,
        balance_answers=False,
        mixture=(
            ("easyvqa_train", 4.0),
            ("easyvqa_captions", 0.5),
            ("draw_train", 0.25),
            ("speak_train", 0.25),
            ("talk_train", 0.25),
            ("converse_train", 0.25),
        ),
    )
    return replace(recipe, name="smol_plain")


def smol_frozen() -> Recipe:
    """smol with the input projectors frozen in stage 3."""
    return replace(change_stage(smol(), "stage3", train_projectors=False), name="smol_frozen")


def smol_mix() -> Recipe:
    """smol, also asked about videos and audio clips in stage 3.

    More steps, so that images get as many as in smol.
    """
    recipe = smol()
    mixture = (*recipe.entries["stage3"].mixture, ("clips_questions_train", 1.0), ("sounds_questions_train", 1.0))
    return replace(change_stage(recipe, "stage3", steps=280, mixture=mixture), name="smol_mix", datasets=(*recipe.datasets, *MEDIA_QUESTIONS))
