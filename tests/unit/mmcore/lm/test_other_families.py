"""Families outside the tested ones: each computes what transformers does, packed and with a cache, or is refused in one line."""

import pytest
import torch

from mmcore.config import SpecialTokens
from mmcore.lm.language_model import LanguageModel, packed_mask
from mmcore.runtime.seeding import seeded

VOCABULARY = 97
COUNTS = SpecialTokens(image=4, video=0, audio=2)
_BODY = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GATED = {**_BODY, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_NEO = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
_RWKV = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64}
_BERT = {**_BODY, "is_decoder": True, "intermediate_size": 48}

USABLE = {
    "Gemma": {**_GATED, "head_dim": 8},
    "Phi": _GATED,
    "Phi3": _GATED,
    "StableLm": _GATED,
    "GPTNeoX": {**_BODY, "intermediate_size": 48, "max_position_embeddings": 64},
    "Falcon": {**_BODY, "alibi": False},
    "GPTJ": {**_GPT, "rotary_dim": 4},
    "GPTBigCode": _GPT,
    "Olmo2": _GATED,
    "GPTNeo": {**_NEO, "attention_types": [[["global"], 2]]},
}
REFUSED = {
    "Falcon": ({**_BODY, "alibi": True}, "falcon cannot be used here: it adds its positions to attention as ALiBi"),
    "Bloom": (_BODY, "bloom cannot be used here: it adds its positions to attention as ALiBi"),
    "Mpt": ({"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "mpt cannot be used here: it adds its positions"),
    "GPTNeo": ({**_NEO, "attention_types": [[["global", "local"], 1]], "window_size": 3}, r"gpt_neo has local attention layers \(3 tokens\)"),
    "Rwkv": (_RWKV, "rwkv cannot be used here: it keeps a recurrent state"),
    "Mamba": ({"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, "mamba cannot be used here: it keeps a recurrent state"),
    "RecurrentGemma": (_GATED, "recurrent_gemma cannot be used here: it keeps a recurrent state"),
    "OpenAIGPT": (_GPT, "openai-gpt cannot be used here: it takes no mask of packed rows"),
    "XLNet": ({"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "xlnet cannot be used here: it is trained to predict in"),
    "Bert": (_BERT, "bert cannot be used here: its logits are not the head applied to its last hidden states"),
    "Roberta": (_BERT, "roberta cannot be used here: its logits are not the head applied to its last hidden states"),
}


def model(name: str, settings: dict):
    import transformers

    with seeded(3):
        config = getattr(transformers, f"{name}Config")(**settings)
        base = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in base.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return base.eval()


def states(lm: LanguageModel, ids, segments, positions, cache=None, keys=None):
    return lm.hidden(lm.embed(ids), packed_mask(segments, segments if keys is None else keys, torch.float32), positions, cache)


@pytest.mark.parametrize("name", list(USABLE))
def test_a_usable_family_reads_packed_rows_as_transformers_reads_each_alone(name):
    base = model(name, USABLE[name])
    lm = LanguageModel(base, COUNTS)
    prefix, first, second = [5, 9, 33, 7, 8], [60, 61, 62, 63], [44, 45, 46]
    ids = torch.tensor([prefix + first + second])
    segments = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    positions = torch.tensor([[*range(9), *range(5, 8)]])
    with torch.no_grad():
        packed = lm.base_logits(states(lm, ids, segments, positions))[0]
        assert torch.allclose(packed[:9], base(input_ids=ids[:, :9]).logits[0], atol=1e-4)
        assert torch.allclose(packed[9:], base(input_ids=torch.tensor([prefix + second])).logits[0, 5:], atol=1e-4)
        cache, parts = lm.new_cache(), []
        for start, end in ((0, 5), (5, 7), (7, 12)):
            parts.append(states(lm, ids[:, start:end], segments[:, start:end], positions[:, start:end], cache, segments[:, :end]))
        assert torch.allclose(lm.base_logits(torch.cat(parts, 1))[0], packed, atol=1e-4)


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_family_that_would_be_computed_wrongly_is_refused_in_one_line(name):
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        LanguageModel(model(name, settings), COUNTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Gemma", "Phi"])
def test_new_rows_start_as_large_as_the_models_own_embeddings_come_out(kind):
    base = model(kind, USABLE[kind])
    lm = LanguageModel(base, COUNTS, seed=3)
    own = lm.embed(torch.arange(VOCABULARY)[None])[0].float()
    new = lm.embed(torch.arange(VOCABULARY, VOCABULARY + 6)[None])[0].float()
    assert 0.07 < float((new - own.mean(0)).std() / own.std()) < 0.13
    weight = base.get_input_embeddings().weight
    assert float(own.std() / weight.std()) == pytest.approx(32**0.5 if kind == "Gemma" else 1.0, rel=1e-3)


def test_a_model_of_half_the_width_passes_the_probe():
    for dtype in (torch.bfloat16, torch.float16):
        assert LanguageModel(model("Gemma", USABLE["Gemma"]).to(dtype), COUNTS).dtype == dtype
