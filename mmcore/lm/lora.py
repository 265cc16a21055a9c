"""LoRA adapters through peft: attach, save and load in PEFT's own format.

One adapter for everything (mode `shared`), or one for text and one per input modality (mode `per_modality`; see mmcore.lm.lora_layers for the
arithmetic and mmcore.lm.routes for who goes where). `PeftModel.from_pretrained(base, directory)` loads what `save_lora` wrote: the shared
adapter stands in the directory itself, adapters per modality in a folder each. The files are a function of the weights alone: no paths,
no set order, no times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from infra.storage import write_atomic
from mmcore.config import LORA_MODES, MODALITIES, LoraSpec
from mmcore.lm.families import lora_targets
from mmcore.lm.lora_layers import SHARED_ADAPTER, Routing, bind, routing_of
from mmcore.lm.lora_settings import CONFIG, check_settings
from mmcore.runtime.given_weights import check_finite
from mmcore.runtime.seeding import seeded

_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


def adapter_names(spec: LoraSpec, modalities: Iterable[str]) -> tuple[str, ...]:
    """Names of the adapters of a model that reads these media; text is always among those per modality. Raises ValueError for an unknown mode."""
    if spec.mode == "shared":
        return (SHARED_ADAPTER,)
    if spec.mode not in LORA_MODES:
        raise ValueError(f"lora.mode {spec.mode!r} is unknown: use {' or '.join(LORA_MODES)}")
    read = {"text", *modalities}
    return tuple(modality for modality in MODALITIES if modality in read)


def _config(base: Any, spec: LoraSpec) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(lora_targets(base, spec.targets)),
        lora_dropout=spec.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path="",
    )


def attach_lora(base: torch.nn.Module, spec: LoraSpec, seed: int, modalities: Iterable[str] = ()) -> None:
    """Put float32 LoRA layers into a causal LM, in place; B starts at zero, so nothing changes yet. modalities: input media of the model.

    Raises ValueError when adapters are there already, the mode is unknown, or a target is no layer of this LM.
    """
    from peft import inject_adapter_in_model

    if lora_parameters(base):
        raise ValueError("this language model already has a LoRA adapter: attach once, then load into it")
    names, config = adapter_names(spec, modalities), _config(base, spec)
    with seeded(seed):
        for name in names:
            inject_adapter_in_model(config, base, name)
    bind(base, Routing(names, spec.rank, spec.dropout, config.to_dict()))
    for parameter in lora_parameters(base).values():
        parameter.data = parameter.data.float()


def lora_parameters(base: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapters' parameters by their name inside the base, sorted; empty when none is attached."""
    return {name: parameter for name, parameter in sorted(base.named_parameters()) if ".lora_A." in name or ".lora_B." in name}


def _adapter_files(base: torch.nn.Module, directory: Path) -> dict[Path, dict[str, torch.nn.Parameter]]:
    """Directory of each adapter -> its parameters by the names that PEFT gives them in a file."""
    routing = routing_of(base)
    if routing is None:
        return {}
    found: dict[Path, dict[str, torch.nn.Parameter]] = {}
    for adapter in routing.adapters:
        own = {_PREFIX + n.replace(f".{adapter}.", "."): p for n, p in lora_parameters(base).items() if n.endswith(f".{adapter}.weight")}
        found[directory if routing.shared else directory / adapter] = own
    return found


def save_lora(base: torch.nn.Module, spec: LoraSpec, directory: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors of every adapter. Raises ValueError when there is none."""
    files = _adapter_files(base, directory)
    if not files:
        raise ValueError("there is no LoRA adapter to save")
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in _config(base, spec).to_dict().items()}
    settings["inference_mode"] = True
    for folder, parameters in files.items():
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in parameters.items()}
        write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_atomic(folder / CONFIG, json.dumps(settings, sort_keys=True, indent=2, default=str))


def load_lora(base: torch.nn.Module, directory: Path) -> None:
    """Load what `save_lora` (or peft, per adapter) wrote into the attached adapters.

    Raises ValueError when the directory holds other adapters than the model has, adapters whose settings compute something else (mmcore.lm.lora_settings),
    or any missing, extra, misshapen or not finite tensor.
    """
    files = _adapter_files(base, directory)
    stored = sorted(path.parent.relative_to(directory).as_posix() for path in [*directory.glob(WEIGHTS), *directory.glob(f"*/{WEIGHTS}")])
    wanted = sorted(folder.relative_to(directory).as_posix() for folder in files)
    if stored != wanted:
        names = [", ".join("shared" if name == "." else name for name in group) or "none" for group in (stored, wanted)]
        raise ValueError(f"{directory} holds the LoRA adapters {names[0]}, the model has {names[1]}: lora.mode or the encoders changed since it was trained")
    routing, conv1d = routing_of(base), any(type(layer).__name__ == "Conv1D" for layer in base.modules())
    for folder, parameters in files.items():
        check_settings(folder, routing.settings if routing else {}, conv1d)
        _load_adapter(folder, parameters)


def _load_adapter(directory: Path, wanted: dict[str, torch.nn.Parameter]) -> None:
    stored = load_file(directory / WEIGHTS)
    if stored.keys() != wanted.keys():
        odd = sorted(stored.keys() ^ wanted.keys())
        raise ValueError(f"{directory} does not fit this model's LoRA: {len(odd)} tensors differ, the first is {odd[0]}")
    check_finite(sorted(stored.items()), directory / WEIGHTS)
    for name, parameter in wanted.items():
        if stored[name].shape != parameter.shape:
            raise ValueError(f"{directory}: {name} has shape {tuple(stored[name].shape)}, the model wants {tuple(parameter.shape)} (LoRA rank changed?)")
        parameter.data.copy_(stored[name])
