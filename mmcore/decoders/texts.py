"""Texts -> conditioning, by the text encoders that a decoder was trained with: caption targets of stage 2, and the empty text of guidance.

Owns the tokenizing and encoding of each family, and the file that keeps the empty conditioning beside the weights, so that generating from
conditioning opens no text encoder. Only the text parts of a directory are opened; a TextSide keeps them as long as it lives. Input: a diffusers
directory and texts; output: one tensor per stream of the contract, with its mask.

Shape letters: B texts, Q conditioning tokens, C conditioning width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from infra.step import AnyloomError
from infra.storage import read_json
from mmcore.decoders.contract import AUDIOLDM, AUDIOLDM2, COGVIDEOX, INDEX, STABLE_DIFFUSION, TEXT_TO_VIDEO, VOICE, DecoderContract, read_contract
from mmcore.decoders.opening import EMPTY, open_weights
from mmcore.decoders.speech.text import VoiceText

Encoded = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]
"""(float32 [B, Q, C] per stream, int64 mask [B, Q] or None per stream)."""


TEXT_ENCODERS = {"CLIPTextModel": "CLIPTokenizer", "BertModel": "BertTokenizer"}
"""UNet decoders of images and videos: class of the text encoder -> class of its tokenizer."""


class TextSide:
    """The text parts of a decoder's directory, each opened when it is first needed."""

    def __init__(self, directory: Path, device: str = "cpu", contract: DecoderContract | None = None):
        self.directory, self.device = Path(directory), device
        self.contract = contract or read_contract(self.directory)
        self._parts: dict[str, Any] = {}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Encoded:
        """Conditioning of each text, as the family's own pipeline makes it, in float32. Texts longer than the encoder's context are cut.

        Raises AnyloomError when a text part is missing or no safetensors.
        """
        if not texts:
            raise AnyloomError(f"{self.contract.family}: no texts to encode; give at least one")
        streams, masks = ENCODERS[self.contract.family](self, list(texts))
        return tuple(stream.float() for stream in streams), masks

    def model(self, kind: Any, part: str) -> Any:
        """A frozen model of the directory."""
        if part not in self._parts:
            self._parts[part] = open_weights(kind, self.directory / part, torch.float32, self.device)
        return self._parts[part]

    def front(self, kind: Any, part: str) -> Any:
        """A tokenizer of the directory. Raises AnyloomError when it is missing."""
        if part not in self._parts:
            if not (self.directory / part).is_dir():
                raise AnyloomError(f"{self.directory} has no {part}; copy the decoder's whole directory")
            self._parts[part] = kind.from_pretrained(self.directory / part, local_files_only=True)
        return self._parts[part]

    def tokens(self, kind: Any, texts: list[str], part: str = "tokenizer", **options: Any) -> Any:
        """Token ids and mask of the texts, padded and cut as `options` say. Names of special tokens in them are words."""
        return self.front(kind, part)(texts, truncation=True, split_special_tokens=True, return_tensors="pt", **options).to(self.device)


def encode_texts(directory: Path, texts: Sequence[str], device: str = "cpu", contract: DecoderContract | None = None) -> Encoded:
    """TextSide.encode with text parts that are let go after the call."""
    return TextSide(directory, device, contract).encode(texts)


def write_empty(directory: Path, device: str = "cpu") -> Path:
    """Encode the empty text and keep it as `directory/empty.safetensors`, next to the weights. Run it when a decoder is imported."""
    from safetensors.torch import save_file

    streams, masks = encode_texts(directory, [""], device)
    names = [stream.name for stream in read_contract(directory).streams]
    tensors = {name: stream.cpu().contiguous() for name, stream in zip(names, streams, strict=True)}
    tensors |= {f"{name}.mask": mask.cpu().contiguous() for name, mask in zip(names, masks, strict=True) if mask is not None}
    path = Path(directory) / EMPTY
    save_file(tensors, path)
    return path


def read_empty(directory: Path, contract: DecoderContract, device: str) -> tuple[torch.Tensor, ...]:
    """The empty text's streams [1, Q, C], each cut to the tokens its mask keeps: from empty.safetensors, or else from the text encoder."""
    from safetensors.torch import load_file

    path, names = Path(directory) / EMPTY, [stream.name for stream in contract.streams]
    if path.is_file():
        kept = load_file(path)
        if missing := [name for name in names if name not in kept]:
            raise AnyloomError(f"{path} has no '{missing[0]}': it was written for another decoder; run write_empty again")
        streams, masks = tuple(kept[name] for name in names), tuple(kept.get(f"{name}.mask") for name in names)
    else:
        try:
            streams, masks = encode_texts(directory, [""], device, contract)
        except AnyloomError as error:
            raise AnyloomError(f"guidance needs the empty conditioning, but there is no {path.name} and {error}; or ask for guidance 1") from error
    return tuple(stream if mask is None else stream[:, mask[0].bool()] for stream, mask in zip(streams, masks, strict=True))


