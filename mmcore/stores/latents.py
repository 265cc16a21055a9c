"""Stored latents of media -> what a denoiser is trained on.

Owns the way back from the rows of the embedding store (kinds vae_image, vae_video, vae_audio of mmcore.encoders: one row per latent cell) to the tensor
that a decoder's contract describes. Input: stored features by sample key; output: latents in the decoder's units.

Shape letters: B batch, C latent channels, F latent frames, H/W latent cells, T/M latent cells along time and mel, N cells in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from mmcore.decoders.contract import DecoderContract
from mmcore.encoder_config import EncoderConfig, VaeVideo


class Rows(Protocol):
    """Stored features (mmcore.stores.embeddings.EmbeddingSet)."""

    def gather(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(rows_BNC float32, lengths_B)."""
        ...

    def __contains__(self, key: object) -> bool: ...


class LatentSet:
    """Latents of samples. contract: the decoder's; spec: the encoder that made the rows."""

    def __init__(self, rows: Rows, contract: DecoderContract, spec: EncoderConfig):
        """Raises ValueError when the spec makes latents of another modality or with other channels than the decoder's."""
        if spec.kind != f"vae_{contract.modality}":
            raise ValueError(f"latents of the kind {spec.kind} were given for a decoder of {contract.modality}: use vae_{contract.modality}")
        channels = contract.latent_shape[1 if contract.frame_axis == 0 and contract.modality == "video" else 0]
        if spec.width != channels:
            raise ValueError(f"the {contract.modality} latents have {spec.width} channels, the decoder takes {channels}: set width of the recipe's latents")
        self._rows, self._contract, self._spec = rows, contract, spec

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def gather(self, keys: Sequence[str]) -> torch.Tensor:
        """float32 [B, *latent]: image [C, H, W]; video [C, F, H, W], or [F, C, H, W] where the contract says so; audio [C, T, M].

        Raises ValueError for a key without latents, or rows that do not make such a shape.
        """
        rows_BNC, lengths_B = self._rows.gather(keys)
        if len(set(lengths_B.tolist())) != 1:
            raise ValueError(f"latents of one batch have {min(lengths_B)} to {max(lengths_B)} cells: they must be of one size")
        return torch.from_numpy(np.ascontiguousarray(rows_BNC, np.float32)).unflatten(1, self._grid(rows_BNC.shape[1])).permute(self._order())

    def _grid(self, cells: int) -> tuple[int, ...]:
        """Sides of the rows' grid, slowest first."""
        modality, mel = self._contract.modality, self._contract.latent_shape[-1]
        sides: tuple[int, ...]
        if modality == "audio":
            sides = (cells // mel, mel)
        else:
            frames = self._contract.latent_frames(self._spec.frames) if isinstance(self._spec, VaeVideo) else 1
            side = math.isqrt(cells // frames)
            sides = (frames, side, side) if modality == "video" else (side, side)
        if math.prod(sides) != cells:
            raise ValueError(f"{cells} latent cells are no {modality} of {' x '.join(map(str, sides))} cells")
        return sides

    def _order(self) -> tuple[int, ...]:
        """Axes of [B, *grid, C] in the decoder's order."""
        if self._contract.modality == "video":
            return (0, 1, 4, 2, 3) if self._contract.frame_axis == 0 else (0, 4, 1, 2, 3)
        return (0, 3, 1, 2)
