"""A random voice at toy size, made from a seed: the two ONNX graphs and the dictionary that mmcore.decoders.speech.voice opens.

Owns the toy graphs. Input: a seed; output: what saves itself as a voice's directory. Same seed, same bytes. What it says is noise, and different words are
different noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infra.storage import write_atomic
from mmcore.decoders.speech.files import write_voice
from mmcore.decoders.speech.phonemes import BEGIN, END, GAP, IPA, PAD, STOP, STRESS, UNSTRESSED
from mmcore.decoders.speech.text import DICTIONARY, INPUTS, LATENTS

WIDTH, TOKENS, STACK, HOP, RATE_HZ = 8, 32, 2, 16, 16000
"""Latent channels; tokens; frames of a token; samples of a frame; samples of a second."""
SYMBOLS = 80
WORDS = """\
a AH0
black B L AE1 K
blue B L UW1
brown B R AW1 N
circle S ER1 K AH0 L
gray G R EY1
green G R IY1 N
rectangle R EH1 K T AE0 NG G AH0 L
red R EH1 D
teal T IY1 L
triangle T R AY1 AE2 NG G AH0 L
yellow Y EH1 L OW0
"""
"""The words of mmcore.concepts.shapes.CONCEPTS, as CMU's dictionary pronounces them."""


class TinyVoice:
    """seed: draws the weights."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)

    def save_pretrained(self, directory: Path, safe_serialization: bool = True) -> None:
        """Write the directory. safe_serialization: as diffusers' pipelines have it; there is no other way here."""
        signs = sorted({BEGIN, END, PAD, GAP, STOP, *STRESS.values(), *"".join([*IPA.values(), *UNSTRESSED.values()])} - {""})
        said = {"tokens": TOKENS, "stack": STACK, "pace": 1.0, "phoneme_id_map": {sign: [number] for number, sign in enumerate(signs)}}
        write_voice(Path(directory), (self._text(), self._vocoder()), {"tokens": TOKENS, "stack": STACK, "sampling_rate": RATE_HZ}, said)
        write_atomic(Path(directory) / "text_encoder" / DICTIONARY, WORDS)

    def _text(self) -> Any:
        """A frame per phoneme id, looked up in a table; noise scales are added, so that they count."""
        from onnx import TensorProto, helper, numpy_helper

        ids, lengths, scales = INPUTS
        nodes = [
            helper.make_node("Gather", ["table", ids], ["rows"]),
            helper.make_node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
            helper.make_node("Gather", [scales, "first"], ["noise"]),
            helper.make_node("Add", ["columns", "noise"], [LATENTS]),
        ]
        inputs = [
            helper.make_tensor_value_info(ids, TensorProto.INT64, [1, "ids"]),
            helper.make_tensor_value_info(lengths, TensorProto.INT64, [1]),
            helper.make_tensor_value_info(scales, TensorProto.FLOAT, [3]),
        ]
        table = self._random.standard_normal((SYMBOLS, WIDTH)).astype(np.float32)
        tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(0, np.int64), "first")]
        outputs = [helper.make_tensor_value_info(LATENTS, TensorProto.FLOAT, [1, WIDTH, "frames"])]
        return _model(helper.make_graph(nodes, "text", inputs, outputs, tensors))

    def _vocoder(self) -> Any:
        """One transposed convolution: HOP samples per frame."""
        from onnx import TensorProto, helper, numpy_helper

        nodes = [
            helper.make_node("ConvTranspose", [LATENTS, "weight"], ["waves"], strides=[HOP]),
            helper.make_node("Tanh", ["waves"], ["output"]),
        ]
        weight = (0.2 * self._random.standard_normal((WIDTH, 1, HOP))).astype(np.float32)
        inputs = [helper.make_tensor_value_info(LATENTS, TensorProto.FLOAT, [1, WIDTH, "frames"])]
        outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, "samples"])]
        return _model(helper.make_graph(nodes, "vocoder", inputs, outputs, [numpy_helper.from_array(weight, "weight")]))


def _model(graph: Any) -> Any:
    """In an operator set and file version that any onnxruntime of the last years reads."""
    from onnx import helper

    return helper.make_model(graph, producer_name="anyloom", ir_version=8, opset_imports=[helper.make_opsetid("", 15)])
