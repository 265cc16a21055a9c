"""Opening: a decoder's networks from their directories, frozen and complete.

Input: a class of diffusers or transformers and a folder. Output: the model on its device. Raises AnyloomError when the folder is missing, holds no
safetensors or lacks a tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from infra.step import AnyloomError

EMPTY = "empty.safetensors"
"""File in a decoder's directory: the conditioning of the empty text (see mmcore.decoders.texts.write_empty)."""

NO_SAFETENSORS = "its weights could not be opened as safetensors; convert them once with torch.load(weights_only=True) and safetensors.torch.save_file"


def open_weights(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """A model of diffusers or transformers, frozen and in evaluation mode. Raises AnyloomError when the folder is missing, holds no
    safetensors or lacks a tensor."""
    if not folder.is_dir():
        raise AnyloomError(f"{folder} is missing; copy the decoder's whole directory")
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    if kind.__module__.startswith("diffusers"):
        # without its saving of memory, which raises an error of its own for a tensor that is missing
        options |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    else:
        options["dtype"] = dtype
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    except OSError as error:
        raise AnyloomError(f"{folder}: {NO_SAFETENSORS} ({str(error).splitlines()[0]})") from error
    if info["missing_keys"]:  # both libraries would go on with random values; tied tensors and what their classes may leave out are not among them
        raise AnyloomError(f"{folder}: the weights lack {sorted(info['missing_keys'])[0]}; are they those of its config.json, with every shard?")
    return model.eval().requires_grad_(False).to(device)
