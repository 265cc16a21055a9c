"""Weights of somebody else: adapters that PEFT saved with other settings, values that are not finite, quantised models. All are refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_lms import family

from mmcore.config import LoraSpec, SpecialTokens
from mmcore.lm.language_model import load_lm
from mmcore.lm.lora import attach_lora, load_lora, lora_parameters, save_lora

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SPEC = LoraSpec(rank=4, alpha=8)
COUNTS = SpecialTokens(image=4, video=0, audio=2)
IDS = torch.arange(10, 30)[None]

FOREIGN = {
    "alpha": ({"lora_alpha": 64}, "the adapter has lora_alpha=64, the model computes lora_alpha=8"),
    "rank": ({"r": 8}, "the adapter has r=8, the model computes r=4"),
    "rslora": ({"use_rslora": True}, "use_rslora=True, the model computes use_rslora=False"),
    "dora": ({"use_dora": True}, "use_dora=True, the model computes use_dora=False"),
    "bias": ({"bias": "lora_only"}, "bias=lora_only, the model computes bias=none"),
    "bias of LoRA": ({"lora_bias": True}, "lora_bias=True, the model computes lora_bias=False"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save=lm_head, the model computes modules_to_save=None"),
    "fewer targets": ({"target_modules": ["q_proj", "v_proj"]}, "target_modules=q_proj,v_proj, the model computes target_modules=down_proj,gate_proj"),
    "ranks by name": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    "alphas by name": ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern=.*64"),
    "some layers": ({"layers_to_transform": [0]}, "layers_to_transform=0"),
    "token rows": ({"trainable_token_indices": [3]}, "trainable_token_indices=3"),
    "changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
}


def adapted(**changes):
    """A model with PEFT's own adapter of random values."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(family("llama"), LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": LAYERS, "r": 4, "lora_alpha": 8, **changes})).eval()
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(i))
    return model


def attached():
    base = family("llama")
    attach_lora(base, SPEC, 0)
    return base


@pytest.mark.parametrize("kind", list(FOREIGN))
def test_an_adapter_that_computes_something_else_is_refused_with_both_values(kind, tmp_path):
    changes, message = FOREIGN[kind]
    adapted(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_lora(attached(), tmp_path)
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.3}, {"init_lora_weights": "gaussian"}, {"target_modules": r".*\.(q|k|v|o|gate|up|down)_proj"}])
def test_an_adapter_of_pefts_own_with_the_models_settings_computes_what_peft_does(changes, tmp_path):
    theirs = adapted(**changes)
    theirs.save_pretrained(tmp_path)
    ours = attached()
    load_lora(ours, tmp_path)
    with torch.no_grad():
        assert torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-5)
        assert not torch.allclose(ours(IDS).logits, family("llama")(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("value", [{"velora_config": {"x": 1}}, {"a_setting_of_tomorrow": True}])
def test_a_setting_that_is_not_known_here_is_refused(value, tmp_path):
    save_lora(attached(), SPEC, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | value))
    with pytest.raises(ValueError, match=f"the adapter has {next(iter(value))}="):
        load_lora(attached(), tmp_path)


def test_an_adapter_without_its_settings_is_refused(tmp_path):
    save_lora(attached(), SPEC, tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in settings.items() if key != "lora_alpha"}))
    with pytest.raises(ValueError, match=r"lacks lora_alpha \(the model has 8\)"):
        load_lora(attached(), tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        load_lora(attached(), tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_fan_in_fan_out_is_taken_where_the_layers_are_so(name, tmp_path):
    base = family(name)
    spec = LoraSpec(rank=4, alpha=8, targets=())
    attach_lora(base, spec, 0)
    save_lora(base, spec, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))
    if name == "gpt2":
        load_lora(base, tmp_path)
    else:
        with pytest.raises(ValueError, match="fan_in_fan_out=True, the model computes fan_in_fan_out=False"):
            load_lora(base, tmp_path)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_the_tensors_name(odd, tmp_path):
    base = attached()
    name = list(lora_parameters(base))[3]
    base.get_parameter(name).data[1, 2] = odd
    save_lora(base, SPEC, tmp_path / "lora")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: the weights base_model\.model\..*lora_[AB]\.weight hold NaN or infinite"):
        load_lora(attached(), tmp_path / "lora")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = family("llama").to(dtype)
        model.model.layers[1].mlp.up_proj.weight.data[3, 3] = odd
        model.save_pretrained(tmp_path / "lm")
        with pytest.raises(ValueError, match=r"the weights model\.layers\.1\.mlp\.up_proj\.weight hold NaN or infinite"):
            load_lm(tmp_path / "lm", str(dtype).removeprefix("torch."), COUNTS)


def test_stage_tensors_that_are_not_finite_are_refused_by_name(tmp_path):
    from mmcore.model.any_model import load_tensors

    module = torch.nn.Linear(3, 2)
    save_file({"weight": torch.full((2, 3), float("nan")), "bias": torch.zeros(2)}, tmp_path / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"tensors\.safetensors: the weights weight hold NaN"):
        load_tensors(module, tmp_path / "tensors.safetensors")
    assert bool(torch.isfinite(module.weight).all()) and load_file(tmp_path / "tensors.safetensors")["bias"].sum() == 0


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_a_model_that_somebody_has_quantised_is_refused_by_the_field(method, tmp_path):
    family("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": method, "bits": 4}}))
    with pytest.raises(ValueError, match=rf"config\.json has a quantization_config \({method}\)"):
        load_lm(tmp_path, "float32", COUNTS)
