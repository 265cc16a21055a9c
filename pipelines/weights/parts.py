"""Weights: the frozen parts (language model, image, audio and text encoder) as directories that stock loaders open.

Owns the conversion of the assets' file formats and the random stand-ins of the tiny recipe. Input: the `assets` artifact
(pretrained) or nothing (random, from a seed). Output: `lm/` or `encoder/` in safetensors with tokenizer or feature extractor, and
`licence.json`. Every checkpoint key must find its place, or it is an error. Files of the user's own come in through pipelines.weights.own_parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from infra.step import AnyloomError, StepContext
from infra.storage import write_json
from mmcore.encoders.catalogue import TWINS
from mmcore.encoders.imagebind.encoders import ARCHITECTURES
from mmcore.encoders.imagebind.network import ImageBind, load_imagebind
from mmcore.runtime.seeding import seeded
from pipelines.toys.parts import ENCODER_PARTS, tiny_bert, tiny_llama, tiny_whisper_encoder
from pipelines.weights.config import ImageBindConfig, WeightsConfig
from pipelines.weights.conversions import llama_from_gguf, renamed_in_order, whisper_encoder_from_ct2
from pipelines.weights.writing import finish, load_state, save

if TYPE_CHECKING:
    import torch

MadeT = TypeVar("MadeT", WeightsConfig, ImageBindConfig)


def run_lm(ctx: StepContext[WeightsConfig]) -> dict[str, Any]:
    """`lm/`: a causal language model with its tokenizer and chat template."""
    config = _begin(ctx, "SmolLM2-135M-Instruct", "tiny-llama")
    if config.kind == "pretrained":
        model, tokenizer = llama_from_gguf(_asset(ctx, "smollm2.gguf"))
    else:
        model, tokenizer = tiny_llama(config.seed)
    save(model, ctx.output / "lm", tokenizer)
    return finish(ctx, model, width=model.config.hidden_size, vocab=len(tokenizer))


def run_image(ctx: StepContext[WeightsConfig]) -> dict[str, Any]:
    """`encoder/model.safetensors`: state dict of a timm model; `encoder.json`: its name, width and normalisation."""
    import timm
    from safetensors.torch import save_file

    config = _begin(ctx, "tf_efficientnet_lite0", None)
    if config.kind == "random" and config.arch in ENCODER_PARTS["image"]:
        return _random_parts(ctx, ENCODER_PARTS["image"][config.arch])
    if config.arch not in timm.list_models():
        raise AnyloomError(f"weights: timm has no architecture '{config.arch}'; see timm.list_models()")
    if config.kind == "pretrained":
        model: Any = timm.create_model(config.arch)
        model.load_state_dict(renamed_in_order(_load_pth(_asset(ctx, "efficientnet_lite0.pth")), model.state_dict()), strict=True)
    else:
        with seeded(config.seed):
            model = timm.create_model(config.arch)
    (ctx.output / "encoder").mkdir()
    save_file({name: value.contiguous() for name, value in sorted(model.state_dict().items())}, ctx.output / "encoder" / "model.safetensors")
    about = {"arch": config.arch, "width": model.num_features, "mean": list(model.pretrained_cfg["mean"]), "std": list(model.pretrained_cfg["std"])}
    write_json(ctx.output / "encoder.json", about)
    return finish(ctx, model, width=model.num_features)


def run_audio(ctx: StepContext[WeightsConfig]) -> dict[str, Any]:
    """`encoder/`: a transformers WhisperEncoder with its feature extractor (16 kHz, 80 mels, 30 s)."""
    from transformers import WhisperFeatureExtractor

    config = _begin(ctx, "whisper-tiny.en", ("tiny-whisper", *ENCODER_PARTS["audio"]))
    if config.kind == "random" and config.arch in ENCODER_PARTS["audio"]:
        return _random_parts(ctx, ENCODER_PARTS["audio"][config.arch])
    if config.kind == "pretrained":
        model = whisper_encoder_from_ct2(_asset(ctx, "whisper/model.bin"))
    else:
        model = tiny_whisper_encoder(config.seed)
    save(model, ctx.output / "encoder")
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(ctx.output / "encoder")
    return finish(ctx, model, width=model.config.d_model)


def run_imagebind(ctx: StepContext[ImageBindConfig]) -> dict[str, Any]:
    """`encoder/model.safetensors`: the wanted trunks of ImageBind under the released names; `encoder.json`: its size and trunks.

    pretrained reads the released file (.pth or safetensors) given as the source `imagebind`.
    """
    from safetensors.torch import save_file

    config = _begin(ctx, "imagebind_huge", "imagebind_toy")
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
        with seeded(config.seed):
            model = ImageBind(chosen, out)
    (ctx.output / "encoder").mkdir()
    save_file({name: value.contiguous() for name, value in sorted(model.state_dict().items())}, ctx.output / "encoder" / "model.safetensors")
    write_json(ctx.output / "encoder.json", {"arch": config.arch, "width": out, "trunks": sorted(chosen)})
    return finish(ctx, model, width=out)


def run_text(ctx: StepContext[WeightsConfig]) -> dict[str, Any]:
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
        model, tokenizer = tiny_bert(config.seed)
        save(model, ctx.output / "encoder", tokenizer)
    return finish(ctx, model, width=model.config.hidden_size)


def _begin(ctx: StepContext[MadeT], pretrained: str, random: str | tuple[str, ...] | None) -> MadeT:
    """Check the config and set the threads. random=None: any architecture name."""
    import torch

    config = ctx.config
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


def _random_parts(ctx: StepContext[WeightsConfig], make: Callable[[int], tuple[Any, ...]]) -> dict[str, Any]:
    """`encoder/`: what `make` gives for the seed, as `save_pretrained` writes it."""
    model, *fronts = make(ctx.config.seed)
    for part in (model, *fronts):
        part.save_pretrained(ctx.output / "encoder")
    return finish(ctx, model, width=TWINS[ctx.config.arch].width)


def _asset(ctx: StepContext[object], name: str) -> Path:
    return ctx.inputs["assets"].path / name


def _load_pth(path: Path) -> dict[str, torch.Tensor]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
