"""Audio clips through an audio model of transformers: CLAP, HuBERT.

Owns the choice between the pooled vector (tokens 0: the unit vector of CLAP's shared space, HuBERT's mean state) and spec.tokens tokens in time order.
The front end is the model's own feature extractor; an audio clip longer than CLAP's window is cut to its beginning, because the extractor would cut a piece out
at random. Each audio clip is an encoder call of its own, so its features do not depend on the others' lengths. Input: a transformers directory and media
bytes; output: features [N, E].

Shape letters: F encoder frames, N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from mmcore.encoder_config import HfAudio
from mmcore.encoders.base import BatchedEncoder
from mmcore.encoders.hf import load_part
from mmcore.encoders.resample import resample
from mmcore.media.decode import decode_waveform

FAMILIES = {"clap": "ClapAudioModelWithProjection", "hubert": "HubertModel"}
"""spec.arch up to its first `:` -> class of transformers."""


class HfAudioEncoder(BatchedEncoder):
    """One audio clip -> one vector, or spec.tokens tokens."""

    spec: HfAudio

    def __init__(self, spec: HfAudio, weights_dir: Path):
        """Raises ValueError for an unknown family, or a model of another width."""
        self.spec = spec
        self._family = spec.arch.partition(":")[0]
        if self._family not in FAMILIES:
            raise ValueError(f"unknown audio family '{self._family}': choose one of {', '.join(FAMILIES)}")
        folder = weights_dir / "encoder"
        self._model = load_part(folder, self._family, FAMILIES[self._family])
        self._front = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> dict[str, torch.Tensor]:
        """Bytes -> the model's inputs; HuBERT's are padded with silence to its shortest window."""
        rate = self._front.sampling_rate
        longest = min(self.spec.max_seconds, self._front.max_length_s) if self._family == "clap" else self.spec.max_seconds
        samples = resample(*decode_waveform(data, longest, start_s, end_s), rate)
        inputs = dict(self._front(samples, sampling_rate=rate, return_tensors="pt"))
        if self._family == "hubert":
            short = max(0, self._shortest - inputs["input_values"].shape[-1])
            inputs = {name: functional.pad(value, (0, short)) for name, value in inputs.items()}
        return inputs

    @property
    def _shortest(self) -> int:
        """Samples of the shortest audio clip that gives HuBERT one frame."""
        samples = 1
        for kernel, stride in zip(reversed(self._model.config.conv_kernel), reversed(self._model.config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    @torch.inference_mode()
    def forward(self, items: Sequence[dict[str, torch.Tensor]]) -> list[np.ndarray]:
        """Prepared inputs -> features [N, E] each."""
        return [self._features(inputs) for inputs in items]

    def _convolutions(self) -> AbstractContextManager[Any]:
        """Around HuBERT in bfloat16 on a CPU: without oneDNN, whose AMX kernels get its one-dimensional convolutions wrong (torch 2.14.1 on an Intel CPU with
        AMX: 30 % off; 0.6 % without them)."""
        if self._family == "hubert" and self.spec.compute == "bfloat16" and self.device == "cpu":
            found: AbstractContextManager[Any] = torch.backends.mkldnn.flags(enabled=False)
            return found
        return nullcontext()

    def _features(self, inputs: dict[str, torch.Tensor]) -> np.ndarray:
        with self._arithmetic(), self._convolutions():
            outputs = self._model(**{name: self._put(value) for name, value in inputs.items()})
        states = outputs.last_hidden_state[0].float()
        if states.ndim == 3:  # CLAP: channels x bands x time
            states = states.mean(dim=1).T
        if self.spec.tokens:
            features_NE = functional.adaptive_avg_pool1d(states.T[None], self.spec.tokens)[0].T
        else:
            features_NE = functional.normalize(outputs.audio_embeds, dim=-1) if self._family == "clap" else states.mean(dim=0, keepdim=True)
        if features_NE.shape[-1] != self.spec.width:
            raise ValueError(f"{self.spec.arch} with {self.spec.tokens} tokens gives width {features_NE.shape[-1]}, the spec says {self.spec.width}")
        return self._stored(features_NE)
