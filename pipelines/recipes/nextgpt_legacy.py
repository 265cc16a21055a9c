"""nextgpt_7b_legacy: NExT-GPT (Wu et al., ICML 2024) in the layout of its only public checkpoint, on the user's own files.

What differs from nextgpt_7b, with the source of each value: [old] the folder NExT-GPT-Lagacy of the repository NExT-GPT/NExT-GPT at 60d618b (2025-05-13),
[author] answers in the repository's issue threads 13 and 17.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmcore.config import InputProjectorSpec, LoraSpec, OutputProjectorSpec
from pipelines.recipes.nextgpt import IMAGE, nextgpt_7b
from pipelines.recipes.recipe import Recipe, change_stage

LEGACY_DECODERS = (("image", "runwayml/stable-diffusion-v1-5"), ("video", "cerspense/zeroscope_v2_576w"), ("audio", "cvssp/audioldm-l-full"))
"""[old] config/base.yaml."""


def nextgpt_7b_legacy() -> Recipe:
    """The layout of NExT-GPT's only public checkpoint, on your files; stages 1-3-2.

    Vicuna-7B v0, one Linear and one token per item, SD 1.5.
    `mmcore.model.legacy_checkpoint` reads the published file into this model.
    """
    recipe = nextgpt_7b()
    legacy = OutputProjectorSpec(kind="nextgpt_legacy", width=512, layers=4, heads=4, ffn=2048, queries=77, out=1024)
    # [old] dsconfig: Adam (0.9, 0.95), weight decay 1e-3, clip 1.0, warm-up 10 %, WarmupDecayLR (a line to 0)
    old: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 1e-3, "clip": 1.0, "schedule": "linear", "final_lr": 0.0}
    # [old] stage_1.yaml; [author] batch 18, 40 thousand pairs
    recipe = change_stage(recipe, "stage1", **old, lr=4e-4, batch=18, steps=2222, warmup_steps=222)
    # [old] stage_3.yaml: freeze_* all false, one rate for LoRA and projectors; [author] batch 4, 250 thousand samples
    recipe = change_stage(recipe, "stage3", **old, lr=5e-4, projector_lr=0.0, batch=4, steps=62500, warmup_steps=6250, checkpoint_every=500)
    # [old] stage_2.yaml; [author] 180 thousand pairs
    recipe = change_stage(recipe, "stage2", **old, lr=4e-4, batch=18, steps=10000, warmup_steps=1000, denoise_loss=0.0)
    return replace(
        recipe,
        name="nextgpt_7b_legacy",
        image=replace(IMAGE, pad=False),  # [old] images as ImageBind's own code prepares them
        weights=replace(recipe.weights, lm="vicuna-7b-v0"),  # [old] config/base.yaml
        lm_dtype="float16",  # [old] dsconfig: fp16
        chat="vicuna_v0",  # [old] "### Human:" and "### Assistant:"
        input_projector=InputProjectorSpec(kind="linear", init_std=0.02),  # [old] llama_proj: one Linear 1024 -> 4096 for every modality
        # [old] config/base.yaml: 4 + 4 layers without positions; 77 x 768 for SD 1.5, 77 x 1024 for ZeroScope 576w, 1 x 512 for AudioLDM-L
        output_projector=legacy,
        output_projectors=(("image", replace(legacy, out=768)), ("audio", replace(legacy, queries=1, out=512))),
        decoders=LEGACY_DECODERS,
        latents=None,  # [old] stage 2 has cross-entropy and caption alignment only
        latents_video=None,
        latents_audio=None,
        lora=LoraSpec(mode="shared", rank=32, alpha=32, dropout=0.1, targets=("q_proj", "k_proj", "v_proj", "o_proj")),  # [old] config/stage_3.yaml
    )
