"""Texts through a BERT encoder: the token states that conditioning is aligned with.

Owns tokenization, truncation to spec.tokens (CLS and SEP included) and the forward pass. Input: UTF-8 bytes of a text;
output: features [N, E] of the real tokens only. Every text is padded to the same length, so no text depends on its neighbours' length.
Refuses to know what the states are for.

Shape letters: B batch, N tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from mmcore.config import EncoderSpec
from mmcore.encoders import BatchedEncoder


class BertTextEncoder(BatchedEncoder):
    """One text -> its last hidden states."""

    def __init__(self, spec: EncoderSpec, weights_dir: Path):
        """Raises ValueError when the weights have another width or the spec asks for fewer than 3 tokens."""
        if spec.tokens < 3:
            raise ValueError(f"encoder {spec.kind} needs tokens >= 3 (CLS, a token, SEP), got {spec.tokens}")
        self.spec = spec
        directory = str(weights_dir / "encoder")
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self._model = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval().requires_grad_(False)
        if self._model.config.hidden_size != spec.width:
            raise ValueError(f"the text encoder in {weights_dir} is {self._model.config.hidden_size} wide, the spec says {spec.width}")

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> token ids int64 [at most spec.tokens]; a text has no span."""
        return np.asarray(self._tokenizer(data.decode("utf-8"), truncation=True, max_length=self.spec.tokens)["input_ids"], np.int64)

    @torch.inference_mode()
    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Token ids each -> features [N_i, E] each."""
        ids_BN = torch.full((len(items), self.spec.tokens), self._tokenizer.pad_token_id)
        mask_BN = torch.zeros_like(ids_BN)
        for row, ids in enumerate(items):
            ids_BN[row, : len(ids)], mask_BN[row, : len(ids)] = torch.from_numpy(ids), 1
        with self._arithmetic():
            states_BNE = self._model(input_ids=self._put(ids_BN), attention_mask=self._put(mask_BN)).last_hidden_state
        return [states[: len(ids)] for states, ids in zip(self._stored(states_BNE), items, strict=True)]
