"""The judge: a small classifier of shape and colour for crops of easy-VQA's world.

Owns the network and how it learns from real images. Input: crops; output: logits of the 3 shapes and the 8 colours. The judge is never trained on a made
image.

Shape letters: B batch, H, W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from infra.step import Progress, no_progress
from mmcore.concepts.shapes import COLOURS, SHAPES, Crops
from mmcore.config import FitConfig
from mmcore.runtime.seeding import seeded
from mmcore.training.fit import batch_rows, draws, fit

TENSORS = "judge.safetensors"
MAX_SHIFT = 3
"""Pixels by which a training image is moved at most, each way."""
MAX_NOISE = 0.05
"""Deviation of the noise that is added to a training image at most, of pixels in [0, 1]."""


class ShapeJudge(nn.Module):
    """Pixels [B, 3, H, W] in [0, 1] -> (shape logits [B, 3], colour logits [B, 8])."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            layers: list[nn.Module] = []
            for channels, wider, stride in ((3, 24, 1), (24, 32, 2), (32, 48, 2), (48, 64, 2)):
                layers += [nn.Conv2d(channels, wider, 3, stride, 1), nn.GroupNorm(8, wider), nn.SiLU()]
            self.body = nn.Sequential(*layers)
            self.shape_head = nn.Linear(128, len(SHAPES))
            self.colour_head = nn.Linear(128, len(COLOURS))

    def forward(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        features = self.body(pixels_BCHW * 2 - 1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return self.shape_head(pooled), self.colour_head(pooled)


def concepts_of(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places in SHAPES, places in COLOURS) of places in CONCEPTS."""
    return numbers % len(SHAPES), numbers // len(SHAPES)


def fit_judge(crops: Crops, config: FitConfig, folder: Path, progress: Progress = no_progress) -> ShapeJudge:
    """A judge trained on real crops: mirrored, moved by a few pixels, with a little noise."""
    judge = ShapeJudge(config.seed)
    pixels = torch.from_numpy(crops.pixels).float() / 255
    height, width = pixels.shape[2:]
    framed = nn.functional.pad(pixels, (MAX_SHIFT,) * 4, mode="replicate")
    shapes, colours = (torch.from_numpy(part) for part in concepts_of(crops.concepts))

    def loss(step: int) -> torch.Tensor:
        generator = draws("judge", config.seed, step)
        rows = torch.from_numpy(batch_rows(len(crops), config, step, "judge"))
        top, left = torch.randint(2 * MAX_SHIFT + 1, (2,), generator=generator).tolist()
        shown = framed[rows, :, top : top + height, left : left + width]
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        shown = torch.where(mirrored[:, None, None, None], shown.flip(-1), shown)
        shown = shown + MAX_NOISE * torch.rand(len(rows), 1, 1, 1, generator=generator) * torch.randn(shown.shape, generator=generator)
        shape_logits, colour_logits = judge(shown)
        return nn.functional.cross_entropy(shape_logits, shapes[rows]) + nn.functional.cross_entropy(colour_logits, colours[rows])

    fit(dict(judge.named_parameters()), config, loss, folder, {"pictures": len(crops)}, progress)
    return judge.requires_grad_(False).eval()


def load_judge(directory: Path) -> ShapeJudge:
    """The judge that a picture_judge artifact holds."""
    judge = ShapeJudge()
    judge.load_state_dict(load_file(directory / TENSORS), strict=True)
    return judge.requires_grad_(False).eval()


@torch.no_grad()
def judged(judge: ShapeJudge, pixels_BCHW: torch.Tensor, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(places in SHAPES [B], places in COLOURS [B]) that the judge sees in pixels in [0, 1]."""
    found = [judge(chunk) for chunk in pixels_BCHW.split(batch)]
    shapes, colours = (torch.cat([pair[i] for pair in found]).argmax(1).numpy() for i in (0, 1))
    return shapes, colours
