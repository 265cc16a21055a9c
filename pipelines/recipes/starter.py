"""starter: your own captions and instructions on a laptop, with the demo's pretrained parts.

SmolLM2-135M, EfficientNet-lite0 and the Whisper tiny.en encoder come from the demo's packages; every list is a file of yours (--data NAME=FORMAT:FILE, or a
Dataset below). It reads images, videos and audio clips and answers in words. Stage 1 is trained on the captions, stage 3 on the instructions; a stage without
lists is left out.
"""

from __future__ import annotations

from mmcore.config import InputProjectorSpec, LoraSpec, OutputProjectorSpec, RowsStage, SpecialTokens
from mmcore.encoder_config import TimmImage, TimmVideo, WhisperAudio
from pipelines.recipes.recipe import Dataset, Recipe, Weights

DATASETS: tuple[Dataset, ...] = (
    # Dataset(name="photos", format="cc3m", list="photos.tsv", heldout=0.1, licence="mine"),  # caption, tab, image file or address
    # Dataset(name="clips", format="webvid", list="clips.csv", media_roots=("/data/clips",), heldout=0.1, licence="mine"),
    # Dataset(name="sounds", format="audiocaps", list="sounds.csv", media_template="{youtube_id}.wav", licence="mine"),
    # Dataset(name="chats", format="instruct", list="chats.json", licence="mine"),  # LLaVA's form
)
"""What the model learns from; paths are relative to this file. heldout: share of the media that are kept out of training and evaluated."""


def starter() -> Recipe:
    """Your own lists with smol's pretrained parts, in minutes on a laptop; stages 1-3."""
    return Recipe(
        name="starter",  # what the history calls the runs
        lists="own",  # every list is yours
        questions_are="your own",
        weights=Weights(
            kind="pretrained",  # from the demo's packages; `own`: every part is given with --weights
            lm="SmolLM2-135M-Instruct",  # --weights lm=DIR takes another causal language model in its place
            image="tf_efficientnet_lite0",
            audio="whisper-tiny.en",
            text="all-MiniLM-L6-v2",  # only its sentence vectors: caption targets of stage 2
        ),
        datasets=DATASETS,
        samples_per_shard=500,  # rows of a list in one tar
        max_lost=0.5,  # more unusable rows than this share stop the run, with the reasons
        # what reads the media: frozen, computed once and stored
        image=TimmImage(arch="tf_efficientnet_lite0", width=1280, grid=3, image_size=192),  # 3 x 3 tokens an image
        video=TimmVideo(arch="tf_efficientnet_lite0", width=1280, grid=2, frames=4, image_size=192, part_rows=32),  # 4 frames of 2 x 2 tokens
        audio=WhisperAudio(arch="whisper", width=384, tokens=8, max_seconds=6.0, part_rows=16),  # 8 tokens for the first 6 s
        lm_dtype="bfloat16",
        chat="chatml",  # how the language model was taught to talk
        input_projector=InputProjectorSpec(kind="linear", init_std=0.136),  # init_std: the size of SmolLM2's embeddings
        output_projector=OutputProjectorSpec(kind="transformer", width=256, layers=2, heads=4, ffn=1024, queries=16, out=384),  # unused: words come out
        tokens=SpecialTokens(image=0, video=0, audio=0),  # no signal tokens: nothing but text is generated
        lora=LoraSpec(rank=16, alpha=32),
        stages=(
            RowsStage(
                stage="stage1",  # trains the input projectors, on captions
                steps=300,
                batch=8,  # media per step, over all GPUs
                lr=3e-3,
                warmup_steps=20,  # the rate rises over them, then falls to a tenth of the peak
                schedule="linear",
                seed=0,
                checkpoint_every=50,  # a run that is ended goes on from the last checkpoint
                mixture=(),  # every training list of captions, by its weight; or (("photos", 1.0), ("sounds", 0.5))
            ),
            RowsStage(
                stage="stage3",  # trains LoRA and the input projectors, on instructions
                steps=300,
                batch=4,
                lr=1e-3,
                warmup_steps=20,
                schedule="linear",
                seed=0,
                checkpoint_every=50,
                train_projectors=True,
                mixture=(),  # every training list of instructions
            ),
        ),
    )
