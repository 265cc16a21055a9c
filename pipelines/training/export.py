"""The export step: everything that is needed to load and generate, in one directory.

Output: anyloom.json (model, stages, caption_turn, the licence of every part and what they permit together), lm/, lora/ (PEFT), tensors.safetensors
(projectors, new rows), encoders/, decoders/ (one diffusers directory per modality that is answered in media); info/recipe.py, the user's recipe as it was.
Later stages win. Plain files only; nothing in it names a path of this machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from infra.fingerprint import to_plain
from infra.step import AnyloomError, StepContext
from infra.storage import NOT_DIGESTED, read_json, write_atomic
from mmcore.config import output_spec
from mmcore.decoders.contract import read_contract
from mmcore.decoders.projected import check_projector
from mmcore.inference.drawer import DECODERS
from mmcore.inference.generator import DESCRIPTION, ENCODERS
from pipelines.training.config import RECIPE_FILE, ExportConfig

DECODER = "decoder_"
"""Start of the names of inputs that are decoders; the modality follows."""
TEXT_WEIGHTS = (".safetensors", ".onnx")
"""Suffixes of what stays behind of a decoder's text encoders."""
PARTS = {"lm": "weights_lm", "image": "weights_image", "audio": "weights_audio"}


def _copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        step = next((place.parent.name for place in (source, *source.parents) if place.parent.parent.name == "artifacts"), "the weights step")
        raise AnyloomError(f"{source} is missing: run {step} again with --force {step}")
    # an artifact's own record and logs stay behind: they hold times
    shutil.copytree(source, target, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(*NOT_DIGESTED))


def _copy_decoder(source: Path, target: Path) -> None:
    """A decoder without the weights of its text encoders: signal blocks take their place, and the empty text is kept as its conditioning."""
    _copy(source, target)
    for path in sorted(path for path in target.glob("text_encoder*/*") if path.suffix in TEXT_WEIGHTS):
        path.unlink()


def _licence(ctx: StepContext[ExportConfig], part: str, name: str, licence: str, commercial_use: str) -> dict[str, str]:
    """The terms of one part, and where its weights came from where their step says so."""
    path = ctx.inputs[PARTS.get(part, part)].path / "licence.json"
    stated: dict[str, str] = read_json(path) if path.is_file() else {"source": "made by this recipe"}
    return {"name": name, "licence": licence, "commercial_use": commercial_use} | stated


def _merge_stages(ctx: StepContext[ExportConfig], stages: tuple[str, ...]) -> dict[str, int]:
    """tensors.safetensors and lora/ of the stages, later ones win; returns the number of tensors each stage left in it."""
    from safetensors.torch import load_file, save

    merged, owner = {}, {}
    for name in stages:
        directory = ctx.inputs[name].path
        for tensor, value in load_file(directory / "tensors.safetensors").items():
            merged[tensor], owner[tensor] = value, name
        if (directory / "lora").is_dir():
            shutil.rmtree(ctx.output / "lora", ignore_errors=True)
            _copy(directory / "lora", ctx.output / "lora")
    write_atomic(ctx.output / "tensors.safetensors", save(dict(sorted(merged.items()))))
    return {name: sum(1 for stage in owner.values() if stage == name) for name in stages}


def run(ctx: StepContext[ExportConfig]) -> dict[str, Any]:
    """Entry of the step."""
    config = ctx.config
    ctx.progress(0, 3, "language model")
    _copy(ctx.inputs["weights_lm"].path / "lm", ctx.output / "lm")
    ctx.progress(1, 3, "encoders")
    for modality in (part for part in ("image", "audio") if PARTS[part] in ctx.inputs):
        _copy(ctx.inputs[f"weights_{modality}"].path, ctx.output / ENCODERS / modality)
    decoders = sorted(name.removeprefix(DECODER) for name in ctx.inputs if name.startswith(DECODER))
    for modality in decoders:
        directory, projector = ctx.inputs[DECODER + modality].path / "pipeline", output_spec(config.model, modality)
        check_projector(read_contract(directory), projector.queries, projector.out)
        _copy_decoder(directory, ctx.output / DECODERS / modality)
    ctx.progress(2, 3, "trained tensors")
    tensors = _merge_stages(ctx, config.stages)
    description = {
        "format": 1,
        "model": to_plain(config.model),
        "stages": list(config.stages),
        "caption_turn": config.caption_turn,
        "sampling": {modality: {"steps": steps, "guidance": guidance} for modality, steps, guidance in config.sampling},
        "licences": {part: _licence(ctx, part, *terms) for part, *terms in config.licences},
        "commercial_use": config.commercial_use,
    }
    write_atomic(ctx.output / DESCRIPTION, json.dumps(description, sort_keys=True, indent=1))
    if RECIPE_FILE in ctx.sources:
        write_atomic(ctx.output / "info" / f"{RECIPE_FILE}.py", ctx.sources[RECIPE_FILE].read_bytes())
    ctx.progress(3, 3, "done")
    return {"stages": list(config.stages), "tensors": tensors, "caption_turn": config.caption_turn}
