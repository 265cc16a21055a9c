"""Tiny random language models of every family that LanguageModel is tested on, and tokenizers with the marks of their chat templates."""

import json
from collections.abc import Callable
from typing import Any

from mmcore.runtime.seeding import seeded
from pipelines.toys.parts import _byte_tokenizer

VOCABULARY = 97
_BODY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def _gated(kind: str, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**_BODY, **more)
        return getattr(transformers, f"{kind}ForCausalLM")(config)

    return make


def _opt(**more: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import OPTConfig, OPTForCausalLM

        return OPTForCausalLM(OPTConfig(**{**_OPT, **more}))

    return make


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2))


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _gated("Llama", tie_word_embeddings=False),  # Vicuna: own head
    "smollm2": _gated("Llama", tie_word_embeddings=True),
    "qwen2": _gated("Qwen2", tie_word_embeddings=True),  # q, k, v have biases
    "qwen3": _gated("Qwen3", tie_word_embeddings=False, head_dim=8),
    "mistral": _gated("Mistral", tie_word_embeddings=False, sliding_window=None),
    "opt": _opt(),  # learned positions with an offset of 2, biases everywhere, tied, dropout 0.1
    "opt-350m": _opt(word_embed_proj_dim=16, do_layer_norm_before=False),  # embeddings narrower than the layers
    "gpt2": _gpt2,  # Conv1D layers
}


def family(name: str) -> Any:
    """A fresh model of a family, biases and norms random too; every call gives the same values."""
    import torch

    with seeded(7):
        model = FAMILIES[name]()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def byte_tokenizer(marks: tuple[str, ...], bos: str | None, eos: str) -> Any:
    """One token per byte, and the given special tokens."""
    from transformers import PreTrainedTokenizerFast

    core = _byte_tokenizer(tuple(dict.fromkeys([*marks, *([bos] if bos else []), eos])))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False)


def sentencepiece_tokenizer(sentences: list[str]) -> Any:
    """Like Llama's: a space before every text, spaces as U+2581, unknown characters as bytes; pieces learnt from the sentences."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = pre_tokenizers.Split("\u2581", "merged_with_next")
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    learner.pre_tokenizer = words
    learner.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    names += [piece for piece in learnt["vocab"] if piece not in names]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)}, merges=[tuple(pair) for pair in learnt["merges"]], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, words
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False)
