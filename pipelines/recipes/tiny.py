"""tiny: the whole DAG with random toy-size parts on generated data, in a minute or so and without any download. For tests."""

from __future__ import annotations

from dataclasses import replace

from evals.config import CaptioningEvalConfig, EvalConfig, PopeEvalConfig
from evals.generation.config import ASKED, FORCED, DrawingEvalConfig, GenerationEvalConfig, JudgeConfig, PicturesEvalConfig
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.config import FitConfig, InputProjectorSpec, LoraSpec, OutputProjectorSpec, RowsStage, SpecialTokens, StatesStage
from mmcore.encoder_config import TimmImage, TimmVideo, WhisperAudio
from pipelines.recipes.recipe import Recipe, Weights, change_stage
from pipelines.recipes.smol import DATASETS, MEDIA_QUESTIONS

ONLY_SMOL = ("spoken_train", "speak_train", "talk_train", "converse_train")
"""Datasets of smol (its voice, talk and conversations) that generated data does not have."""


def tiny() -> Recipe:
    """Random weights, generated data, seconds; stages 1-2-3."""
    return Recipe(
        name="tiny",
        lists="tiny",
        questions_are="generated",
        weights=Weights(kind="random", lm="tiny-llama", image="test_efficientnet", audio="tiny-whisper", text="tiny-bert"),
        datasets=tuple(replace(dataset, licence="Apache-2.0 (generated here)") for dataset in DATASETS if dataset.name not in ONLY_SMOL),
        samples_per_shard=16,
        image=TimmImage(arch="test_efficientnet", width=256, grid=2, image_size=64, batch=8, part_rows=16),
        video=TimmVideo(arch="test_efficientnet", width=256, grid=1, frames=2, image_size=64, batch=4, part_rows=16),
        audio=WhisperAudio(arch="tiny-whisper", width=32, tokens=4, batch=4, part_rows=16),
        lm_dtype="float32",
        input_projector=InputProjectorSpec(kind="linear", init_std=0.02),
        output_projector=OutputProjectorSpec(kind="transformer", width=32, layers=1, heads=2, ffn=64, queries=16, out=32),
        tokens=SpecialTokens(image=4, video=0, audio=0),
        decoders=(("image", "trained"),),
        image_decoder=ImageDecoderConfig(
            tokens=48,
            vae_widths=(8, 8, 8),
            vae=FitConfig(steps=6, batch=8, lr=2e-3, warmup_steps=2, checkpoint_every=4),
            unet_widths=(8, 16),
            heads=2,
            norm_groups=4,
            unet=FitConfig(steps=6, batch=8, lr=1e-3, warmup_steps=2, ema=0.99, checkpoint_every=4),
        ),
        picture_judge=JudgeConfig(fit=FitConfig(steps=20, batch=16, lr=2e-3, warmup_steps=4, checkpoint_every=10)),
        eval_pictures=PicturesEvalConfig(draws=1, steps=2, bootstrap_draws=200),
        eval_drawing=DrawingEvalConfig(draws=1, others=4, questions=6, bootstrap_draws=200),
        generation=True,
        eval_generation=GenerationEvalConfig(
            how=(ASKED, FORCED), captions=6, concept_draws=1, references=24, frames=2, chunk=16, jackknife_groups=5, shown=4, bootstrap_draws=200
        ),
        eval_captioning=CaptioningEvalConfig(limit=8, chunk=8, jackknife_groups=4, bootstrap_draws=200),
        eval_objects_as_pope=PopeEvalConfig(pictures=6, chunk=16, bootstrap_draws=200),
        lora=LoraSpec(rank=4, alpha=8),
        stages=(
            RowsStage(
                stage="stage1",
                steps=8,
                batch=4,
                lr=3e-3,
                warmup_steps=2,
                checkpoint_every=3,
                mixture=(("stamps_train", 1.0), ("easyvqa_captions", 1.0), ("clips_train", 0.5), ("sounds_train", 0.5)),
            ),
            StatesStage(
                stage="stage2",
                steps=8,
                requests=2,
                batch=4,
                lr=1e-3,
                warmup_steps=2,
                checkpoint_every=3,
                mixture=(("stamps_train", 1.0), ("easyvqa_captions", 1.0)),
            ),
            RowsStage(
                stage="stage3",
                steps=8,
                batch=2,
                questions=2,
                lr=1e-3,
                warmup_steps=2,
                checkpoint_every=3,
                caption_turn=True,
                balance_answers=True,
                mixture=(("easyvqa_train", 2.0), ("draw_train", 1.0), ("stamps_train", 1.0)),
            ),
        ),
        evaluation=EvalConfig(num_questions=40, chunk=16, bootstrap_draws=200),
    )


def tiny_mix() -> Recipe:
    """tiny, also asked about videos and audio clips in stage 3 (tests smol_mix)."""
    recipe = tiny()
    questions = tuple(replace(dataset, licence="Apache-2.0 (generated here)") for dataset in MEDIA_QUESTIONS)
    mixture = (*recipe.entries["stage3"].mixture, ("clips_questions_train", 1.0), ("sounds_questions_train", 1.0))
    return replace(change_stage(recipe, "stage3", mixture=mixture), name="tiny_mix", datasets=(*recipe.datasets, *questions))
