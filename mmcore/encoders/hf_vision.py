"""Pictures and clips through a vision model of transformers: CLIP, SigLIP, DINOv2.

Owns the choice between the pooled vector (grid 0: the shared space for CLIP and SigLIP, the CLS state for DINOv2) and patch tokens pooled to a
grid. Preprocessing is the model's own image processor. Input: a transformers directory and media bytes; output: features [N, E]. Refuses to know
what the features are for.

Shape letters: B batch, N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from mmcore.config import EncoderSpec
from mmcore.data.media import decode_image, decode_video_frames
from mmcore.encoders import BatchedEncoder
from mmcore.encoders.pooling import pool_grid


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models is opened and read."""

    model: str
    """Class of transformers."""
    pooled: str
    """Output that holds the pooled vector."""
    prefix: int
    """Tokens before the patches."""


FAMILIES = {
    "clip": Family("CLIPVisionModelWithProjection", "image_embeds", 1),
    "siglip": Family("SiglipVisionModel", "pooler_output", 0),
    "dinov2": Family("Dinov2Model", "pooler_output", 1),
}
"""spec.arch up to its first `:` -> family; what follows names the weights, e.g. `siglip:so400m-patch14-384`."""


class HfImageEncoder(BatchedEncoder):
    """One picture -> one vector, or grid * grid tokens row by row."""

    def __init__(self, spec: EncoderSpec, weights_dir: Path):
        """Raises ValueError for an unknown family, or a model of another width."""
        self.spec = spec
        family = spec.arch.partition(":")[0]
        if family not in FAMILIES:
            raise ValueError(f"unknown vision family '{family}': choose one of {', '.join(FAMILIES)}")
        self._family = FAMILIES[family]
        folder = weights_dir / "encoder"
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
        self._model = getattr(transformers, self._family.model).from_pretrained(folder, **options).eval().requires_grad_(False)
        self._processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [3, H, W]; a picture has no span."""
        return self._pixels([decode_image(data)])[0]

    @torch.inference_mode()
    def forward(self, items: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """[3, H, W] each -> features [N, E] each."""
        return list(self._features(torch.stack(list(items))))

    def _pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        pixels: torch.Tensor = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels

    def _features(self, pixels: torch.Tensor) -> np.ndarray:
        """[B, 3, H, W] -> features_BNE of the stored dtype."""
        with self._arithmetic():
            outputs = self._model(pixel_values=self._put(pixels))
        if self.spec.grid:
            features_BNE = pool_grid(outputs.last_hidden_state[:, self._family.prefix :].float(), self.spec.grid)
        else:
            features_BNE = getattr(outputs, self._family.pooled)[:, None]
        if features_BNE.shape[-1] != self.spec.width:
            raise ValueError(f"{self.spec.arch} with grid {self.spec.grid} gives width {features_BNE.shape[-1]}, the spec says {self.spec.width}")
        return self._stored(features_BNE)


class HfVideoEncoder(HfImageEncoder):
    """One clip -> the features of `frames` pictures, frame by frame. A clip is one encoder call, whatever else is in the batch."""

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [frames, 3, H, W]."""
        return self._pixels(decode_video_frames(data, self.spec.frames, start_s, end_s))

    @torch.inference_mode()
    def forward(self, items: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """[frames, 3, H, W] each -> features [frames * tokens, E] each."""
        return [self._features(frames).reshape(-1, self.spec.width) for frames in items]
