"""Files of a voice: its directory as this package opens it.

Owns model_index.json of a voice and the measures of its vocoder. Input: two ONNX graphs and their settings. Output: the directory, but for the dictionary.
Raises OSError when it cannot be written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.storage import write_atomic, write_json
from mmcore.decoders.contract import INDEX, VOICE
from mmcore.decoders.speech.text import GRAPH, SETTINGS

OPENED_BY = ["mmcore.decoders.voice", "onnx"]
"""What stands in model_index.json for a part."""


def write_voice(directory: Path, halves: tuple[Any, Any], heard: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Write a voice's directory, but for the dictionary. halves: (text half, vocoder); heard: the vocoder's settings, said: the text half's."""
    parts = {"text_encoder": (halves[0], dict(said)), "vocoder": (halves[1], {**heard, **_measures(halves[1])})}
    for part, (graph, settings) in parts.items():
        write_atomic(directory / part / GRAPH, graph.SerializeToString(deterministic=True))
        write_json(directory / part / SETTINGS, settings)
    write_json(directory / INDEX, {"_class_name": VOICE, **dict.fromkeys(parts, OPENED_BY)})


def _measures(vocoder: Any) -> dict[str, int]:
    """width: channels that its first convolution reads; hop: samples per frame, the product of the strides of its transposed convolutions."""
    shapes = {tensor.name: list(tensor.dims) for tensor in vocoder.graph.initializer}
    first = next(node for node in vocoder.graph.node if node.op_type.startswith("Conv"))
    channels = shapes[first.input[1]][0 if first.op_type == "ConvTranspose" else 1]
    strides = [list(value.ints) for node in vocoder.graph.node if node.op_type == "ConvTranspose" for value in node.attribute if value.name == "strides"]
    return {"width": channels, "hop": math.prod(math.prod(sides) for sides in strides)}
