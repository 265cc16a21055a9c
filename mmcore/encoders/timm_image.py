"""Images and videos through a timm backbone.

Owns preprocessing (square, on white), the forward pass and the pooling to grid * grid tokens per image. Batch normalisation is folded
into the convolutions (same function, rounding apart) and memory is channels-last: with freed memory kept (pipelines.embed.worker)
EfficientNet-lite0 makes 50 to 60 images per second and core instead of 17. spec.compute is float32 there: bfloat16 is twice as fast
again, but moves EfficientNet-lite0's features by 10 % of their norm on average, by half at worst.
Input: PNG, JPEG … or MP4 … bytes; output: features [N, E].

Shape letters: B batch, N feature tokens, E encoder width, H/W pixels or cells.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from infra.storage import read_json
from mmcore.encoder_config import TimmImage, TimmVideo
from mmcore.encoders.base import BatchedEncoder
from mmcore.encoders.pooling import pool_grid, pool_map
from mmcore.media.decode import decode_image
from mmcore.media.scenes import sample_frames

TRANSFORMERS = ("vit_", "deit", "beit", "eva", "test_vit")
"""timm families that must be told the image size and give tokens instead of a map."""


class TimmEncoder(BatchedEncoder):
    """What the encoders of images and videos share."""

    spec: TimmImage | TimmVideo

    def __init__(self, spec: TimmImage | TimmVideo, weights_dir: Path):
        """Raises ValueError when the weights are of another architecture or width."""
        if spec.grid < 1:
            raise ValueError(f"encoder {spec.kind} needs grid >= 1, got {spec.grid}")
        self.spec = spec
        described = read_json(weights_dir / "encoder.json")
        if described["arch"] != spec.arch:
            raise ValueError(f"the spec asks for {spec.arch}, but {weights_dir} holds {described['arch']}")
        self._model = _load(spec, weights_dir / "encoder" / "model.safetensors")
        self._mean = torch.tensor(described.get("mean", (0.5, 0.5, 0.5))).view(1, 3, 1, 1)
        self._std = torch.tensor(described.get("std", (0.5, 0.5, 0.5))).view(1, 3, 1, 1)

    def place(self, device: str) -> None:
        """See BatchedEncoder."""
        super().place(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)

    def _square(self, image: Image.Image) -> np.ndarray:
        side = self.spec.image_size
        return np.asarray(image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC))

    @torch.inference_mode()
    def _features(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """uint8 images -> features_BNE of the stored dtype."""
        pixels = self._put(torch.from_numpy(pixels_BHWC)).permute(0, 3, 1, 2)  # already channels-last in memory
        pixels = (pixels.float() / 255 - self._mean) / self._std
        with self._arithmetic():
            states = self._model.forward_features(pixels.contiguous(memory_format=torch.channels_last))
            tokens = states.ndim == 3
            if tokens and hasattr(self._model, "fc_norm"):  # models that average their patches keep the last norm outside forward_features
                states = self._model.fc_norm(states)
        states = states.float()
        if tokens:
            states = states[:, getattr(self._model, "num_prefix_tokens", 0) :]
        elif states.shape[1] != self.spec.width and states.shape[-1] == self.spec.width:
            states = states.permute(0, 3, 1, 2)
        gives = states.shape[2 if tokens else 1]
        if gives != self.spec.width:
            raise ValueError(f"{self.spec.arch} gives {gives} channels, the spec says {self.spec.width}")
        return self._stored(pool_grid(states, self.spec.grid) if tokens else pool_map(states, self.spec.grid))


class TimmImageEncoder(TimmEncoder):
    """One image -> grid * grid tokens, row by row from the top left."""

    spec: TimmImage

    @property
    def side(self) -> int:
        """See mmcore.encoders.tiled.ImageEncoder."""
        return self.spec.image_size

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> uint8 [H, W, 3]; an image has no span."""
        return self.prepare_image(decode_image(data))

    def prepare_image(self, image: Image.Image) -> np.ndarray:
        """RGB -> uint8 [H, W, 3]."""
        return self._square(image)

    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [H, W, 3] each -> features [grid * grid, E] each."""
        return list(self._features(np.stack(items)))


class TimmVideoEncoder(TimmEncoder):
    """One video -> frames * grid * grid tokens, frame by frame. A video is one encoder call, whatever else is in the batch."""

    spec: TimmVideo

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> uint8 [frames, H, W, 3]."""
        return np.stack([self._square(frame) for frame in sample_frames(data, self.spec.frames, self.spec.sampling, start_s, end_s)])

    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [frames, H, W, 3] each -> features [frames * grid * grid, E] each."""
        return [self._features(frames).reshape(-1, self.spec.width) for frames in items]


def _load(spec: TimmImage | TimmVideo, path: Path) -> Any:
    """The backbone without its classifier, frozen, folded, channels-last."""
    model = unloaded(spec)
    heads = head_prefixes(model)
    model.load_state_dict({name: value for name, value in load_file(path).items() if not name.startswith(heads)})
    return _folded(model.eval().requires_grad_(False), spec.image_size).to(memory_format=torch.channels_last)


def unloaded(spec: TimmImage | TimmVideo) -> Any:
    """The timm model of the spec without its classifier, before any weights are loaded."""
    sized: dict[str, Any] = {"img_size": spec.image_size} if spec.arch.startswith(TRANSFORMERS) else {}
    return timm.create_model(spec.arch, pretrained=False, num_classes=0, **sized)


def head_prefixes(model: Any) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin in a file of this timm model."""
    heads = model.pretrained_cfg.get("classifier") or "classifier"
    return tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))


def _folded(model: Any, side: int) -> Any:
    """The model with batch normalisation folded, or as it was where there is none or its layout makes folding change the function."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    folded = copy.deepcopy(model)
    fold_batch_norm(folded)
    noise = torch.linspace(-1, 1, 3 * side * side).sin().view(1, 3, side, side)
    with torch.inference_mode():
        expected, got = model.forward_features(noise), folded.forward_features(noise)
    return folded if torch.allclose(expected, got, atol=1e-3 * float(expected.abs().max()) + 1e-6) else model


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every BatchNorm2d that directly follows a Conv2d among its siblings into that convolution, in place.

    timm's BatchNormAct2d also holds an activation, which stays in its place.
    """
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Sequential(*(part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None)))
        else:
            fold_batch_norm(child)
        before = (name, child)
