"""The judge of spoken words: a frozen Whisper (Radford et al. 2022, arXiv 2212.04356) that writes down what it hears.

Owns the opening and the greedy transcription without timestamps; the first token is no blank and no end, as in the authors' decoding. Input: a directory of
the speech_judge step, audio clips as files' bytes; output: texts.

Shape letters: B audio clips, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperModel

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.media.decode import decode_audio

TENSORS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
BEGIN = ("<|startoftranscript|>", "<|notimestamps|>")
"""Tokens that begin a transcription of an English-only model."""
END = "<|endoftext|>"
LONGEST = 16
"""Tokens of a transcription at most."""


class SpeechJudge:
    """heard_s: seconds of an audio clip that are heard; the encoder sees that window only (its first positions), at that share of its cost."""

    def __init__(self, directory: Path, heard_s: float = 30.0):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        self._begin, self._end = [self._token(name) for name in BEGIN], self._token(END)
        self._blank = self._tokenizer.encode(" ", add_special_tokens=False).ids[0]
        ids: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), self._end)
        config = WhisperConfig(**read_json(directory / CONFIG), **ids, decoder_start_token_id=self._begin[0])
        self._front = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        frames = max(1, min(config.max_source_positions, round(heard_s * config.max_source_positions / self._front.chunk_length)))
        self._window_s = frames * self._front.chunk_length / config.max_source_positions
        config.max_source_positions = frames
        state = {name: value.float() for name, value in load_file(directory / TENSORS).items()}
        state["encoder.embed_positions.weight"] = state["encoder.embed_positions.weight"][:frames]
        self._model = WhisperModel(config)
        self._model.load_state_dict(state)
        self._model.eval().requires_grad_(False)

    def _token(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise AnyloomError(f"the judge's {TOKENIZER} has no {name}: it is not that of an English Whisper; run speech_judge again")
        return int(found)

    def hear(self, files: Sequence[bytes]) -> list[str]:
        """What each audio file says, stripped. Raises MediaError for bytes that are no audio clip."""
        return self.transcribed([self.mel(data) for data in files])

    @torch.inference_mode()
    def transcribed(self, mels: Sequence[np.ndarray]) -> list[str]:
        """What each audio clip says, stripped, of what `mel` gives."""
        if not mels:
            return []
        states = self._model.encoder(torch.from_numpy(np.stack(mels))).last_hidden_state
        ids_BT = torch.tensor([self._begin] * len(mels))
        ended_B = torch.zeros(len(mels), dtype=torch.bool)
        for number in range(LONGEST):
            hidden_BTD = self._model.decoder(input_ids=ids_BT, encoder_hidden_states=states, use_cache=False).last_hidden_state
            logits_BV = hidden_BTD[:, -1] @ self._model.decoder.embed_tokens.weight.T
            logits_BV[:, self._end + 1 :] = -torch.inf  # special tokens stand behind the end
            if number == 0:
                logits_BV[:, [self._blank, self._end]] = -torch.inf
            next_B = torch.where(ended_B, self._end, logits_BV.argmax(-1))
            ids_BT, ended_B = torch.cat([ids_BT, next_B[:, None]], 1), ended_B | (next_B == self._end)
            if ended_B.all():
                break
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids_BT.tolist()]

    def mel(self, data: bytes) -> np.ndarray:
        """The judge's view of an audio file, float32 [mel bins, frames]. Raises MediaError for bytes that are no audio clip."""
        rate = self._front.sampling_rate
        samples = decode_audio(data, rate, self._window_s)
        mel = self._front(samples, sampling_rate=rate, return_tensors="np", padding="max_length", max_length=round(self._window_s * rate))
        return np.asarray(mel.input_features[0], np.float32)
