"""tiny_nextgpt: the parts of NExT-GPT at toy size, through the whole DAG with its generation losses. For tests.

ImageBind (one pooled vector per image, video and audio, as in the public NExT-GPT code), a Llama, the group projector, NExT-GPT's output projectors, and the
layouts of Stable Diffusion 2, ZeroScope and AudioLDM. Stage 2 aligns with each decoder's own text encoder and minimises each decoder's denoising error.
"""

from __future__ import annotations

from dataclasses import replace

from mmcore.config import InputProjectorSpec, OutputProjectorSpec, SpecialTokens
from mmcore.encoder_config import ImageBindAudio, ImageBindImage, ImageBindText, ImageBindVideo, VaeAudio, VaeImage, VaeVideo
from pipelines.recipes.recipe import Recipe, change_stage
from pipelines.recipes.tiny import tiny

WIDTH = 32
TEXT_WIDTH, TEXT_TOKENS, CLAP_WIDTH = 32, 64, 16
"""The toy decoders' conditioning: CLIP states of images and videos (1024 wide and 77 tokens in the published ones), CLAP vectors of audio clips (512)."""
PROJECTOR = OutputProjectorSpec(kind="nextgpt", width=32, layers=1, heads=2, ffn=64, queries=TEXT_TOKENS, out=TEXT_WIDTH)


def tiny_nextgpt() -> Recipe:
    """Random weights, generated data; every modality in and out."""
    recipe = change_stage(
        tiny(),
        "stage2",
        batch=6,
        denoise_loss=1.0,
        min_snr_gamma=5.0,
        mixture=(("stamps_train", 1.0), ("easyvqa_captions", 1.0), ("clips_train", 1.0), ("sounds_train", 1.0)),
    )
    return replace(
        recipe,
        name="tiny_nextgpt",
        image_decoder=None,
        weights=replace(recipe.weights, image="imagebind_toy", audio="imagebind_toy"),
        image=ImageBindImage(arch="imagebind_toy", width=WIDTH, batch=8, part_rows=16),
        video=ImageBindVideo(arch="imagebind_toy", width=WIDTH, batch=2, part_rows=16),
        audio=ImageBindAudio(arch="imagebind_toy", width=WIDTH, batch=4, part_rows=16),
        query=ImageBindText(arch="imagebind_toy", width=WIDTH),
        input_projector=InputProjectorSpec(kind="group", init_std=0.02, width=32, heads=2, depths=(2, 1, 1), groups=(8, 4)),
        output_projector=PROJECTOR,
        output_projectors=(("video", replace(PROJECTOR, queries=24)), ("audio", replace(PROJECTOR, queries=1, out=CLAP_WIDTH))),
        tokens=SpecialTokens(image=4, video=24, audio=8),
        decoders=(("image", "tiny-sd2"), ("video", "tiny-text-to-video"), ("audio", "tiny-audioldm")),
        latents=VaeImage(arch="tiny-sd2", width=4, image_size=32, batch=8, part_rows=16),
        latents_video=VaeVideo(arch="tiny-text-to-video", width=4, image_size=32, frames=4, batch=4, part_rows=16),
        latents_audio=VaeAudio(arch="tiny-audioldm", width=8, max_seconds=0.32, batch=8, part_rows=16),
    )
