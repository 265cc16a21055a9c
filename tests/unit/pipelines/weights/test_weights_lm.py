"""A language model of the user's own: its bytes as they are, opened by the loader that training uses, and one clear line for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from data_steps import run_step
from safetensors.torch import load_file, save_file
from toy_lms import byte_tokenizer, family

from infra.step import AnyloomError
from mmcore.config import SpecialTokens
from mmcore.lm.language_model import load_lm
from pipelines.dag.build import build
from pipelines.recipes import get_recipe

CHAT = {"chat": "plain"}


def directory(folder: Path, name: str, **options: object) -> Path:
    """A model of toy_lms with a byte tokenizer that fits its 97 rows only if they are more; saved as its publisher would."""
    model = family(name)
    tokenizer = byte_tokenizer((), "<s>", "</s>")
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    model.config._name_or_path = "/somewhere/else"
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("not read")
    return folder


def take(root: Path, path: Path, name: str = "taken", **overrides: object):
    step = build(get_recipe("tiny", CHAT | {key.replace("__", "."): value for key, value in overrides.items()}), own_weights={"lm": path})["weights_lm"]
    return run_step(root, name, step.run, step.config, {}, sources=dict(step.sources)), root / name


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt", "gpt2"])
def test_it_is_taken_in_as_it_is_and_opened(name, tmp_path):
    given = directory(tmp_path / "given", name)
    result, output = take(tmp_path, given, lora__targets=[])
    assert (output / "lm" / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()
    assert "somewhere" not in (output / "lm" / "config.json").read_text() and not (output / "lm" / "README.md").exists()
    lm = load_lm(output / "lm", "float32", SpecialTokens(image=2, video=0, audio=0))
    assert (result["width"], result["vocab"]) == (lm.width, lm.table.base)
    assert result["parameters"] == sum(p.numel() for p in lm.base.parameters()) and result["licence"] == "Apache-2.0"


def test_shards_count_and_a_known_name_has_its_licence(tmp_path):
    given = directory(tmp_path / "given", "llama", max_shard_size="20KB")
    assert len(list(given.glob("model-*-of-*.safetensors"))) > 1
    _, output = take(tmp_path, given, weights__lm="vicuna-7b-v1.5")
    licence = json.loads((output / "licence.json").read_text())
    assert licence["licence"] == "Llama 2 Community License" and "not read from the files" in licence["source"]
    load_lm(output / "lm", "float32", SpecialTokens())
    next(iter(sorted(given.glob("model-*.safetensors")))).unlink()
    with pytest.raises(AnyloomError, match=r"given: the weights lack .*with every shard"):
        take(tmp_path, given, "short", weights__lm="mine")


def test_what_does_not_fit_is_one_clear_line(tmp_path):
    given = directory(tmp_path / "given", "llama")
    weights, config = given / "model.safetensors", given / "config.json"
    state, described, tries = load_file(weights), json.loads(config.read_text()), iter(range(99))

    def refused(match: str, **overrides):
        with pytest.raises(AnyloomError, match=match) as caught:
            take(tmp_path, given, f"try{next(tries)}", **overrides)
        assert "\n" not in str(caught.value)

    refused(r"tokenizer cannot be used with chat=chatml: .*lacks <\|im_end\|>", chat="chatml")
    refused(r"lora.targets names c_attn, and no layer of the language model is called so", lora__targets=["c_attn"])
    save_file({name: value for name, value in state.items() if "layers.1.mlp" not in name}, weights)
    refused(r"the weights lack model\.layers\.1\.mlp\.down_proj\.weight and 2 more; are they those of this config.json")
    save_file(state | {"model.norm.weight": torch.zeros(5)}, weights)
    refused(r"the weights have model\.norm\.weight of shape \(5,\), config\.json says \(32,\)")
    weights.write_bytes(weights.read_bytes()[:50])
    refused(r"model\.safetensors: no safetensors file: ")
    save_file(state, weights)
    config.write_text(json.dumps({"model_type": "t5"}))
    refused(r"not the directory of a language model that can be used here: t5 is an encoder-decoder model")
    config.write_text(json.dumps({"model_type": "clip"}))
    refused(r"not the directory of a language model that can be used here: ")
    config.write_text(json.dumps(described))
    (given / "tokenizer.json").rename(given / "gone")
    refused(r"--weights lm=.*given: the directory has no tokenizer.json")
    (given / "gone").rename(given / "tokenizer.json")
    torch.save(load_file(weights), given / "pytorch_model.bin")
    weights.unlink()
    refused(r"the directory has no model.safetensors; its .bin files are pickles: load the model with transformers and save_pretrained it anew")
    config.unlink()
    refused(r"a language model is a transformers directory, and this has no config.json")


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    given, ran = directory(tmp_path / "given", "llama"), tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether to run it"))
    (given / "modeling_own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    described = json.loads((given / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}}
    (given / "config.json").write_text(json.dumps({**described, **own, "model_type": "own", "architectures": ["OwnModel"]}))
    refusal = r"/config\.json names code of its own \(auto_map\), which is never run here: take a model of a family that transformers knows$"
    with pytest.raises(AnyloomError, match=rf"given: not the directory of a language model that can be used here: lm{refusal}") as caught:
        take(tmp_path, given)
    with pytest.raises(ValueError, match=rf"^given{refusal}") as also:
        load_lm(given, "float32", SpecialTokens())
    assert "\n" not in str(caught.value) + str(also.value)

    (given / "config.json").write_text(json.dumps({**described, **own}))  # a family that transformers knows: its own classes are taken
    tokenizer = json.loads((given / "tokenizer_config.json").read_text())
    (given / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "auto_map": {"AutoTokenizer": ["modeling_own.OwnTokenizer", None]}}))
    _, output = take(tmp_path, given, "known")
    assert type(load_lm(output / "lm", "float32", SpecialTokens()).base).__module__.startswith("transformers.") and not ran.exists()
