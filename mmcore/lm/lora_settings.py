"""Settings of a stored LoRA adapter: what adapter_config.json says, beside what the model computes.

Owns which of PEFT's settings change the numbers. The tensors alone do not tell: the scaling alpha / r (or alpha / sqrt(r): rsLoRA, arXiv 2312.03732) stands in
the settings only. Input: a directory that holds an adapter, and the settings of the model's own. Raises ValueError naming the setting and both values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.storage import read_json

CONFIG = "adapter_config.json"
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "inference_mode",
        "layers_pattern",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Settings that say where an adapter comes from or how it was trained, not what it computes (or only beside another one, which is refused)."""
_UNUSED: tuple[Any, ...] = (None, False, "", "none")
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ ...) change them."""


def check_settings(directory: Path, own: Mapping[str, Any], conv1d: bool = False) -> None:
    """Raises ValueError when the adapter in `directory` computes something else than the model's LoRA with the settings `own` (LoraConfig.to_dict).

    conv1d: the adapted layers keep their weights transposed (GPT-2), which PEFT notes as fan_in_fan_out.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise ValueError(f"{directory} has no {CONFIG}, which says how the adapter is scaled: copy the whole adapter")
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is no JSON object: copy the whole adapter again")
    for name in sorted(stored.keys() - HARMLESS):
        theirs, ours = _plain(name, stored[name]), _plain(name, own.get(name))
        if theirs == ours or _same(name, theirs, conv1d):
            continue
        remedy = "set the recipe's lora to the adapter's, or train that stage again"
        raise ValueError(f"{path}: the adapter has {name}={_shown(theirs)}, the model computes {name}={_shown(ours)}: {remedy}")
    lacking = [name for name in ("r", "lora_alpha") if name not in stored]
    if lacking:
        raise ValueError(f"{path} lacks {lacking[0]} (the model has {own[lacking[0]]}): copy the whole adapter again")


def _plain(name: str, value: Any) -> Any:
    """A value as JSON would have it: sets sorted; enumerations as their text; layers by the last part of their names."""
    if isinstance(value, (set, frozenset, list, tuple)):
        values = [str(one).rpartition(".")[2] for one in value] if name == "target_modules" else list(value)
        return sorted({str(one) for one in values})
    if isinstance(value, str):
        return str(getattr(value, "value", value))
    return value


def _same(name: str, theirs: Any, conv1d: bool) -> bool:
    """True for another value that computes the same."""
    if name == "init_lora_weights":
        return theirs is None or any(theirs is start or (isinstance(start, str) and theirs == start) for start in _PLAIN_STARTS)
    if name == "fan_in_fan_out":
        return theirs is conv1d or not theirs
    if name == "target_modules":  # a pattern: which layers it means shows in the names of the tensors
        return isinstance(theirs, str)
    return theirs in _UNUSED or theirs in ([], {})


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
