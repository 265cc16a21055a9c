"""nextgpt_7b: NExT-GPT (Wu et al., ICML 2024) at full size, on the user's own files.

Every weight is given with --weights and every list with --list; nothing is downloaded. Sources of the values, named beside them: [new] the repository
NExT-GPT/NExT-GPT at 60d618b (2025-05-13), [author] answers in the repository's issue threads 13 and 17,
[ours] a decision of this project and why. Where the reference's code does not do what its README says, the README is followed.
Files that the steps of nextgpt_7b keep: 154 KiB a caption of an image or video (targets, 77 x 1024 in half precision), 6 KiB an image, 200 KiB a video and
65 KiB an audio clip of latents, 2 KiB a medium of features; give lists of the size that the stages' steps draw.
"""

from __future__ import annotations

from typing import Any

from mmcore.config import InputProjectorSpec, LoraSpec, OutputProjectorSpec, RowsStage, SpecialTokens, StatesStage
from mmcore.encoder_config import ImageBindAudio, ImageBindImage, ImageBindVideo, VaeAudio, VaeImage, VaeVideo
from pipelines.recipes.recipe import Dataset, Recipe, Weights

NEXTGPT_DECODERS = (("image", "stabilityai/stable-diffusion-2"), ("video", "cerspense/zeroscope_v2_576w"), ("audio", "cvssp/audioldm"))
"""[new] scripts/*.sh; for videos the README's ZeroScope 576w, not the scripts' XL, which is made to enlarge videos of 576w."""

DATASETS = (
    # [new] data/T-X_pair_data: captions of three modalities. WebVid can no longer be downloaded: give any list of videos in its format
    Dataset(name="cc3m", format="cc3m", split="train", licence="captions: Google, any purpose; pictures: their owners'"),
    Dataset(name="webvid", format="webvid", split="train", licence="non-commercial research"),
    Dataset(name="audiocaps", format="audiocaps", split="train", licence="captions: MIT; sounds: their owners'"),
    # [new] finetune.sh: LLaVA, Alpaca and VideoChat answer in text, the three T2M sets in a medium. MosIT, the seventh, has no published media
    Dataset(name="llava_150k", format="instruct", split="train", licence="CC-BY-NC-4.0"),
    Dataset(name="alpaca", format="instruct", split="train", licence="CC-BY-NC-4.0"),
    Dataset(name="videochat", format="instruct", split="train", licence="unknown: see publisher"),
    Dataset(name="t2m_image", format="instruct", split="train", licence="unknown: see publisher"),
    Dataset(name="t2m_video", format="instruct", split="train", licence="unknown: see publisher"),
    Dataset(name="t2m_audio", format="instruct", split="train", licence="unknown: see publisher"),
)
CAPTIONS = (("cc3m", 1.0), ("webvid", 1.0), ("audiocaps", 1.0))
"""[ours] As many samples of every modality: by size, AudioCaps' 50 thousand would drown in CC3M's 3 million."""
INSTRUCTIONS = (("llava_150k", 150.0), ("alpaca", 52.0), ("videochat", 11.0), ("t2m_image", 5.0), ("t2m_video", 5.0), ("t2m_audio", 5.0))
"""[ours] By size in thousands, as a concatenation of the sets would give."""

IMAGE = ImageBindImage(arch="imagebind_huge", width=1024, pad=True, batch=64, part_rows=4096)
"""pad: [new] scripts/*.sh: --image_aspect_ratio pad"""
LATENTS: dict[str, Any] = {
    # [new] training_utils.py: target images of 224 px (SD 2 itself was trained at 768)
    "latents": VaeImage(arch="stabilityai/stable-diffusion-2", width=4, image_size=224, batch=16, part_rows=1024),
    # [new] training_utils.py: 16 frames of 576 x 320; [ours] the central square of 320 px, frames spread over the whole video (there one a second)
    "latents_video": VaeVideo(arch="cerspense/zeroscope_v2_576w", width=4, image_size=320, frames=16, batch=1, part_rows=256),
    # [new] audio_processor.py: 10.4 s at 16 kHz, 64 mel bins, hop 160
    "latents_audio": VaeAudio(arch="cvssp/audioldm", width=8, max_seconds=10.4, batch=16, part_rows=1024),
}
"""What the denoising losses are taken of."""
TRAINER: dict[str, Any] = {
    "schedule": "cosine",  # [new] scripts/*.sh: --lr_scheduler_type cosine
    "final_lr": 0.0,
    "betas": (0.9, 0.999),  # [new] the HF Trainer's AdamW
    "weight_decay": 0.0,  # [new] scripts/*.sh
    "clip": 1.0,  # [new] the HF Trainer's max_grad_norm
}
"""Of every stage."""


