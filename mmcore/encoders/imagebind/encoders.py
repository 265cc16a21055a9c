"""ImageBind behind the Encoder face: images, videos, audio clips and captions -> features.

spec.grid (images, videos) and spec.tokens (audio clips) choose what is stored: 0 gives the one pooled vector of the shared space, as NExT-GPT uses it
(normalised, without the logit scale); texts have nothing else. More gives the trunk's own tokens, averaged over crops and pooled to that many, time
step by time step. Input: bytes; output: features [N, E].

Shape letters: B items, S clips of one item, N feature tokens, E width, out the width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional

from infra.storage import read_json
from mmcore.encoder_config import EncoderConfig, ImageBindAudio, ImageBindImage, ImageBindText, ImageBindVideo
from mmcore.encoders.base import BatchedEncoder
from mmcore.encoders.imagebind import clip_bpe, inputs
from mmcore.encoders.imagebind.network import HUGE, HUGE_OUT, ImageBind, load_imagebind, modality_of, toy
from mmcore.encoders.pooling import pool_grid
from mmcore.encoders.resample import resample
from mmcore.encoders.squares import padded_square, refuse_thin
from mmcore.media.decode import choose_video_frames, decode_image, decode_text, decode_waveform, span

ARCHITECTURES = {"imagebind_huge": (HUGE, HUGE_OUT), "imagebind_toy": (toy(vocabulary=HUGE["text"].size[0]), 32)}
"""spec.arch -> (trunks, width of the shared space). The toy reads the same words as the huge one."""
WEIGHTS = Path("encoder") / "model.safetensors"


class ImageBindEncoder(BatchedEncoder):
    """Shared half: one trunk, its weights and the choice between pooled vector and tokens."""

    trunk: str

    def __init__(self, spec: EncoderConfig, weights_dir: Path):
        """Raises ValueError when the weights are of another architecture or the width does not fit what is stored."""
        self.spec = spec
        if spec.arch not in ARCHITECTURES:
            raise ValueError(f"unknown ImageBind size '{spec.arch}': choose one of {', '.join(ARCHITECTURES)}")
        described = read_json(weights_dir / "encoder.json")
        if described["arch"] != spec.arch:
            raise ValueError(f"the spec asks for {spec.arch}, but {weights_dir} holds {described['arch']}")
        specs, out = ARCHITECTURES[spec.arch]
        gives = specs[self.trunk].width if self._num_tokens() else out
        if gives != spec.width:
            raise ValueError(f"{spec.kind} with {self._num_tokens() or 'pooled'} tokens gives width {gives}, the spec says {spec.width}")
        self._model = load_trunks(weights_dir / WEIGHTS, spec.arch, (self.trunk,))

    def _num_tokens(self) -> int:
        """0 for the pooled vector."""
        return 0

    @torch.inference_mode()
    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """Prepared tensors, all of one shape -> features [N, E] each."""
        batch = self._put(torch.stack(list(items)))
        features = self._tokens(batch) if self._num_tokens() else self._vector(batch)[:, None]
        return list(self._stored(features))

    def _vector(self, batch: torch.Tensor) -> torch.Tensor:
        """[B, out], unit vectors averaged over clips."""
        with self._arithmetic():
            return self._model.unscaled(self.trunk, self._model(self.trunk, batch))

    def _tokens(self, batch: torch.Tensor) -> torch.Tensor:
        """[B, N, E]."""
        raise TypeError(f"{self.spec.kind} stores pooled vectors only")

    def _states(self, items: torch.Tensor) -> torch.Tensor:
        """Patch states without CLS, behind the head's layer norm."""
        with self._arithmetic():
            states = self._model.normed(self.trunk, self._model.tokens(self.trunk, items))
        return states[:, 1:].float()


class ImageBindImageEncoder(ImageBindEncoder):
    """One image -> one vector, or grid * grid tokens row by row."""

    spec: ImageBindImage
    trunk = "vision"
    side = inputs.SIDE
    """See mmcore.encoders.tiled.ImageEncoder."""

    def _num_tokens(self) -> int:
        return self.spec.grid

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [3, 224, 224]; an image has no span."""
        return self.prepare_image(decode_image(data))

    def prepare_image(self, image: Image.Image) -> torch.Tensor:
        """RGB -> [3, 224, 224]."""
        return inputs.image(padded_square(image, inputs.MEAN) if self.spec.pad else refuse_thin(image))

    def _tokens(self, batch: torch.Tensor) -> torch.Tensor:
        return pool_grid(self._states(batch), self.spec.grid)


class ImageBindVideoEncoder(ImageBindEncoder):
    """One clip -> one vector, or for each of its five moments grid * grid tokens, averaged over the three crops."""

    spec: ImageBindVideo
    trunk = "vision"

    def _num_tokens(self) -> int:
        return self.spec.grid

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [15, 3, 2, 224, 224]."""

        def choose(count: int, hz: float) -> list[int]:
            first, last = span(count, hz, start_s, end_s)
            return [first + index for index in inputs.frame_indices(last - first, hz)]

        return inputs.clip([refuse_thin(frame) for frame in choose_video_frames(data, choose)])

    def _tokens(self, batch: torch.Tensor) -> torch.Tensor:
        states = pool_grid(self._states(batch.flatten(0, 1)), self.spec.grid)
        return states.unflatten(0, (len(batch), inputs.VIDEO_CLIPS, inputs.CROPS)).mean(dim=2).flatten(1, 2)


class ImageBindAudioEncoder(ImageBindEncoder):
    """One audio clip -> one vector, or spec.tokens tokens in time order over its three moments."""

    spec: ImageBindAudio
    trunk = "audio"

    def _num_tokens(self) -> int:
        return self.spec.tokens

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [3, 1, 128, 204]."""
        samples, hz = decode_waveform(data, self.spec.max_seconds, start_s, end_s)
        return inputs.sound(resample(samples, hz, inputs.AUDIO_HZ))

    def _tokens(self, batch: torch.Tensor) -> torch.Tensor:
        """The patch grid is mel bands x time: bands are averaged, time goes on from moment to moment."""
        states = self._states(batch.flatten(0, 1))  # [B * S, bands * times, E]
        spec = self._model.specs[self.trunk]
        bands = (spec.size[1] - spec.patch[0]) // spec.stride[0] + 1
        times = states.unflatten(1, (bands, -1)).mean(dim=1).unflatten(0, (len(batch), -1)).flatten(1, 2)
        return functional.adaptive_avg_pool1d(times.transpose(1, 2), self.spec.tokens).transpose(1, 2)


class ImageBindTextEncoder(ImageBindEncoder):
    """One text -> one unit vector, without the logit scale: its cosines with the other kinds' pooled vectors are ImageBind's similarities."""

    spec: ImageBindText
    trunk = "text"

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """UTF-8 bytes -> ids [77]; a text has no span. Raises MediaError."""
        return inputs.text(decode_text(data), clip_bpe.encode, clip_bpe.START, clip_bpe.END)


def load_trunks(path: Path, arch: str, trunks: Sequence[str]) -> ImageBind:
    """The frozen model with the given trunks only; other trunks' tensors are not read. Raises ValueError when the file does not fit."""
    specs, out = ARCHITECTURES[arch]
    with safe_open(path, framework="pt") as handle:
        state = {name: handle.get_tensor(name).float() for name in handle.keys() if not modality_of(name) or modality_of(name) in trunks}
    return load_imagebind(state, {name: specs[name] for name in trunks}, out)
