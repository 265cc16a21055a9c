"""Images and videos through a vision model of transformers: CLIP, SigLIP, DINOv2.

Owns the choice between the pooled vector (grid 0: the unit vector of the shared space for CLIP and SigLIP, the CLS state for DINOv2) and patch tokens
(of the output or an earlier layer) pooled to a grid. Preprocessing is the model's own image processor, after spec.pad. Input: a transformers directory and
media bytes; output: features [N, E].

Shape letters: B batch, N feature tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional

from mmcore.encoder_config import HfImage, HfVideo
from mmcore.encoders.base import BatchedEncoder
from mmcore.encoders.hf import load_part
from mmcore.encoders.pooling import pool_grid
from mmcore.encoders.squares import padded_square, refuse_thin
from mmcore.media.decode import decode_image
from mmcore.media.scenes import sample_frames


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models is opened and read."""

    model: str
    """Class of transformers."""
    pooled: str
    """Output that holds the pooled vector."""
    prefix: int
    """Tokens before the patches."""
    shared: bool
    """The pooled vector lies in a space shared with texts, where only directions count."""


FAMILIES = {
    "clip": Family("CLIPVisionModelWithProjection", "image_embeds", 1, True),
    "siglip": Family("SiglipVisionModel", "pooler_output", 0, True),
    "dinov2": Family("Dinov2Model", "pooler_output", 1, False),
}
"""spec.arch up to its first `:` -> family; what follows names the weights, e.g. `siglip:so400m-patch14-384`."""


class HfVisionEncoder(BatchedEncoder):
    """What the encoders of images and videos share."""

    spec: HfImage | HfVideo

    def __init__(self, spec: HfImage | HfVideo, weights_dir: Path):
        """Raises ValueError for an unknown family, or a model of another width."""
        self.spec = spec
        family = spec.arch.partition(":")[0]
        if family not in FAMILIES:
            raise ValueError(f"unknown vision family '{family}': choose one of {', '.join(FAMILIES)}")
        self._family = FAMILIES[family]
        folder = weights_dir / "encoder"
        self._model = load_part(folder, family, self._family.model)
        self._processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def _pixels(self, images: list[Image.Image], **options: bool) -> torch.Tensor:
        pixels: torch.Tensor = self._processor(images=images, return_tensors="pt", **options)["pixel_values"]
        return pixels

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> float32 features_BNE on the encoder's device."""
        with self._arithmetic():
            outputs = self._model(pixel_values=self._put(pixels), output_hidden_states=bool(self.spec.layer))
        if self.spec.grid:
            states = self._layer(outputs.hidden_states) if self.spec.layer else outputs.last_hidden_state
            features_BNE = pool_grid(states[:, self._family.prefix :].float(), self.spec.grid)
        else:
            features_BNE = self._unit(getattr(outputs, self._family.pooled)[:, None])
        if features_BNE.shape[-1] != self.spec.width:
            raise ValueError(f"{self.spec.arch} with grid {self.spec.grid} gives width {features_BNE.shape[-1]}, the spec says {self.spec.width}")
        return features_BNE

    def _layer(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The hidden state of spec.layer; the first of them is what enters the first layer."""
        if -self.spec.layer > len(states):
            raise ValueError(f"{self.spec.arch} has {len(states) - 1} layers, so there is no layer {self.spec.layer}")
        return states[self.spec.layer]

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        """float32; unit vectors where the space is a shared one."""
        return functional.normalize(vectors.float(), dim=-1) if self._family.shared else vectors.float()


class HfImageEncoder(HfVisionEncoder):
    """One image -> one vector, or grid * grid tokens row by row."""

    spec: HfImage

    @property
    def side(self) -> int:
        """See mmcore.encoders.tiled.ImageEncoder."""
        return self.spec.image_size

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [3, H, W]; an image has no span."""
        return self.prepare_image(decode_image(data))

    def prepare_image(self, image: Image.Image) -> torch.Tensor:
        """RGB -> [3, H, W]."""
        return self._pixels([padded_square(image, self._processor.image_mean) if self.spec.pad else refuse_thin(image)])[0]

    def prepare_tile(self, tile: Image.Image) -> torch.Tensor:
        """RGB of the model's own size -> [3, H, W], all of it: DINOv2's processor would cut off the rim."""
        return self._pixels([tile], do_resize=False, do_center_crop=False)[0]

    @torch.inference_mode()
    def forward(self, items: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """[3, H, W] each -> features [N, E] each."""
        return list(self._stored(self._features(torch.stack(list(items)))))


class HfVideoEncoder(HfVisionEncoder):
    """One video -> the tokens of `frames` images, frame by frame, or one vector: the mean of theirs (of length 1 in a shared space).

    A video is one encoder call, whatever else is in the batch.
    """

    spec: HfVideo

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> [frames, 3, H, W]."""
        frames = sample_frames(data, self.spec.frames, self.spec.sampling, start_s, end_s)
        return self._pixels([refuse_thin(frame) for frame in frames])

    @torch.inference_mode()
    def forward(self, items: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """[frames, 3, H, W] each -> features [frames * tokens, E] each, [1, E] with grid 0."""
        return [self._stored(self._video(frames)) for frames in items]

    def _video(self, frames: torch.Tensor) -> torch.Tensor:
        features = self._features(frames).reshape(-1, self.spec.width)
        return features if self.spec.grid else self._unit(features.mean(dim=0, keepdim=True))
