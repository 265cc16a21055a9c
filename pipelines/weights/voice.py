"""The step weights_decoder_audio of a recipe that speaks: a Piper voice, cut into what makes latent frames of words and what makes audio of the frames.

Owns the cut of the ONNX graph at the latents that the flow gives its HiFi-GAN, the layout of the directory that mmcore.decoders.speech.voice opens. Input: the
`assets` artifact with voice/{model.onnx, config.json, dictionary.txt}; output: `pipeline/` (model_index.json, vocoder/, text_encoder/), `contract.json`,
`licence.json`. Nothing is trained, nothing is unpickled.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.step import AnyloomError, StepContext
from infra.storage import read_json, write_json
from mmcore.decoders.catalogue import known
from mmcore.decoders.contract import read_contract
from mmcore.decoders.speech.files import write_voice
from mmcore.decoders.speech.text import DICTIONARY, GRAPH, INPUTS, LATENTS, SETTINGS
from pipelines.weights.config import VoiceConfig
from pipelines.weights.writing import CONTRACT, PIPELINE

ASSET = "voice"
"""Folder of the voice in the assets."""


def run(ctx: StepContext[VoiceConfig]) -> dict[str, Any]:
    """Entry of the step. Raises AnyloomError when the graph is not cut where the config says."""
    config = ctx.config
    assets, directory = ctx.inputs["assets"].path / ASSET, ctx.output / PIPELINE
    ctx.progress(0, 2, "cutting the voice")
    settings = read_json(assets / SETTINGS)
    text, vocoder = split(assets / GRAPH, config.latents)
    ctx.progress(1, 2, "writing")
    heard = {"tokens": config.tokens, "stack": config.stack, "sampling_rate": int(settings["audio"]["sample_rate"])}
    said = {"tokens": config.tokens, "stack": config.stack, "pace": config.pace, "phoneme_id_map": settings["phoneme_id_map"]}
    write_voice(directory, (text, vocoder), heard, said)
    shutil.copyfile(assets / DICTIONARY, directory / "text_encoder" / DICTIONARY)
    contract = read_contract(directory)
    write_json(ctx.output / CONTRACT, asdict(contract))
    entry = known(config.name)
    if entry is None:
        raise AnyloomError(f"{ctx.name}: the voice {config.name} is not in mmcore.decoders.catalogue: add its licence there")
    licence = {"name": entry.name, "licence": entry.licence, "commercial_use": entry.commercial, "source": f"PyPI package {entry.published}"}
    write_json(ctx.output / "licence.json", licence)
    ctx.progress(2, 2, "done")
    channels, frames = contract.latent_shape
    return {"decoder": config.name, "channels": channels, "frames": frames, "seconds": round(frames * contract.hop / contract.rate_hz, 3)}


def split(path: Path, latents: str) -> tuple[Any, Any]:
    """(text half, vocoder) of a Piper voice, as ONNX models; the tensor `latents` between them gets the name that mmcore.decoders.speech.voice uses.

    Raises AnyloomError when the graph has no such tensor.
    """
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(str(path))
    if not any(latents in node.output for node in model.graph.node):
        raise AnyloomError(f"{path} has no tensor {latents}: it is another voice than the one this recipe pins; run `make demo-assets`")
    extractor = Extractor(model)
    halves = extractor.extract_model(list(INPUTS), [latents]), extractor.extract_model([latents], [model.graph.output[0].name])
    for half in halves:
        for node in half.graph.node:
            node.input[:] = [LATENTS if name == latents else name for name in node.input]
            node.output[:] = [LATENTS if name == latents else name for name in node.output]
        for value in (*half.graph.input, *half.graph.output):
            value.name = LATENTS if value.name == latents else value.name
        del half.graph.value_info[:]
    return halves
