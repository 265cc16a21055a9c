"""Conversions: models from the file formats of the assets (GGUF, CTranslate2, .pth).

Owns the mapping of their tensors onto stock classes. Input: one file, or a state dict. Output: a model, with its tokenizer where the file has
one. Raises AnyloomError when a tensor finds no place, or the file lacks what the model needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra.step import AnyloomError
from pipelines.weights.ct2 import read_model, whisper_encoder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def llama_from_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF file once into a plain bfloat16 model (a model loaded from GGUF refuses to be saved)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if not tokenizer.chat_template:
        raise AnyloomError(f"{path.name} carries no chat template; use the file pinned in pipelines/demo/assets.py")
    return model.to(torch.bfloat16), tokenizer  # type: ignore[arg-type]  # transformers wraps Module.to and loses its types


def whisper_encoder_from_ct2(path: Path) -> PreTrainedModel:
    """Whisper tiny.en's encoder from a CTranslate2 file: 4 layers, E=384, 6 heads, 1500 frames; float32."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    variables = read_model(path)
    state = {name: torch.from_numpy(value) for name, value in whisper_encoder(variables).items()}
    num_frames, width = state["embed_positions.weight"].shape
    config = WhisperConfig(
        d_model=width,
        encoder_layers=len({n.split(".")[1] for n in state if n.startswith("layers.")}),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        encoder_ffn_dim=state["layers.0.fc1.bias"].shape[0],
        num_mel_bins=state["conv1.weight"].shape[1],
        max_source_positions=num_frames,
        decoder_layers=4,
        decoder_attention_heads=6,
        decoder_ffn_dim=1536,
        vocab_size=51864,
    )
    model = WhisperEncoder(config)
    model.load_state_dict(state, strict=True)
    return model


def renamed_in_order(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of `source` under the names of `target`: same order, same shapes, same last name part, or AnyloomError."""
    if len(source) != len(target):
        raise AnyloomError(f"checkpoint has {len(source)} tensors, the architecture {len(target)}: they do not belong together")
    out = {}
    for (theirs, value), (ours, expected) in zip(source.items(), target.items(), strict=True):
        if value.shape != expected.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise AnyloomError(f"checkpoint tensor {theirs} {tuple(value.shape)} does not fit {ours} {tuple(expected.shape)}")
        out[ours] = value
    return out
