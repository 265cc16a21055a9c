"""Language models of several families through LanguageModel: parity with transformers, packing, positions, LoRA targets, new rows, clear refusals."""

import dataclasses

import pytest
import torch
from toy_any import any_spec, randomise
from toy_lms import FAMILIES, VOCABULARY, family

from mmcore.config import LoraSpec, SpecialTokens, check_model
from mmcore.lm.families import LORA_TARGETS, lora_targets
from mmcore.lm.language_model import LanguageModel, load_lm, packed_mask
from mmcore.lm.lora import attach_lora, lora_parameters, save_lora

COUNTS = SpecialTokens(image=4, video=0, audio=2)
ATOL = 1e-4


def run(lm: LanguageModel, ids_BT: torch.Tensor, segments_BT: torch.Tensor, positions_BT: torch.Tensor, cache=None) -> torch.Tensor:
    keys = segments_BT if cache is None else cache["segments"]
    mask = packed_mask(segments_BT, keys, torch.float32)
    return lm.hidden(lm.embed(ids_BT), mask, positions_BT, None if cache is None else cache["cache"])


def one_row(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    row = torch.tensor([ids])
    return run(lm, row, torch.zeros_like(row), torch.arange(len(ids))[None])[0]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_hidden_states_and_logits_are_those_of_transformers(name):
    base = family(name)
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        lm = LanguageModel(base, COUNTS)
        hidden = run(lm, ids, torch.zeros_like(ids), torch.arange(9).expand(3, -1))
    assert hidden.shape == (3, 9, lm.width) and lm.width == base.get_input_embeddings().weight.shape[1]
    assert torch.allclose(lm.base_logits(hidden), plain, atol=ATOL)
    assert torch.allclose(lm.logits(hidden)[..., :VOCABULARY], plain, atol=ATOL) and lm.logits(hidden).shape[-1] == VOCABULARY + 6


@pytest.mark.parametrize("name", list(FAMILIES))
def test_segments_of_a_packed_row_see_the_prefix_and_themselves_only(name):
    """Packed equals each sequence alone (positions go on from the prefix), with and without a cache; the other segment's tokens do not matter."""
    from transformers import DynamicCache

    lm = LanguageModel(family(name), COUNTS)
    prefix, first, second = [5, 9, 33], [60, 61, 62, VOCABULARY + 1], [44, 45]
    ids = torch.tensor([[*prefix, *first, *second]])
    segments = torch.tensor([[0] * 3 + [1] * 4 + [2] * 2])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3, 4]])
    with torch.no_grad():
        packed = run(lm, ids, segments, positions)[0]
        assert torch.allclose(packed[:7], one_row(lm, prefix + first), atol=ATOL)
        assert torch.allclose(packed[7:], one_row(lm, prefix + second)[3:], atol=ATOL)
        other = run(lm, torch.tensor([[*prefix, *first[::-1], *second]]), segments, positions)[0]
        assert torch.allclose(other[7:], packed[7:], atol=1e-6) and not torch.allclose(other[3:7], packed[3:7], atol=1e-2)
        cache = {"cache": DynamicCache(), "segments": segments[:, :0]}
        parts = []
        for start, end in ((0, 3), (3, 5), (5, 9)):
            cache["segments"] = segments[:, :end]
            parts.append(run(lm, ids[:, start:end], segments[:, start:end], positions[:, start:end], cache)[0])
    assert torch.allclose(torch.cat(parts), packed, atol=ATOL)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_lora_goes_on_every_linear_layer_of_the_family_and_computes_what_peft_does(name, tmp_path):
    from peft import PeftModel

    lm = LanguageModel(family(name), COUNTS)
    spec = LoraSpec(rank=2, alpha=6, targets=())
    attach_lora(lm.base, spec, 0)
    randomise(lm.base, 0.1)
    kind = lm.base.config.model_type
    blocks = {parameter.split(".lora_")[0] for parameter in lora_parameters(lm.base)}
    assert {block.split(".")[-1] for block in blocks} == set(LORA_TARGETS[kind])
    layers = [n for n, m in lm.base.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and ".lora_" not in n]
    inside = {n.removesuffix(".base_layer") for n in layers if "lm_head" not in n and "project_" not in n}
    assert blocks == inside  # nothing of a layer is left out
    save_lora(lm.base, spec, tmp_path)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    peft = PeftModel.from_pretrained(family(name), str(tmp_path))
    with torch.no_grad():
        hidden = run(lm, ids, torch.zeros_like(ids), torch.arange(7).expand(2, -1))
        assert torch.allclose(lm.base_logits(hidden), peft(input_ids=ids).logits, atol=ATOL)
        assert not torch.allclose(lm.base_logits(hidden), family(name)(input_ids=ids).logits, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "smollm2", "opt", "opt-350m", "gpt2"])
