"""Encoders: frozen modality encoders behind one face, raw bytes -> features.

Owns the registry (a literal dict), the Encoder protocol, and where and in what precision encoders compute. Input: an EncoderSpec, a weights
artifact directory and a device; output: an Encoder. Refuses to know where features are stored and in what order items come.
Importing this module must not import torch, so that planning stays instant.

Shape letters: N feature tokens, E encoder width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmcore.building import building
from mmcore.config import EncoderSpec, check_encoder
from mmcore.data.features import computed_dtype

if TYPE_CHECKING:
    import torch

COMPUTE = ("float32", "bfloat16", "float16")
"""Values of spec.compute."""


class Encoder(Protocol):
    """A frozen encoder. `encode` is `forward` of every `prepare`d item, spec.batch at a time."""

    spec: EncoderSpec

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

    A subclass passes every batch through `_put`, calls its model inside `_arithmetic()` and returns what `_stored` makes of the result.
    """

    spec: EncoderSpec
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


def _from(module: str, name: str) -> Callable[[EncoderSpec, Path], Encoder]:
    """A loader that imports its module when it is called."""

    def load(spec: EncoderSpec, weights_dir: Path) -> Encoder:
        encoder: Encoder = getattr(importlib.import_module(f"mmcore.encoders.{module}"), name)(spec, weights_dir)
        return encoder

    return load


ENCODERS: dict[str, Callable[[EncoderSpec, Path], Encoder]] = {
    "timm_image": _from("timm_image", "TimmImageEncoder"),
    "timm_video": _from("timm_image", "TimmVideoEncoder"),
    "hf_image": _from("hf_vision", "HfImageEncoder"),
    "hf_video": _from("hf_vision", "HfVideoEncoder"),
    "whisper_audio": _from("whisper", "WhisperAudioEncoder"),
    "hf_audio": _from("hf_audio", "HfAudioEncoder"),
    "hf_text": _from("hf_text", "HfTextEncoder"),
    "bert_text": _from("bert_text", "BertTextEncoder"),
    "imagebind_image": _from("imagebind_encoders", "ImageBindImageEncoder"),
    "imagebind_video": _from("imagebind_encoders", "ImageBindVideoEncoder"),
    "imagebind_audio": _from("imagebind_encoders", "ImageBindAudioEncoder"),
    "imagebind_text": _from("imagebind_encoders", "ImageBindTextEncoder"),
    "vae_image": _from("vae", "VaeImageEncoder"),
}

OF_DECODERS: dict[str, Callable[[EncoderSpec, Path], Encoder]] = {
    "vae_video": _from("vae", "VaeVideoEncoder"),
    "vae_audio": _from("vae_audio", "VaeAudioEncoder"),
    "decoder_text": _from("decoder_text", "DecoderTextEncoder"),
}
"""Kinds whose weights are those of a decoder (`weights_dir/pipeline`; see mmcore.decoders.catalogue). `vae_image` opens a decoder's autoencoder too."""

MODALITY_OF = {kind: kind.rpartition("_")[2] for kind in (*ENCODERS, *OF_DECODERS)}
"""What each kind encodes."""


@building()
def load_encoder(spec: EncoderSpec, weights_dir: Path, device: str = "cpu") -> Encoder:
    """The encoder of `spec` on `device`, with the weights of an artifact (`weights_dir/encoder/…`, or `weights_dir/pipeline/…` of a decoder).

    Raises ValueError when they do not fit, or for an unknown kind, compute or device.
    """
    loaders = ENCODERS | OF_DECODERS
    if spec.kind not in loaders:
        raise ValueError(f"unknown encoder kind '{spec.kind}': choose one of {', '.join(sorted(loaders))}")
    if spec.compute not in COMPUTE:
        raise ValueError(f"encoder {spec.kind}: unknown compute '{spec.compute}': choose one of {', '.join(COMPUTE)}")
    check_encoder(spec)
    check_device(device)
    encoder = loaders[spec.kind](spec, Path(weights_dir))
    encoder.place(device)
    if not spec.tiles:
        return encoder
    from mmcore.encoders.tiled import TiledEncoder

    return TiledEncoder(spec, encoder)


def check_device(device: str) -> None:
    """Raises ValueError when torch knows no such device, or has no CUDA here."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"unknown device '{device}': use cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}': torch sees no CUDA device here; use cpu")
