"""Directories of published decoders as the planner sees them: the settings that decide their contracts at full size, and weights of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLIP = {"config.json": {"max_position_embeddings": 77}}
TOKENIZER = {"tokenizer_config.json": {"model_max_length": 77}}
VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "scaling_factor": 0.18215}
SOUND = {
    "unet": {"in_channels": 8, "sample_size": 128, "projection_class_embeddings_input_dim": 512},
    "vae": {"block_out_channels": [128, 256, 512], "latent_channels": 8, "scaling_factor": 0.9227},
    "vocoder": {"model_in_dim": 64, "sampling_rate": 16000, "upsample_rates": [5, 4, 2, 2, 2]},
}
"""Both sizes of AudioLDM have the same conditioning and latents."""

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "stabilityai/stable-diffusion-2": (
        "StableDiffusionPipeline",
        {"unet": {"in_channels": 4, "sample_size": 96, "cross_attention_dim": 1024}, "vae": VAE, "prediction_type": "v_prediction"},
    ),
    "runwayml/stable-diffusion-v1-5": (
        "StableDiffusionPipeline",
        {"unet": {"in_channels": 4, "sample_size": 64, "cross_attention_dim": 768}, "vae": VAE, "prediction_type": "epsilon"},
    ),
    "cerspense/zeroscope_v2_576w": (
        "TextToVideoSDPipeline",
        {"unet": {"in_channels": 4, "sample_size": 32, "cross_attention_dim": 1024}, "vae": VAE, "prediction_type": "epsilon"},
    ),
    "cvssp/audioldm": ("AudioLDMPipeline", {**SOUND, "prediction_type": "epsilon"}),
    "cvssp/audioldm-l-full": ("AudioLDMPipeline", {**SOUND, "prediction_type": "epsilon"}),
}
"""Name -> (pipeline class, config of each part and the scheduler's prediction type)."""


def write_settings(name: str, folder: Path) -> Path:
    """The directory of a published decoder without real weights."""
    family, configs = SETTINGS[name]
    parts = {part: {"config.json": config, "diffusion_pytorch_model.safetensors": {}} for part, config in configs.items() if isinstance(config, dict)}
    parts |= {"text_encoder": {**CLIP, "model.safetensors": {}}, "tokenizer": TOKENIZER}
    parts["scheduler"] = {"scheduler_config.json": {"_class_name": "DDIMScheduler", "prediction_type": configs["prediction_type"]}}
    for part, files in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file, values in files.items():
            (folder / part / file).write_text(json.dumps(values))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": family, **{part: ["diffusers", "Any"] for part in parts}}))
    return folder
