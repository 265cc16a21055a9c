"""Texts -> the latent frames in which a voice says them: the first half of a Piper VITS, and how ONNX graphs are opened.

Graphs run on the CPU by one thread of onnxruntime, so that equal input gives equal bytes. Input: text_encoder/{config.json, model.onnx, dictionary.txt} of a
directory as pipelines.weights.voice writes it; output: latent frames. This module must not import torch.

Shape letters: B batch, N a text's own latent frames, Q conditioning tokens, C their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.decoders.speech.phonemes import Pronouncer

GRAPH, SETTINGS, DICTIONARY = "model.onnx", "config.json", "dictionary.txt"
INPUTS = ("input", "input_lengths", "scales")
"""Inputs of a Piper graph: phoneme ids [1, number of ids], their number, and (noise, pace, noise of durations)."""
LATENTS = "latents"
"""Output of the text half and input of the other: [1, channels, frames]."""


class VoiceText:
    """Texts -> the latent frames in which the voice says them, always at the same pace and pitch (no noise)."""

    def __init__(self, folder: Path):
        settings = read_json(folder / SETTINGS)
        self._tokens, self._stack, self._pace = int(settings["tokens"]), int(settings["stack"]), float(settings["pace"])
        self._pronouncer = Pronouncer(folder / DICTIONARY, settings["phoneme_id_map"])
        self._session = open_graph(folder / GRAPH)

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> VoiceText:
        """As the tokenizers of other families are opened (mmcore.decoders.texts)."""
        return cls(Path(folder))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, Q, C]; a token holds `stack` frames in a row; the frames after a text's own repeat its last one, which is silence.

        Raises AnyloomError for a word without pronunciation and a text that takes more frames than the decoder has.
        """
        rows = []
        for text in texts:
            frames_NC, most = self.frames(text), self._tokens * self._stack
            if len(frames_NC) > most:
                raise AnyloomError(f"'{text}' takes {len(frames_NC)} latent frames to say, the decoder has {most}: raise queries, or shorten it")
            rows.append(np.pad(frames_NC, ((0, most - len(frames_NC)), (0, 0)), mode="edge").reshape(self._tokens, -1))
        return np.stack(rows)

    def frames(self, text: str) -> np.ndarray:
        """float32 [N, channels]: a text's own frames."""
        return np.ascontiguousarray(say(self._session, self._pronouncer.ids(text), self._pace)[0].T)


def say(graph: Any, ids: Sequence[int], pace: float) -> np.ndarray:
    """float32: what a Piper graph (whole: samples; its text half: latents [1, channels, N]) makes of phoneme ids, without noise. pace: more is slower."""
    values = (np.array([ids], np.int64), np.array([len(ids)], np.int64), np.array([0.0, pace, 0.0], np.float32))
    (made,) = graph.run(None, dict(zip(INPUTS, values, strict=True)))
    return np.asarray(made, np.float32)


def open_graph(path: Path) -> Any:
    """An ONNX graph, ready to run on one thread. Raises AnyloomError when it is missing or no ONNX file."""
    import onnxruntime

    if not path.is_file():
        raise AnyloomError(f"{path} is missing; copy the decoder's whole directory")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise AnyloomError(f"{path} cannot be opened as an ONNX graph: {str(error).splitlines()[0]}") from error
