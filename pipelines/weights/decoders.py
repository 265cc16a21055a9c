"""The weights_decoder_* steps: one frozen decoder each, as a diffusers directory that mmcore.decoders opens.

Owns the two sources: a random toy made from a seed (recipes of kind random), or the files of a published decoder that the user has (chosen while planning
by pipelines.weights.given_files). Output: `pipeline/` with `empty.safetensors` in it (the conditioning of the empty text, for guidance), `contract.json` (what
drives it and what it predicts), `licence.json`. Weights that are not safetensors are an error.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.step import AnyloomError, StepContext
from infra.storage import list_files, read_json, write_json
from mmcore.decoders.catalogue import known
from mmcore.decoders.contract import INDEX, DecoderContract, read_contract
from mmcore.decoders.texts import write_empty
from pipelines.toys.decoders import DECODERS, save_decoder
from pipelines.weights.config import DecoderConfig
from pipelines.weights.given_files import decoder_parts
from pipelines.weights.writing import CONTRACT, PIPELINE, RANDOM_LICENCE, TRACES


def run(ctx: StepContext[DecoderConfig]) -> dict[str, Any]:
    """Entry of the step. Raises AnyloomError when the decoder is of another modality or family than its name says, or cannot be opened."""
    import torch
    from transformers.utils import logging as transformers_logging

    config = ctx.config
    if config.kind == "given" and not ctx.sources:
        entry = known(config.name)
        terms = f" ({entry.licence})" if entry else ""
        raise AnyloomError(
            f"{ctx.name}: the decoder {config.name}{terms} is not downloaded for you; give its diffusers directory with --weights decoder_{config.modality}=DIR"
        )
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(max(1, ctx.resources.threads))
    ctx.progress(0, 1, config.name)
    directory = ctx.output / PIPELINE
    if config.kind == "random":
        _make(config, directory)
    else:
        _take(ctx, directory)
    contract = read_contract(directory)
    if contract.modality != config.modality:
        raise AnyloomError(f"{ctx.name}: {config.name} makes {contract.modality}, not {config.modality}: name it for {contract.modality} in decoders")
    write_json(ctx.output / CONTRACT, asdict(contract))
    licence = _licence(config, contract)
    write_json(ctx.output / "licence.json", licence)
    for name in list_files(ctx.output):
        (ctx.output / name).chmod(0o644)  # safetensors makes them private; an artifact is for every reader of the root
    ctx.progress(1, 1, "done")
    streams = {stream.name: [stream.tokens, stream.width] for stream in contract.streams}
    return {"decoder": config.name, "family": contract.family, "predicts": contract.prediction_type, "streams": streams, "licence": licence["licence"]}


def _make(config: DecoderConfig, directory: Path) -> None:
    """A random toy, without traces of where it was made."""

    save_decoder(DECODERS[config.name](config.seed), directory)
    for name in list_files(directory):
        path = directory / name
        if path.suffix == ".json" and path.name != "tokenizer.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(values, dict):
                write_json(path, {key: value for key, value in values.items() if key not in TRACES})


def _take(ctx: StepContext[DecoderConfig], directory: Path) -> None:
    """Copy the given files; parts that no decoder opens are taken out of the index."""
    from safetensors import SafetensorError, safe_open

    for done, (name, path) in enumerate(sorted(ctx.sources.items())):
        ctx.progress(done / len(ctx.sources), 1, name)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory / name)
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as handle:
                    handle.keys()
            except SafetensorError as error:
                raise AnyloomError(f"{path} is no whole safetensors file ({error}): copy it again") from error
    _index_only(directory)
    family = read_contract(directory).family
    entry = known(ctx.config.name)
    if entry is not None and entry.family != family:
        raise AnyloomError(f"{ctx.name}: {ctx.config.name} is a {entry.family}, the given directory a {family}: give its own directory")
    if read_contract(directory).denoises:
        write_empty(directory)


def _index_only(directory: Path) -> None:
    """Name in model_index.json what is there, so that diffusers opens the directory too."""
    values, kept = read_json(directory / INDEX), decoder_parts(directory)
    write_json(directory / INDEX, {key: [None, None] if isinstance(value, list) and key not in kept else value for key, value in values.items()})


def _licence(config: DecoderConfig, contract: DecoderContract) -> dict[str, str]:
    """licence.json: this repository's for a toy, the catalogue's for given files, which holds only where they are what they seem."""
    if config.kind == "random":
        return dict(zip(("name", "licence", "source"), (f"{config.name}, {RANDOM_LICENCE[0]}", *RANDOM_LICENCE[1:]), strict=True)) | {"commercial_use": "yes"}
    entry = known(config.name)
    if entry is None:
        raise AnyloomError(f"decoder {config.name} of the family {contract.family} is not in mmcore.decoders.catalogue: add its licence there")
    facts = {"name": f"{entry.name}, as {entry.published}", "licence": entry.licence, "commercial_use": entry.commercial}
    return facts | {"source": "files given with --weights; the licence is the catalogue's, not read from the files"}
