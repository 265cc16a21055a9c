"""The base of the encoders: what every frozen encoder can do, and the half that they share.

Owns the cutting into batches, the device and the precision. Input: a config and media bytes. Output: arrays, one per item. Raises MediaError for what
cannot be decoded, ValueError for an unknown device or precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmcore.encoder_config import EncoderConfig
from mmcore.stores.features import computed_dtype

if TYPE_CHECKING:
    import torch

COMPUTE = ("float32", "bfloat16", "float16")
"""Values of spec.compute."""


class Encoder(Protocol):
    """A frozen encoder. `encode` is `forward` of every `prepare`d item, spec.batch at a time."""

    @property
    def spec(self) -> EncoderConfig:
        """Its config."""
        ...

    def place(self, device: str) -> None:
        """Compute on `device` from now on."""
        ...

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> Any:
        """Decode and preprocess one item (or its span in seconds); may run in another thread than forward. Raises MediaError."""
        ...

    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """One encoder call on prepared items: features [N_i, E] of spec.dtype."""
        ...

    def encode(self, items: Sequence[bytes]) -> list[np.ndarray]:
        """Decode, preprocess and encode: features [N_i, E] of spec.dtype, in the order of the items."""
        ...


class BatchedEncoder:
    """Shared half of the encoders: cuts items into calls of spec.batch; keeps the model on one device and its arithmetic in spec.compute.

    A subclass declares the config it takes (`spec: TimmImage`), passes every batch through `_put`, calls its model inside `_arithmetic()` and returns what
    `_stored` makes of the result.
    """

    spec: EncoderConfig
    device: str = "cpu"
    _model: Any

    def place(self, device: str) -> None:
        """Move the model to `device`, where batches follow it. CUDA's out-of-memory error passes through."""
        self.device = device
        self._model = self._model.to(device)

    def _put(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch on the encoder's device; to CUDA from pinned memory, without waiting for the copy."""
        if self.device.startswith("cuda"):
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Around the model's forward pass: nothing for float32, else torch.autocast in spec.compute."""
        if self.spec.compute == "float32":
            return nullcontext()
        import torch

        return torch.autocast(self.device.partition(":")[0], dtype=getattr(torch, self.spec.compute))

    def _stored(self, features: torch.Tensor) -> np.ndarray:
        """Features on the CPU, in out_dtype."""
        return features.float().cpu().numpy().astype(self.out_dtype)

    @property
    def out_dtype(self) -> str:
        """NumPy type of the features: float16 where they are stored so, else float32 (the store packs bfloat16 and int8)."""
        return computed_dtype(self.spec.dtype)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> Any:
        """See Encoder."""
        raise TypeError(f"{type(self).__name__} defines no prepare")

    def forward(self, items: Sequence[Any]) -> list[np.ndarray]:
        """See Encoder."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def encode(self, items: Sequence[bytes]) -> list[np.ndarray]:
        """See Encoder."""
        features: list[np.ndarray] = []
        for start in range(0, len(items), self.spec.batch):
            features += self.forward([self.prepare(data) for data in items[start : start + self.spec.batch]])
        return features


def check_device(device: str) -> None:
    """Raises ValueError when torch knows no such device, or has no CUDA here."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"unknown device '{device}': use cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}': torch sees no CUDA device here; use cpu")
