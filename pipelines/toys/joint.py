"""Random models with two sides in one space, at toy size: CLIP, SigLIP and CLAP with their own tokenizers and front ends.

Owns the toy architectures and their alphabets (one token per byte, no merges). Input: a seed; output: a model of transformers and what belongs beside it.
Same seed, same values.
"""

from __future__ import annotations

from typing import Any

from mmcore.runtime.seeding import seeded

WIDTH = 16
"""Channels of the toys' shared spaces."""
BODY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE: dict[str, Any] = {"image_size": 32, "patch_size": 8}
CONTEXT = 64
"""Longest text of the toys, in tokens."""


def _letters() -> list[str]:
    """The 256 signs that stand for bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def tiny_clip(seed: int) -> tuple[Any, Any, Any]:
    """(CLIPModel, tokenizer, image processor): 32 x 32 pixels, 514 tokens."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = _letters()
    marks = ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab=_numbered([*letters, *(letter + "</w>" for letter in letters), *marks]), merges=[], model_max_length=CONTEXT)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**BODY, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "projection_dim": WIDTH}
    with seeded(seed):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config={**BODY, **IMAGE, "projection_dim": WIDTH}, projection_dim=WIDTH))
    return model, tokenizer, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def tiny_siglip(seed: int) -> tuple[Any, Any, Any]:
    """(SiglipModel, tokenizer, image processor): 32 x 32 pixels, its shared space is as wide as its body."""
    from transformers import Siglip2Tokenizer, SiglipConfig, SiglipImageProcessor, SiglipModel

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Siglip2Tokenizer(vocab=_numbered(pieces), merges=[], model_max_length=CONTEXT, padding_side="right")
    text = {**BODY, "hidden_size": WIDTH, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "pad_token_id": 0, "projection_size": WIDTH}
    text |= {"bos_token_id": 2, "eos_token_id": 1}
    with seeded(seed):
        model = SiglipModel(SiglipConfig(text_config=text, vision_config={**BODY, **IMAGE, "hidden_size": WIDTH}))
    return model, tokenizer, SiglipImageProcessor(size={"height": 32, "width": 32})


def tiny_clap(seed: int) -> tuple[Any, Any, Any]:
    """(ClapModel, tokenizer, feature extractor): audio clips of 2 s at 48 kHz, 261 tokens."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *_letters(), "<mask>"]
    tokenizer = RobertaTokenizer(vocab=_numbered(pieces), merges=[], model_max_length=CONTEXT)
    text = {**BODY, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT + 2, "pad_token_id": tokenizer.pad_token_id}
    audio = {"patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2]}
    with seeded(seed):
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH))
    return model, tokenizer, ClapFeatureExtractor(max_length_s=2, truncation="rand_trunc", padding="repeatpad")
