"""Texts through a BERT encoder: the token states that conditioning is aligned with, or one pooled vector per text.

Owns tokenization, truncation to spec.tokens (CLS and SEP included) and the forward pass. Input: UTF-8 bytes of a text;
output: features [N, E] of the real tokens only, or with tokens=0 their mean [1, E] (mean pooling of sentence-transformers, Reimers & Gurevych 2019,
arXiv 1908.10084, not normalised). A text's padding depends on its own length alone, never on its neighbours.

Shape letters: B batch, N tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from mmcore.encoder_config import BertText
from mmcore.encoders.base import BatchedEncoder
from mmcore.media.decode import decode_text

MAX_POOLED_TOKENS = 256
"""Longest text that is pooled, in tokens, CLS and SEP included: what all-MiniLM-L6-v2 is used with. Longer ones are cut."""
BUCKET = 16
"""Pooled texts are padded to the next multiple of this many tokens."""


class BertTextEncoder(BatchedEncoder):
    """One text -> its last hidden states, or their mean."""

    spec: BertText

    def __init__(self, spec: BertText, weights_dir: Path):
        """Raises ValueError when the weights have another width or the spec asks for 1 or 2 tokens, or fewer than none."""
        if spec.tokens < 3 and spec.tokens != 0:
            raise ValueError(f"encoder {spec.kind} needs tokens >= 3 (CLS, a token, SEP), or 0 for one pooled vector, got {spec.tokens}")
        self.spec = spec
        directory = str(weights_dir / "encoder")
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        self._model = AutoModel.from_pretrained(directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32).eval().requires_grad_(False)
        if self._model.config.hidden_size != spec.width:
            raise ValueError(f"the text encoder in {weights_dir} is {self._model.config.hidden_size} wide, the spec says {spec.width}")
        self._longest = spec.tokens or min(MAX_POOLED_TOKENS, self._model.config.max_position_embeddings)

    def prepare(self, data: bytes, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """Bytes -> token ids int64 [at most spec.tokens]; a text has no span. Raises MediaError."""
        ids = self._tokenizer(decode_text(data), truncation=True, max_length=self._longest, split_special_tokens=True)["input_ids"]
        return np.asarray(ids, np.int64)

    @torch.inference_mode()
    def forward(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Token ids each -> features [N_i, E] each; [1, E] when pooled."""
        if self.spec.tokens:
            states_BNE = self._states(items, self.spec.tokens)
            return [self._stored(states[: len(ids)]) for states, ids in zip(states_BNE, items, strict=True)]
        found: dict[int, np.ndarray] = {}
        padded = [min(self._longest, -(-len(ids) // BUCKET) * BUCKET) for ids in items]
        for length in sorted(set(padded)):
            rows = [i for i, own in enumerate(padded) if own == length]
            for i, states_NE in zip(rows, self._states([items[i] for i in rows], length), strict=True):
                found[i] = self._stored(states_NE[: len(items[i])].mean(0, keepdim=True))
        return [found[i] for i in range(len(items))]

    def _states(self, items: Sequence[np.ndarray], length: int) -> torch.Tensor:
        """Last hidden states [B, length, E] of texts padded to `length` tokens."""
        ids_BN = torch.full((len(items), length), self._tokenizer.pad_token_id)
        mask_BN = torch.zeros_like(ids_BN)
        for row, ids in enumerate(items):
            ids_BN[row, : len(ids)], mask_BN[row, : len(ids)] = torch.from_numpy(ids), 1
        with self._arithmetic():
            states_BNE: torch.Tensor = self._model(input_ids=self._put(ids_BN), attention_mask=self._put(mask_BN)).last_hidden_state
        return states_BNE.float()
