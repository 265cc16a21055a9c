"""LoRA adapters through peft: attach, save and load in PEFT's own format.

`PeftModel.from_pretrained(base, directory)` loads what `save_lora` wrote. The files are a function of the weights alone: no paths,
no set order, no times. The attached layers compute y = x W' + (x A') B' s in the base's dtype with float32 parameters, which on a CPU with
bfloat16 saves the float32 copies of every input that peft's own forward makes (a seventh of a training step).
Refuses to know what else is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import load_file, save

from infra.storage import write_atomic
from mmcore.config import LoraSpec
from mmcore.seeding import seeded

_PREFIX, _ADAPTER = "base_model.model.", ".default."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def _config(spec: LoraSpec) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(spec.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path="",
    )


class _LoraProduct(torch.autograd.Function):
    """x [.., I], W [O, I], A [R, I], B [O, R] -> x W' + s (x A') B'. W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float) -> torch.Tensor:
        flat, low_a, low_b = x.reshape(-1, x.shape[-1]), lora_a.to(x.dtype), (lora_b * scaling).to(x.dtype)
        inner = flat @ low_a.T
        ctx.save_for_backward(flat, weight, low_a, low_b, inner)
        ctx.scaling, ctx.shape = scaling, x.shape
        return torch.addmm(flat @ weight.T, inner, low_b.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, low_a, low_b, inner = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        through = gradient @ low_b
        for_x = torch.addmm(gradient @ weight, through, low_a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return for_x, None, (through.T @ flat).float(), (gradient.T @ inner).float() * ctx.scaling, None


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward of a LoRA linear layer without bias or dropout."""
    product: torch.Tensor = _LoraProduct.apply(
        x, layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    )
    return product


def attach_lora(base: torch.nn.Module, spec: LoraSpec, seed: int) -> None:
    """Put float32 LoRA layers into a causal LM, in place; B starts at zero, so nothing changes yet. Raises ValueError when one is there."""
    from peft import inject_adapter_in_model

    if lora_parameters(base):
        raise ValueError("this language model already has a LoRA adapter: attach once, then load into it")
    with seeded(seed):
        inject_adapter_in_model(_config(spec), base)
    for layer in base.modules():
        inner = getattr(layer, "base_layer", None)
        if hasattr(layer, "lora_A") and isinstance(inner, torch.nn.Linear) and inner.bias is None:
            layer.forward = MethodType(_forward, layer)
    for parameter in lora_parameters(base).values():
        parameter.data = parameter.data.float()


def lora_parameters(base: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by their name inside the base, sorted; empty when none is attached."""
    return {name: parameter for name, parameter in sorted(base.named_parameters()) if ".lora_A." in name or ".lora_B." in name}


def save_lora(base: torch.nn.Module, spec: LoraSpec, directory: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    tensors = {_PREFIX + name.replace(_ADAPTER, "."): value.detach().contiguous().clone() for name, value in lora_parameters(base).items()}
    if not tensors:
        raise ValueError("there is no LoRA adapter to save")
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in _config(spec).to_dict().items()}
    settings["inference_mode"] = True
    write_atomic(directory / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomic(directory / CONFIG, json.dumps(settings, sort_keys=True, indent=2, default=str))


def load_lora(base: torch.nn.Module, directory: Path) -> None:
    """Load weights written by `save_lora` (or by peft) into the attached adapter. Raises ValueError on any missing, extra or misshapen tensor."""
    stored = load_file(directory / WEIGHTS)
    wanted = {_PREFIX + name.replace(_ADAPTER, "."): parameter for name, parameter in lora_parameters(base).items()}
    if stored.keys() != wanted.keys():
        odd = sorted(stored.keys() ^ wanted.keys())
        raise ValueError(f"{directory} does not fit this model's LoRA: {len(odd)} tensors differ, the first is {odd[0]}")
    for name, parameter in wanted.items():
        if stored[name].shape != parameter.shape:
            raise ValueError(f"{directory}: {name} has shape {tuple(stored[name].shape)}, the model wants {tuple(parameter.shape)} (LoRA rank changed?)")
        parameter.data.copy_(stored[name])
