"""The speech_judge step: a whole Whisper from the demo's assets, which writes down what made audio clips say (mmcore.concepts.speech_judge opens it).

Owns the conversion. Input: whisper/{model.bin, tokenizer.json} of the `assets` artifact; output: model.safetensors (as stored: float16), config.json,
tokenizer.json, licence.json. It was trained on nothing of this project.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from infra.step import AnyloomError, StepContext
from infra.storage import write_atomic, write_json
from mmcore.concepts.speech_judge import CONFIG, TENSORS, TOKENIZER
from pipelines.weights.config import WeightsConfig
from pipelines.weights.ct2 import read_model, whisper_decoder, whisper_encoder
from pipelines.weights.writing import LICENCES


def run(ctx: StepContext[WeightsConfig]) -> dict[str, Any]:
    """Entry of the step. Raises AnyloomError for another model than the assets hold."""
    from safetensors.numpy import save

    config = ctx.config
    if config.arch != "whisper-tiny.en":
        raise AnyloomError(f"{ctx.name}: no weights for arch '{config.arch}'; use whisper-tiny.en")
    ctx.progress(0, 1, config.arch)
    whisper = ctx.inputs["assets"].path / "whisper"
    variables = read_model(whisper / "model.bin")
    encoder, decoder = whisper_encoder(variables), whisper_decoder(variables)
    tensors = {f"encoder.{name}": value for name, value in encoder.items()} | {f"decoder.{name}": value for name, value in decoder.items()}
    write_atomic(ctx.output / TENSORS, save({name: value.astype(np.float16) for name, value in sorted(tensors.items())}))
    write_json(ctx.output / CONFIG, _sizes(variables, encoder, decoder))
    shutil.copyfile(whisper / TOKENIZER, ctx.output / TOKENIZER)
    about = dict(zip(("name", "licence", "source"), LICENCES[config.arch], strict=True)) | {"name": "Whisper tiny.en"}
    write_json(ctx.output / "licence.json", about)
    ctx.progress(1, 1, "done")
    return {"arch": config.arch, "parameters": sum(value.size for value in tensors.values()), "licence": about["licence"]}


def _sizes(variables: dict[str, np.ndarray], encoder: dict[str, np.ndarray], decoder: dict[str, np.ndarray]) -> dict[str, int]:
    """Arguments of transformers' WhisperConfig."""
    frames, width = encoder["embed_positions.weight"].shape
    sizes = {"d_model": width, "max_source_positions": frames, "num_mel_bins": encoder["conv1.weight"].shape[1]}
    sizes |= {"vocab_size": len(decoder["embed_tokens.weight"]), "max_target_positions": len(decoder["embed_positions.weight"])}
    for part, tensors in (("encoder", encoder), ("decoder", decoder)):
        sizes[f"{part}_layers"] = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
        sizes[f"{part}_attention_heads"] = int(variables[f"{part}/num_heads"])
        sizes[f"{part}_ffn_dim"] = len(tensors["layers.0.fc1.bias"])
    return sizes
