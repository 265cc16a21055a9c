"""llava15_7b: LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744) at full size with LoRA, on the user's own files.

Every weight is given with --weights and every list with --list; nothing is downloaded. Sources of the values: [llava] the repository
haotian-liu/LLaVA at c121f04, scripts/v1_5/pretrain.sh and finetune_lora.sh, [ours] a decision of this project and why. Of the two published
ways to tune it, the whole LM and LoRA, this is LoRA: the LM's own matrices never change here. Differences that no value can express: stage 1
with the prompt that stands in its list and images padded (there neither).
Feature files: 576 tokens of 1024 in half precision are 1.2 MB an image, 1.4 TB for both lists.
"""

from __future__ import annotations

from mmcore.config import InputProjectorSpec, LoraSpec, OutputProjectorSpec, RowsStage, SpecialTokens
from mmcore.encoder_config import HfImage
from pipelines.recipes.recipe import Dataset, Recipe, Weights

DATASETS = (
    # [llava] blip_laion_cc_sbu_558k.json
    Dataset(name="lcs_558k", format="instruct", split="train", licence="captions: BSD-3-Clause (BLIP); pictures: their owners'"),
    # [llava] llava_v1_5_mix665k.json; conversations that begin with the answer (some of ShareGPT's) have to be taken out of it
    Dataset(name="mix_665k", format="instruct", split="train", licence="mixed, part of it CC-BY-NC-4.0: see publisher"),
)


def llava15_7b() -> Recipe:
    """LLaVA-1.5 on your files: Vicuna-7B v1.5 reads images and writes text; stages 1-3.

    CLIP ViT-L/14 at 336 px, MLP projector, 576 tokens an image, LoRA.
    """
    return Recipe(
        name="llava15_7b",
        lists="own",
        questions_are="none: nothing is evaluated yet",
        weights=Weights(kind="own", lm="vicuna-7b-v1.5", image="clip:vit-large-patch14-336", audio="none", text="none"),  # [llava] pretrain.sh
        datasets=DATASETS,
        samples_per_shard=1000,  # [ours] shards of some 100 MB
        # [llava] --mm_vision_select_layer -2, patches only: 24 x 24 at 336 px; --image_aspect_ratio pad
        image=HfImage(
            arch="clip:vit-large-patch14-336",
            width=1024,
            grid=24,
            layer=-2,
            image_size=336,
            pad=True,
            compute="bfloat16",
            batch=64,
            part_rows=1024,
        ),
        video=None,
        audio=None,
        lm_dtype="bfloat16",  # [llava] --bf16 True
        chat="vicuna_v1",  # [llava] finetune_lora.sh: --version v1
        input_projector=InputProjectorSpec(kind="mlp", init_std=0.02),  # [llava] mlp2x_gelu; init_std: [ours] initializer_range of LLaMA's config.json
        output_projector=OutputProjectorSpec(kind="nextgpt"),  # no modality uses it: nothing but text comes out
        tokens=SpecialTokens(image=0, video=0, audio=0),
        lora=LoraSpec(
            mode="shared",
            rank=128,  # [llava] finetune_lora.sh
            dropout=0.05,  # [llava] train.py: lora_dropout
            alpha=256,
            targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),  # [llava] find_all_linear_names
        ),
        stages=(
            RowsStage(
                stage="stage1",
                batch=256,  # [llava] 32 per GPU, 8 GPUs
                steps=2180,  # [llava] one epoch of 558,128
                lr=1e-3,  # [llava]
                warmup_steps=65,  # [llava] warm-up ratio 0.03
                schedule="cosine",  # [llava] --lr_scheduler_type cosine
                final_lr=0.0,
                betas=(0.9, 0.999),  # [llava] the HF Trainer's AdamW
                checkpoint_every=100,
                dialogues=("lcs_558k",),
                mixture=(("lcs_558k", 1.0),),
            ),
            RowsStage(
                stage="stage3",
                batch=128,  # [llava] 16 per GPU, 8 GPUs
                steps=5197,  # [llava] one epoch of 665,298
                lr=2e-4,  # [llava] finetune_lora.sh
                projector_lr=2e-5,  # [llava] --mm_projector_lr
                warmup_steps=156,
                schedule="cosine",
                final_lr=0.0,
                betas=(0.9, 0.999),
                checkpoint_every=100,
                dialogues=("mix_665k",),  # [llava] every turn of a conversation, in order
                train_projectors=True,  # [llava]
                mixture=(("mix_665k", 1.0),),
            ),
        ),
    )
