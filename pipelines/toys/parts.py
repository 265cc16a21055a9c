"""Random weights at toy sizes, made from a seed: what the tiny recipe has in place of pretrained parts.

Owns the toy architectures and the byte-level tokenizer. Input: a seed; output: torch modules and tokenizers. Same seed, same
values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmcore.runtime.seeding import seeded
from pipelines.toys.joint import BODY, IMAGE, tiny_clap, tiny_clip, tiny_siglip

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

LM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BERT_SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LM_WIDTH, AUDIO_WIDTH, TEXT_WIDTH = 64, 32, 32
"""Channels of the toy language model, audio encoder and text encoder; the toy image encoder (timm test_efficientnet) has 256."""


def _byte_tokenizer(specials: tuple[str, ...]) -> Tokenizer:
    """Specials first, then the 256 bytes: one token per byte, no merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*specials, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def lm_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with a ChatML template; ends a turn with <|im_end|>. 259 tokens."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_tokenizer(LM_SPECIALS),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer that frames a text as [CLS] bytes [SEP]. 261 tokens."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    core = _byte_tokenizer(BERT_SPECIALS)
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """2 layers, D=64, 4 heads / 2 key-value heads, tied embeddings, 259 tokens, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = lm_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=LM_WIDTH,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # of every config, unknown to its types
    )
    with seeded(seed):
        return LlamaForCausalLM(config), tokenizer


def tiny_whisper_encoder(seed: int) -> WhisperEncoder:
    """2 layers, E=32, 2 heads; 80 mels and 30 s like the real one: 1500 frames."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=AUDIO_WIDTH,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        num_mel_bins=80,
        vocab_size=51864,
    )
    with seeded(seed):
        return WhisperEncoder(config)


def tiny_bert(seed: int) -> tuple[BertModel, PreTrainedTokenizerFast]:
    """2 layers, width 32, 2 heads, on the byte tokenizer."""
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed):
        return BertModel(config), tokenizer


# ---- encoders of transformers and diffusers: (model, what prepares its inputs) --------------------------------------------------------------------------

SIZE = {"height": 32, "width": 32}


def tiny_dinov2(seed: int) -> tuple[Any, Any]:
    """DINOv2: 2 layers, width 32, 16 patches of a 32-pixel image."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    with seeded(seed):
        model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **IMAGE))
    return model, BitImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)


def tiny_hubert(seed: int) -> tuple[Any, Any]:
    """HuBERT: two convolutions (a state every 20 samples), 2 layers, width 32."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    convolutions: dict[str, Any] = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
    with seeded(seed):
        model = HubertModel(HubertConfig(**BODY, **convolutions, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4))
    return model, Wav2Vec2FeatureExtractor(sampling_rate=16000)


def tiny_vae(seed: int) -> tuple[Any]:
    """Stable Diffusion's autoencoder with 8 channels per level: 8 x 8 pixels become one cell of 4 channels."""
    from diffusers import AutoencoderKL

    with seeded(seed):
        return (
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8,) * 4,
                norm_num_groups=4,
                latent_channels=4,
                sample_size=32,
            ),
        )


ENCODER_PARTS: dict[str, dict[str, Callable[[int], tuple[Any, ...]]]] = {
    "image": {"tiny-clip": tiny_clip, "tiny-siglip": tiny_siglip, "tiny-dinov2": tiny_dinov2, "tiny-vae": tiny_vae},
    "audio": {"tiny-clap": tiny_clap, "tiny-hubert": tiny_hubert},
    "text": {"tiny-clip": tiny_clip, "tiny-siglip": tiny_siglip, "tiny-clap": tiny_clap},
}
"""Part of a recipe's weights -> arch -> what `encoder/` holds, each with save_pretrained."""
