"""Behaviour of the weights steps: random parts from a seed, and the readers of foreign checkpoint formats."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.step import AnyloomError, StepContext
from infra.storage import digest_tree
from pipelines.weights import parts as weights
from pipelines.weights.config import WeightsConfig
from pipelines.weights.ct2 import read_model, whisper_encoder

PARTS = {"lm": "tiny-llama", "image": "test_efficientnet", "audio": "tiny-whisper", "text": "tiny-bert"}


def run(part: str, folder: Path, config: WeightsConfig) -> tuple[dict, Path]:
    output = folder / "output"
    output.mkdir(parents=True)
    ctx = StepContext(name=f"weights_{part}", config=config, inputs={}, sources={}, output=output, work=folder, stores=folder)
    return getattr(weights, f"run_{part}")(ctx), output


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_same_bytes_another_seed_other_bytes(part, tmp_path):
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name) + seed * 7)  # the caller's random state plays no part
        before = torch.get_rng_state()
        _, output = run(part, tmp_path / name, WeightsConfig(kind="random", arch=PARTS[part], seed=seed))
        assert torch.equal(before, torch.get_rng_state())
        digests.append(digest_tree(output))
    assert digests[0] == digests[1] != digests[2]
    assert json.loads((output / "licence.json").read_text())["name"].startswith("random weights")
    assert not [p for p in output.rglob("*") if p.suffix == ".json" and str(tmp_path) in p.read_text()]


def test_tiny_lm_loads_with_stock_classes_and_keeps_text(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, output = run("lm", tmp_path, WeightsConfig(kind="random", arch="tiny-llama"))
    tokenizer = AutoTokenizer.from_pretrained(output / "lm")
    text = 'Héllo  "wörld"\n\t🙂'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.convert_tokens_to_ids("<|im_start|>") and tokenizer.eos_token == "<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(output / "lm")
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], result["vocab"] == len(tokenizer) and 259)


def test_tiny_encoders_load_and_have_the_stated_width(tmp_path):
    import timm
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, BertModel, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    result, output = run("image", tmp_path / "i", WeightsConfig(kind="random", arch="test_efficientnet"))
    model = timm.create_model(json.loads((output / "encoder.json").read_text())["arch"])
    model.load_state_dict(load_file(output / "encoder" / "model.safetensors"), strict=True)
    assert model.eval().forward_features(torch.zeros(1, 3, 64, 64)).shape[1] == result["width"] == 256

    result, output = run("audio", tmp_path / "a", WeightsConfig(kind="random", arch="tiny-whisper"))
    extract = WhisperFeatureExtractor.from_pretrained(output / "encoder")
    mels = extract(np.zeros(16_000, dtype=np.float32), sampling_rate=16_000, return_tensors="pt").input_features
    assert WhisperEncoder.from_pretrained(output / "encoder")(mels).last_hidden_state.shape == (1, 1500, result["width"])

    result, output = run("text", tmp_path / "t", WeightsConfig(kind="random", arch="tiny-bert"))
    tokens = AutoTokenizer.from_pretrained(output / "encoder")("a red circle, and more", truncation=True, max_length=16, return_tensors="pt")
    assert tokens.input_ids.shape == (1, 16) and tokens.input_ids[0, 0] == 1 and tokens.input_ids[0, -1] == 2
    assert BertModel.from_pretrained(output / "encoder")(**tokens).last_hidden_state.shape == (1, 16, result["width"])


@pytest.mark.parametrize(
    ("part", "kind", "arch", "problem"),
    [
        ("lm", "borrowed", "tiny-llama", "kind is 'borrowed'"),
        ("lm", "random", "huge", "use tiny-llama"),
        ("image", "random", "no_such_net", "timm has no architecture"),
        ("audio", "pretrained", "whisper-large", "use whisper-tiny.en"),
    ],
)
def test_unknown_kind_or_arch_names_what_to_use(part, kind, arch, problem, tmp_path):
    with pytest.raises(AnyloomError, match=problem):
        run(part, tmp_path, WeightsConfig(kind=kind, arch=arch))


def test_renaming_in_order_is_strict():
    target = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    assert list(weights.renamed_in_order({"x.weight": torch.ones(2, 3), "x.bias": torch.ones(2)}, target)) == ["a.weight", "a.bias"]
    with pytest.raises(AnyloomError, match="1 tensors, the architecture 2"):
        weights.renamed_in_order({"x.weight": torch.ones(2, 3)}, target)
    with pytest.raises(AnyloomError, match=r"x\.weight \(3, 2\) does not fit a\.weight"):
        weights.renamed_in_order({"x.weight": torch.ones(3, 2), "x.bias": torch.ones(2)}, target)
    with pytest.raises(AnyloomError, match=r"x\.mean .* does not fit a\.bias"):
        weights.renamed_in_order({"x.weight": torch.ones(2, 3), "x.mean": torch.ones(2)}, target)


# ---- CTranslate2 ----------------------------------------------------------------------------------------------------


def ct2_file(path: Path, variables: dict[str, np.ndarray], aliases: dict[str, str] | None = None, version: int = 6, spec: str = "WhisperSpec") -> Path:
    kinds = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.int32): 3, np.dtype(np.float16): 4}

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    out = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape) + struct.pack("<BI", kinds[value.dtype], value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases or {})) + b"".join(string(a) + string(b) for a, b in (aliases or {}).items())
    path.write_bytes(out)
    return path


def encoder_variables(width: int = 4, layers: int = 2) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)

    def make(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float16)

    out = {"encoder/num_heads": np.array(2, np.int16), "encoder/position_encodings/encodings": make(6, width), "decoder/extra": make(3)}
    for conv, channels in (("conv1", 3), ("conv2", width)):
        out |= {f"encoder/{conv}/weight": make(width, channels, 3), f"encoder/{conv}/bias": make(width)}
    norms = ["encoder/layer_norm"]
    for i in range(layers):
        at = f"encoder/layer_{i}"
        norms += [f"{at}/self_attention/layer_norm", f"{at}/ffn/layer_norm"]
        fused = make(3 * width)
        fused[width : 2 * width] = 0
        out |= {f"{at}/self_attention/linear_0/weight": make(3 * width, width), f"{at}/self_attention/linear_0/bias": fused}
        out |= {f"{at}/self_attention/linear_1/weight": make(width, width), f"{at}/self_attention/linear_1/bias": make(width)}
        out |= {f"{at}/ffn/linear_0/weight": make(8, width), f"{at}/ffn/linear_0/bias": make(8)}
        out |= {f"{at}/ffn/linear_1/weight": make(width, 8), f"{at}/ffn/linear_1/bias": make(width)}
    for norm in norms:
        out |= {f"{norm}/gamma": make(width), f"{norm}/beta": make(width)}
    return out


def test_ct2_file_reads_back_with_aliases(tmp_path):
    variables = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "n": np.array(6, np.int16)}
    found = read_model(ct2_file(tmp_path / "m.bin", variables, {"b/weight": "a/weight"}))
    assert set(found) == {"a/weight", "n", "b/weight"} and int(found["n"]) == 6
    assert np.array_equal(found["b/weight"], variables["a/weight"])


def test_ct2_refuses_other_versions_specs_and_damaged_files(tmp_path):
    variables = {"a": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="binary version 5"):
        read_model(ct2_file(tmp_path / "m.bin", variables, version=5))
    with pytest.raises(ValueError, match="holds a TransformerSpec"):
        read_model(ct2_file(tmp_path / "m.bin", variables, spec="TransformerSpec"))
    whole = ct2_file(tmp_path / "m.bin", variables).read_bytes()
    for cut in range(0, len(whole), 3):
        (tmp_path / "cut.bin").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="truncated"):
            read_model(tmp_path / "cut.bin")
    (tmp_path / "long.bin").write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="1 bytes left"):
        read_model(tmp_path / "long.bin")


def test_whisper_from_ct2_splits_the_fused_projection(tmp_path):
    variables = encoder_variables()
    model = weights.whisper_encoder_from_ct2(ct2_file(tmp_path / "m.bin", variables))
    fused = torch.from_numpy(variables["encoder/layer_1/self_attention/linear_0/weight"].astype(np.float32))
    attention = model.layers[1].self_attn
    assert torch.equal(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]), fused)
    assert attention.k_proj.bias is None and model.config.encoder_layers == 2 and model.config.encoder_attention_heads == 2
    assert model(torch.zeros(1, 3, 12)).last_hidden_state.shape == (1, 6, 4)


def test_whisper_encoder_leaves_no_variable_behind_and_no_key_bias():
    variables = encoder_variables()
    with pytest.raises(ValueError, match=r"no layer of ours takes.*odd"):
        whisper_encoder(variables | {"encoder/odd": np.zeros(2, np.float16)})
    variables["encoder/layer_0/self_attention/linear_0/bias"] = np.ones(12, np.float16)
    with pytest.raises(ValueError, match="key projection has a bias"):
        whisper_encoder(variables)
