"""Audio clips through a Whisper encoder.

Owns the log-mel front end, the forward pass over one window, the cut to the audio's own duration and the pooling to spec.tokens tokens.
The window is spec.max_seconds: 30 is the model's own; a shorter one uses the first positions only and costs that much less (10 s: a
quarter of the time). Input: OGG, WAV, FLAC … bytes; output: features [tokens, E].

Shape letters: B batch, F encoder frames, N feature tokens, E encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmcore.encoder_config import WhisperAudio
from mmcore.encoders.base import BatchedEncoder
from mmcore.media.decode import decode_audio

PREFIXES = ("model.encoder.", "encoder.")
"""Where the encoder's tensors are inside a whole Whisper checkpoint."""


class WhisperAudioEncoder(BatchedEncoder):
    """One audio clip -> spec.tokens tokens in time order."""

    spec: WhisperAudio

    def __init__(self, spec: WhisperAudio, weights_dir: Path):
        """Raises ValueError when the weights have another width or the spec asks for no tokens."""
        if spec.tokens < 1:
            raise ValueError(f"encoder {spec.kind} needs tokens >= 1, got {spec.tokens}")
        self.spec = spec
        directory = weights_dir / "encoder"
        config = WhisperConfig.from_pretrained(directory, local_files_only=True)
        if config.d_model != spec.width:
            raise ValueError(f"the Whisper encoder in {weights_dir} is {config.d_model} wide, the spec says {spec.width}")
        self._front = WhisperFeatureExtractor.from_pretrained(directory, local_files_only=True)
        self._frames_hz = config.max_source_positions / self._front.chunk_length
        config.max_source_positions = max(1, min(config.max_source_positions, round(spec.max_seconds * self._frames_hz)))
        self._window_s = config.max_source_positions / self._frames_hz
        state = encoder_tensors(load_file(directory / "model.safetensors"))
        state["embed_positions.weight"] = state["embed_positions.weight"][: config.max_source_positions]
        self._model = WhisperEncoder(config)
        self._model.load_state_dict(state)
        self._model.eval().requires_grad_(False)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> tuple[np.ndarray, float]:
        """Bytes -> (log-mel float32 [mels, frames of the window], seconds of audio in it)."""
        rate = self._front.sampling_rate
        samples = decode_audio(data, rate, self._window_s, start_s, end_s)
        padded = round(self._window_s * rate)
        mel = self._front(samples, sampling_rate=rate, return_tensors="np", padding="max_length", max_length=padded).input_features[0]
        return np.asarray(mel, np.float32), len(samples) / rate

    @torch.inference_mode()
    def forward(self, items: Sequence[tuple[np.ndarray, float]]) -> list[np.ndarray]:
        """(log-mel, seconds) each -> features [tokens, E] each."""
        with self._arithmetic():
            states_BFE = self._model(self._put(torch.from_numpy(np.stack([mel for mel, _ in items])))).last_hidden_state.float()
        features = []
        for states_FE, (_, seconds) in zip(states_BFE, items, strict=True):
            inside = min(len(states_FE), max(1, math.ceil(seconds * self._frames_hz)))
            pooled = nn.functional.adaptive_avg_pool1d(states_FE[:inside].T, self.spec.tokens).T
            features.append(self._stored(pooled))
        return features


def encoder_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's tensors by its own names, float32, from an encoder-only or a whole checkpoint."""
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            state = inner
            break
    return {name: value.float() for name, value in state.items()}
