"""tiny_nextgpt: tiny with the encoder of NExT-GPT, ImageBind, at toy size. For tests.

One pooled vector per picture, clip and sound reaches the projector, as in the public NExT-GPT code; the stems, crops, clip times and spectrograms are
those of the full model.
"""

from __future__ import annotations

from dataclasses import replace

from mmcore.config import EncoderSpec
from pipelines.recipe import Recipe
from pipelines.recipes.tiny import tiny

WIDTH = 32


def tiny_nextgpt() -> Recipe:
    """Random weights, generated data; ImageBind for pictures, clips and sounds; the latents of a picture decoder."""
    recipe = tiny()
    return replace(
        recipe,
        name="tiny_nextgpt",
        decoders=(),
        image_decoder=None,
        weights=replace(recipe.weights, image="imagebind_toy", audio="imagebind_toy"),
        image=EncoderSpec(kind="imagebind_image", arch="imagebind_toy", width=WIDTH, batch=8, part_rows=16),
        video=EncoderSpec(kind="imagebind_video", arch="imagebind_toy", width=WIDTH, batch=2, part_rows=16),
        audio=EncoderSpec(kind="imagebind_audio", arch="imagebind_toy", width=WIDTH, batch=4, part_rows=16),
        latents=EncoderSpec(kind="vae_image", arch="tiny-vae", width=4, image_size=32, batch=8, part_rows=16),
        query=EncoderSpec(kind="imagebind_text", arch="imagebind_toy", width=WIDTH),
    )
