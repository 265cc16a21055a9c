"""How the encoders of transformers open one part of a saved model.

Owns the checks of family and completeness: transformers itself goes on with random values where a tensor is missing. Input: a directory as
`save_pretrained` writes it, of the part alone or of the whole model; output: a frozen float32 module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from infra.storage import read_json
from mmcore.runtime.given_weights import check_finite, check_unquantised


def load_part(folder: Path, family: str, name: str) -> Any:
    """The frozen model of transformers' class `name`. Raises ValueError when `folder` is of another family, or naming a tensor that its files
    lack or that is not finite, and for weights that somebody else has quantised."""
    settings = folder / "config.json"
    held = read_json(settings).get("model_type", "") if settings.exists() else ""
    if held.partition("_")[0] != family:
        raise ValueError(f"the spec asks for {family}, but {folder} holds {held or 'no model of transformers (config.json)'}")
    check_unquantised(folder)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would list the tensors of the other side, which are not wanted here
    try:
        model, report = getattr(transformers, name).from_pretrained(folder, **options)
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{folder} holds no {name}: it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
    check_finite(model.named_parameters(), folder)
    return model.eval().requires_grad_(False)
