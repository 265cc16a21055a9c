"""Texts through the text side of CLIP, SigLIP or CLAP: one unit vector in the space that the model's images or audio clips share.

Owns tokenization (the tokenizer saved beside the weights; longer texts are cut, special tokens stay), padding and the forward pass. Cosines with the pooled
vectors of hf_image, hf_video (video, siglip) and hf_audio (clap) of the same model are its similarities. CLIP and SigLIP texts are padded to the model's full
context, SigLIP's without a mask, as it was trained; each CLAP text is a call of its own: no text depends on its neighbours' length. Input: a
transformers directory and UTF-8 bytes; output: features [1, E].

Shape letters: B batch, T tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import functional

from mmcore.encoder_config import HfText
from mmcore.encoders.base import BatchedEncoder
from mmcore.encoders.hf import load_part
from mmcore.media.decode import decode_text


@dataclass(frozen=True, slots=True)
class Family:
    """How one family's text side is opened and read."""

    model: str
    """Class of transformers."""
    pooled: str
    """Output that holds the projected vector."""
    width: str
    """Setting that holds its width."""
    padded: bool
    """Every text has the full context; False: each text has its own length."""


FAMILIES = {
    "clip": Family("CLIPTextModelWithProjection", "text_embeds", "projection_dim", True),
    "siglip": Family("SiglipTextModel", "pooler_output", "projection_size", True),
    "clap": Family("ClapTextModelWithProjection", "text_embeds", "projection_dim", False),
}
"""spec.arch up to its first `:` -> family; what follows names the weights."""


class HfTextEncoder(BatchedEncoder):
    """One text -> one unit vector."""

    spec: HfText

    def __init__(self, spec: HfText, weights_dir: Path):
        """Raises ValueError for an unknown family, or a model of another width."""
        self.spec = spec
        name = spec.arch.partition(":")[0]
        if name not in FAMILIES:
            raise ValueError(f"unknown text family '{name}': choose one of {', '.join(FAMILIES)}")
        self._family = FAMILIES[name]
        folder = weights_dir / "encoder"
        self._model = load_part(folder, name, self._family.model)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        gives = getattr(self._model.config, self._family.width)
        if gives != spec.width:
            raise ValueError(f"the text side in {weights_dir} gives width {gives}, the spec says {spec.width}")
        settings = self._model.config
        positions = settings.max_position_embeddings - (0 if self._family.padded else settings.pad_token_id + 1)  # RoBERTa counts from behind its padding id
        self._context = min(positions, self._tokenizer.model_max_length)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> torch.Tensor:
        """Bytes -> token ids int64 [T]; a text has no span. Raises MediaError."""
        padding = "max_length" if self._family.padded else False
        ids = self._tokenizer(decode_text(data), truncation=True, max_length=self._context, padding=padding, split_special_tokens=True)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    @torch.inference_mode()
    def forward(self, items: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """Token ids each -> features [1, E] each."""
        calls = [torch.stack(list(items))] if self._family.padded else [ids[None] for ids in items]
        with self._arithmetic():
            vectors_BE = torch.cat([getattr(self._model(input_ids=self._put(ids_BT)), self._family.pooled) for ids_BT in calls])
        return list(self._stored(functional.normalize(vectors_BE.float(), dim=-1)[:, None]))