def nextgpt_7b() -> Recipe:
    """NExT-GPT on your files: Vicuna-7B v1.5, every modality in and out; stages 1-3-2."""
    return Recipe(
        name="nextgpt_7b",
        lists="own",
        questions_are="none: nothing is evaluated yet",
        # [new] scripts/*.sh: lmsys/vicuna-7b-v1.5 and ImageBind; `image` and `audio` are trunks of the one file --weights imagebind
        weights=Weights(kind="own", lm="vicuna-7b-v1.5", image="imagebind_huge", audio="imagebind_huge", text="none"),
        datasets=DATASETS,
        samples_per_shard=1000,  # [ours] shards of some 100 MB
        # [new] ImageBind/models/imagebind_model.py: the pooled 1024-d vector reaches the projector, one per item (videos: mean over 15 crops)
        image=IMAGE,
        video=ImageBindVideo(arch="imagebind_huge", width=1024, batch=4, part_rows=1024),
        audio=ImageBindAudio(arch="imagebind_huge", width=1024, batch=32, part_rows=4096),
        lm_dtype="bfloat16",  # [new] scripts/*.sh: bf16 True
        chat="vicuna_v1",  # [new] scripts/*.sh: --version v1
        # [new] multimodal_projector/group.py: width 512, 6 / 3 / 3 layers, 8 heads, 64 then 8 groups, so every item becomes 8 tokens;
        # init_std: [ours] initializer_range of LLaMA's config.json, the size of the embeddings that the tokens stand among
        input_projector=InputProjectorSpec(kind="group", init_std=0.02, width=512, heads=8, depths=(6, 3, 3), groups=(64, 8)),
        # [new] nextgpt_arch.py: d 512, 4 + 4 layers, 4 heads, FFN 2048; 77 queries of 1024 for SD 2 (OpenCLIP-H) and ZeroScope, 1 of 512 for AudioLDM (CLAP)
        output_projector=OutputProjectorSpec(kind="nextgpt", width=512, layers=4, heads=4, ffn=2048, queries=77, out=1024),
        output_projectors=(("audio", OutputProjectorSpec(kind="nextgpt", width=512, layers=4, heads=4, ffn=2048, queries=1, out=512)),),
        tokens=SpecialTokens(image=4, video=24, audio=8),  # [new] training_utils.py
        decoders=NEXTGPT_DECODERS,
        **LATENTS,
        # [new] finetune.sh: r 128, alpha 256 on all seven linear layers; one adapter for everything (train.py)
        lora=LoraSpec(mode="shared", rank=128, alpha=256, dropout=0.05, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        # [author] thread 17: 1, then 3, then 2. So stage 2 aligns hidden states that no later stage moves
        stages=(
            RowsStage(
                stage="stage1",
                batch=32,  # [new] pretrain_enc.sh: 4 per GPU; [ours] 8 GPUs
                steps=12500,  # [author] thread 13 says 40 thousand pairs, thread 64 counts ten times as many: 400,000 / 32
                lr=1e-3,  # [new] pretrain_enc.sh
                warmup_steps=375,  # [new] warm-up ratio 0.03
                **TRAINER,
                checkpoint_every=500,
                generation_loss=0.0,  # [new] pretrain_enc.sh: --has_img_gen_loss False and its like
                mixture=CAPTIONS,
            ),
            RowsStage(
                stage="stage3",
                batch=448,  # [new] finetune.sh: 56 per GPU; [ours] 8 GPUs
                steps=558,  # [author] thread 13: 250 thousand samples
                lr=2e-4,  # [new] finetune.sh
                projector_lr=2e-5,  # [new] finetune.sh: mm_input_projector_lr
                warmup_steps=17,
                **TRAINER,
                checkpoint_every=50,
                dialogues=tuple(name for name, _ in INSTRUCTIONS),  # [new] every turn of a conversation, in order
                train_projectors=True,  # [new] README 3.4; the code as shipped freezes everything
                mixture=INSTRUCTIONS,
            ),
            StatesStage(
                stage="stage2",
                batch=16,  # [new] pretrain_dec.sh: 2 per GPU; [ours] 8 GPUs
                steps=11250,  # [author] thread 13: 180 thousand pairs
                lr=2e-4,  # [new] pretrain_dec.sh
                warmup_steps=338,
                **TRAINER,
                checkpoint_every=500,
                mixture=CAPTIONS,
                token_loss=1.0,  # [new] nextgpt_llama.py: every loss has weight 1
                align_loss=1.0,  # [ours] normalised by the mean predictor's: 33 against 1 in the reference, image against audio
                denoise_loss=1.0,  # [new] weight 1, for every modality; the target is what the decoder predicts (there always the noise)
                min_snr_gamma=0.0,  # [new] gamma 5 for images only, and there its weights are averaged away before they count; [ours] none
            ),
        ),
    )