def _clip(side: TextSide, texts: list[str]) -> Encoded:
    """Last states of a CLIP text encoder (or BERT, as the directory's index says), padded to its context. The mask is not looked at unless the
    encoder's config says so. Raises AnyloomError for another class of text encoder."""
    import transformers

    named = read_json(side.directory / INDEX).get("text_encoder", [None, None])[1]
    if named not in TEXT_ENCODERS:
        raise AnyloomError(f"{side.directory / INDEX}: a text encoder of the class {named} is not opened here; there are: {', '.join(TEXT_ENCODERS)}")
    encoder = side.model(getattr(transformers, named), "text_encoder")
    batch = side.tokens(getattr(transformers, TEXT_ENCODERS[named]), texts, padding="max_length", max_length=side.contract.streams[0].tokens)
    mask = batch.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return (encoder(batch.input_ids, attention_mask=mask).last_hidden_state,), (None,)


def _clap(side: TextSide, texts: list[str]) -> Encoded:
    """One CLAP text vector each, unit length, as a sequence of one."""
    from transformers import ClapTextModelWithProjection, RobertaTokenizer

    encoder = side.model(ClapTextModelWithProjection, "text_encoder")
    batch = side.tokens(RobertaTokenizer, texts, padding=True)
    vectors_BC = encoder(batch.input_ids, attention_mask=batch.attention_mask).text_embeds
    return (functional.normalize(vectors_BC, dim=-1)[:, None],), (None,)


def _t5(side: TextSide, texts: list[str]) -> Encoded:
    """Last T5 states, padded to the transformer's text length; as CogVideoX was trained, padding is attended to."""
    from transformers import T5EncoderModel, T5Tokenizer

    encoder = side.model(T5EncoderModel, "text_encoder")
    batch = side.tokens(T5Tokenizer, texts, padding="max_length", max_length=side.contract.streams[0].tokens)
    return (encoder(batch.input_ids).last_hidden_state,), (None,)


def _audioldm2(side: TextSide, texts: list[str]) -> Encoded:
    """States that the GPT-2 part generates after CLAP and T5 states, and the T5 states, padded to the longest text.

    Each text is encoded by itself: in a batch, the padding of a short text would shift the positions of the states GPT-2 generates after it.
    """
    from diffusers import AudioLDM2Pipeline
    from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel
    from transformers import ClapModel, GPT2LMHeadModel, RobertaTokenizer, T5EncoderModel, T5Tokenizer

    parts = {"text_encoder": ClapModel, "text_encoder_2": T5EncoderModel, "projection_model": AudioLDM2ProjectionModel, "language_model": GPT2LMHeadModel}
    fronts = {"tokenizer": RobertaTokenizer, "tokenizer_2": T5Tokenizer}
    opened = {part: side.model(kind, part) for part, kind in parts.items()}
    opened |= {part: side.front(kind, part) for part, kind in fronts.items()}
    text_side: Any = AudioLDM2Pipeline(**opened, feature_extractor=None, unet=None, vae=None, scheduler=None, vocoder=None)
    count = side.contract.streams[0].tokens
    found = [text_side.encode_prompt(text, side.device, 1, False, max_new_tokens=count) for text in texts]
    longest = max(states.shape[1] for states, _, _ in found)
    states = torch.cat([functional.pad(states, (0, 0, 0, longest - states.shape[1])) for states, _, _ in found])
    mask = torch.cat([functional.pad(mask, (0, longest - mask.shape[1])) for _, mask, _ in found])
    return (torch.cat([generated for _, _, generated in found]), states), (None, mask)


def _voice(side: TextSide, texts: list[str]) -> Encoded:
    """Latent frames in which the voice says the texts' spoken words."""

    return (torch.from_numpy(side.front(VoiceText, "text_encoder").encode(texts)),), (None,)


ENCODERS: dict[str, Callable[[TextSide, list[str]], Encoded]] = {
    STABLE_DIFFUSION: _clip,
    TEXT_TO_VIDEO: _clip,
    AUDIOLDM: _clap,
    AUDIOLDM2: _audioldm2,
    COGVIDEOX: _t5,
    VOICE: _voice,
}
"""Family -> what encodes its texts."""
