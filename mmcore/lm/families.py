"""Families of causal language models: what differs between them and matters here.

Owns the names of the linear layers that LoRA goes on, per transformers model type, and the checks that a model computes what
LanguageModel assumes: logits are the head applied to the last hidden states, and every layer attends to all earlier tokens.
Input: a transformers model or its config.
"""

from __future__ import annotations

from typing import Any

_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_TARGETS = {
    "llama": _GATED,  # also Vicuna and SmolLM2
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
"""Model type -> attention and feed-forward layers, by the last part of their names."""
_ALIBI = "adds its positions to attention as ALiBi biases, which packed rows that share a prefix cannot have"
_RECURRENT = "keeps a recurrent state in place of keys and values, which no mask can hide from the other questions of a packed row"
_UNUSABLE = {
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    **dict.fromkeys(("rwkv", "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "xlstm", "jamba", "bamba", "zamba", "zamba2"), _RECURRENT),
    "openai-gpt": "takes no mask of packed rows and has no cache of keys and values",
    "xlnet": "is trained to predict in permuted order, with an attention of two streams",
}
"""Model type -> why it cannot be used here. What is not named, and not tested, is probed when it is loaded (mmcore.lm.probe)."""
_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def lora_targets(base: Any, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the layers that get adapters; `wanted` empty: all of the family's.

    Raises ValueError for a family without an entry, or a wanted name that no layer of the model has (peft would leave it out in silence).
    """
    kind = str(getattr(base.config, "model_type", "")) if hasattr(base, "config") else ""
    if not wanted and kind not in LORA_TARGETS:
        raise ValueError(f"lora.targets is empty and the model type {kind!r} has no entry of its own ({', '.join(LORA_TARGETS)}): name the layers")
    targets = tuple(wanted) or LORA_TARGETS[kind]
    own = {name.split(".")[-1] for name, _ in base.named_modules()}
    lacking = [target for target in targets if target not in own]
    if lacking:
        known = f" ({kind} has {', '.join(LORA_TARGETS[kind])})" if kind in LORA_TARGETS else ""
        raise ValueError(f"lora.targets names {lacking[0]}, and no layer of the language model is called so{known}: correct it, or leave it empty for all")
    return targets


def check_family(config: Any) -> None:
    """Raises ValueError for a model whose logits or attention LanguageModel would compute wrongly."""
    kind = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder-decoder model: LanguageModel takes decoder-only ones")
    unusable = _UNUSABLE.get(kind) or (_ALIBI if getattr(config, "alibi", False) else "")
    if unusable:
        raise ValueError(f"{kind} cannot be used here: it {unusable}")
    if "local" in (getattr(config, "attention_layers", None) or ()):
        window = getattr(config, "window_size", "a window of")
        raise ValueError(f"{kind} has local attention layers ({window} tokens): only models whose layers attend to all earlier tokens can be used here")
    for name in _SCALED_LOGITS:
        value = getattr(config, name, None)
        if value not in (None, 1, 1.0):
            raise ValueError(f"{kind} has {name}={value}: its logits are not the head applied to the hidden states, so it cannot be used here")
    layers = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if layers:
        raise ValueError(f"{kind} has layers of the type {layers[0]}: only models whose layers attend to all earlier tokens can be used here")


def longest_row(config: Any) -> int:
    """Tokens of the longest row that the model reads as it has been made to (its positions, or its attention window); 0 when it does not say."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((int(limit) for limit in limits if limit and limit > 0), default=0)