def test_new_rows_are_tied_to_nothing_and_leave_the_base_bit_identical(name):
    """Also where the base ties its own head to its embeddings: training the new rows moves neither."""
    base = family(name)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    tied = base.get_input_embeddings().weight.data_ptr() == base.get_output_embeddings().weight.data_ptr()
    assert tied == (name != "llama")
    lm = LanguageModel(base, COUNTS, seed=3)
    matrices = {"new_input_rows": base.get_input_embeddings().weight, "new_head_rows": base.get_output_embeddings().weight}
    for key, matrix in matrices.items():
        rows = getattr(lm, key)
        assert rows.shape == (6, lm.width) and rows.dtype == torch.float32
        spread = float((rows - matrix.mean(0)).std() / matrix.std())
        assert 0.07 < spread < 0.13  # the mean row plus noise of a tenth of the matrix's spread
        assert torch.pdist(rows).min() > 0
    assert not torch.equal(lm.new_input_rows, lm.new_head_rows)
    assert torch.equal(lm.new_input_rows, LanguageModel(family(name), COUNTS, seed=3).new_input_rows)
    optimizer = torch.optim.AdamW([lm.new_input_rows, lm.new_head_rows], lr=0.1)
    ids = torch.tensor([[5, VOCABULARY, VOCABULARY + 1, VOCABULARY + 4]])
    positions = torch.arange(4)[None]
    first = (lm.new_input_rows.detach().clone(), lm.new_head_rows.detach().clone())
    for _ in range(2):
        hidden = run(lm.train(), ids[:, :-1], torch.zeros_like(ids[:, :-1]), positions[:, :-1])
        torch.nn.functional.cross_entropy(lm.logits(hidden)[0], ids[0, 1:]).backward()
        optimizer.step()
    assert not base.training  # its dropout stays off
    assert bool((lm.new_input_rows != first[0])[:2].any(1).all()) and bool((lm.new_head_rows != first[1]).any(1).all())
    after = base.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()) and after.keys() == before.keys()
    assert all(parameter.grad is None for parameter in base.parameters())


def test_what_a_model_cannot_do_is_said_in_one_line(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM, T5Config

    lm = LanguageModel(family("opt"), COUNTS)
    with pytest.raises(ValueError, match=r"a row has 65 tokens, the language model takes at most 64"):
        one_row(lm, [5] * 65)
    assert one_row(lm, [5] * 64).shape == (64, 32)  # the last position of OPT's table, two rows of which are an offset
    for odd in (VOCABULARY + 9, -1):
        with pytest.raises(ValueError, match=rf"token id {odd} is unknown: the language model has {VOCABULARY} tokens and 9 new ones"):
            lm.embed(torch.tensor([[1, odd]]))
    small = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match=r"gemma2 has final_logit_softcapping=30\.0"):
        LanguageModel(Gemma2ForCausalLM(Gemma2Config(**small, head_dim=4)), COUNTS)
    sliding = MistralForCausalLM(MistralConfig(**small))
    sliding.config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match="mistral has layers of the type sliding_attention"):
        LanguageModel(sliding, COUNTS)
    holder = torch.nn.Module()
    holder.config = T5Config()
    with pytest.raises(ValueError, match="t5 is an encoder-decoder model"):
        LanguageModel(holder, COUNTS)
    with pytest.raises(ValueError, match=r"lora\.targets is empty and the model type 't5' has no entry"):
        lora_targets(holder)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        load_lm(tmp_path, "int8", COUNTS)


def test_quantised_loading_needs_a_gpu_and_says_so(tmp_path, monkeypatch):
    """Without a CUDA device both widths are refused before anything is read; with one, missing bitsandbytes is named."""
    import importlib.util

    for width in ("4bit", "8bit"):
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match=f"quantize={width} needs a CUDA GPU, and there is none here"):
                load_lm(tmp_path, "bfloat16", COUNTS, quantize=width)
    with pytest.raises(ValueError, match="quantize '3bit' is unknown"):
        load_lm(tmp_path, "bfloat16", COUNTS, quantize="3bit")
    with pytest.raises(ValueError, match="quantize '3bit' is unknown"):
        check_model(dataclasses.replace(any_spec("shared"), quantize="3bit"))
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(ValueError, match="quantize=4bit needs bitsandbytes: pip install bitsandbytes"):
            load_lm(tmp_path, "bfloat16", COUNTS, quantize="4bit")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_quantised_loading_asks_transformers_for(dtype, monkeypatch):
    """On a machine that pretends to have a GPU and bitsandbytes: NF4 twice quantised, computing in the recipe's type, or LLM.int8; on the current device."""
    import importlib.util

    from transformers import BitsAndBytesConfig

    from mmcore.lm.language_model import _quantization

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object() if name == "bitsandbytes" else find_spec(name, *rest))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    four, eight = _quantization("4bit", dtype), _quantization("8bit", dtype)
    assert four.keys() == eight.keys() == {"quantization_config", "device_map"} and four["device_map"] == eight["device_map"] == {"": 3}
    config = four["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig) and config.load_in_4bit and not config.load_in_8bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, config.bnb_4bit_compute_dtype) == ("nf4", True, dtype)
    assert isinstance(eight["quantization_config"], BitsAndBytesConfig)
    assert eight["quantization_config"].load_in_8bit and not eight["quantization_config"].load_in_4bit
    assert _quantization("", dtype) == {}


def test_half_width_weights_are_computed_in_float32_where_the_processor_cannot_multiply_them(tmp_path, monkeypatch):
    """The same numbers, in the type that the device is quick in; the training of what stands beside them goes on in it."""
    from mmcore.runtime.devices import arithmetic

    base = family("llama").to(torch.bfloat16)
    base.save_pretrained(tmp_path)
    matrix = base.get_input_embeddings().weight.detach()
    for name in ("bfloat16", "float16"):
        assert arithmetic(name, "cuda:1") == name and arithmetic("float32", "cpu") == "float32"
        for native in (False, True):
            monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{'bf16' if name == 'bfloat16' else 'fp16'}_supported", lambda native=native: native)
            assert arithmetic(name, "cpu") == (name if native else "float32")
    for native, found in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        lm = load_lm(tmp_path, "bfloat16", COUNTS)
        assert lm.dtype == found and torch.equal(lm.base.get_input_embeddings().weight.bfloat16(), matrix)
        assert torch.equal(lm.base.get_input_embeddings().weight.float(), matrix.float())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert arithmetic("bfloat16", "cpu") == "float32"
