"""Given weights: what makes the weights of somebody else unfit, and would not show when they are loaded.

Owns two checks: every value is finite (one NaN makes every number behind it worthless), and nobody has quantised them (they would be computed with in a way
that the recipe does not say). Input: named tensors, or a transformers directory. Raises ValueError naming the tensor, or the field.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from infra.storage import read_json


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], source: Path | str) -> None:
    """Raises ValueError naming the first floating-point tensor of `source` that holds a NaN or an infinity. Tensors without data (meta) are passed over."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
            continue
        values = tensor.detach()
        least, most = values.aminmax() if values.element_size() > 1 else values.float().aminmax()  # both are NaN where a value is
        if not (math.isfinite(float(least)) and math.isfinite(float(most))):
            raise ValueError(f"{source}: the weights {name} hold NaN or infinite values: take them from their maker again, or train that stage again")


def check_unquantised(directory: Path) -> None:
    """Raises ValueError for a transformers directory whose config.json has a quantization_config or compression_config."""
    path = directory / "config.json"
    settings = read_json(path) if path.is_file() else {}
    for field in ("quantization_config", "compression_config"):
        foreign = settings.get(field) if isinstance(settings, dict) else None
        if foreign:
            method = foreign.get("quant_method", "of an unnamed method") if isinstance(foreign, dict) else foreign
            raise ValueError(
                f"{path} has a {field} ({method}): its weights are quantised already; take the unquantised model (a recipe's model.quantize stores it in less)"
            )
