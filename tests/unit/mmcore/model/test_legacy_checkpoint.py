"""The map of the public checkpoint: complete both ways at full size, and a toy file in that layout computes what the old layout computes."""

import collections
import dataclasses
import json

import pytest
import torch
from torch import nn

from infra.step import AnyloomError
from mmcore.config import InputProjectorSpec, LoraSpec, ModelSpec, OutputProjectorSpec, SpecialTokens
from mmcore.encoder_config import encoder_config
from mmcore.model.any_model import load_model, output_projectors
from mmcore.model.legacy_checkpoint import WRAPPERS, LmShape, import_checkpoint, legacy_spec, links, read_checkpoint, to_ours, to_theirs
from pipelines.toys.parts import lm_tokenizer

OUT = OutputProjectorSpec(kind="nextgpt_legacy", width=16, layers=2, heads=2, ffn=64, queries=6, out=10)
TOY = ModelSpec(
    dtype="float32",
    encoders=tuple((modality, encoder_config(f"imagebind_{modality}", {"arch": "x", "width": 12})) for modality in ("image", "video", "audio")),
    input_projector=InputProjectorSpec(kind="linear"),
    output_projector=OUT,
    output_projectors=(("audio", dataclasses.replace(OUT, queries=1, out=5)),),
    tokens=SpecialTokens(image=4, video=6, audio=3),
    lora=LoraSpec(rank=3, alpha=3, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
)
LM = LmShape(width=32, key_width=16, layers=2, vocabulary=259)


def values(map_, seed: int = 0) -> dict[str, torch.Tensor]:
    """A file's tensors, random; written as the training wrote them: fp16 parameters that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    return collections.OrderedDict((link.name, nn.Parameter((0.3 * torch.randn(link.shape, generator=generator)).half())) for link in map_)


def llama(vocabulary: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def lm_dir(tmp_path):
    torch.manual_seed(0)
    llama(LM.vocabulary).save_pretrained(tmp_path / "vicuna")
    lm_tokenizer().save_pretrained(tmp_path / "vicuna")
    return tmp_path / "vicuna"


def test_the_full_map_has_the_published_names_and_shapes():
    shapes = {link.name: link.shape for link in links(legacy_spec(), LmShape())}
    lora = [name for name in shapes if ".lora_" in name]
    assert len(lora) == 32 * 4 * 2 and sum(torch.Size(shapes[name]).numel() for name in lora) == 33_554_432
    assert shapes["llama_model.base_model.model.model.layers.31.self_attn.o_proj.lora_B.default.weight"] == (4096, 32)
    assert shapes["llama_model.base_model.model.model.embed_tokens.weight"] == (32038, 4096)  # as users' error messages show it
    assert shapes["llama_model.base_model.model.lm_head.weight"] == (32038, 4096)
    assert shapes["llama_proj.weight"] == (4096, 1024) and shapes["llama_proj.bias"] == (4096,)
    for name, queries, out in (("gen_text_hidden_fcs", 77, 768), ("gen_text_hidden_fcs_video", 77, 1024), ("gen_text_hidden_fcs_audio", 1, 512)):
        own = {rest: shape for full, shape in shapes.items() for head, _, rest in (full.partition(f"{name}.0."),) if head == "" and rest}
        transformer = nn.Transformer(512, 4, 4, 4, 2048, dropout=0.0, batch_first=True, norm_first=True, device="meta")
        expected = {f"tfm.{key}": tuple(value.shape) for key, value in transformer.state_dict().items()}
        expected |= {"fc.weight": (512, 4096), "fc.bias": (512,), "model.weight": (out, 512), "model.bias": (out,), "query_embs": (1, queries, 512)}
        assert own == expected
    assert len(shapes) == 256 + 2 + 2 + 3 * len(expected)


def test_the_full_map_fills_our_full_size_model_and_nothing_else():
    spec, lm = legacy_spec(), LmShape()
    ours = {part.name: part.shape for link in links(spec, lm) for part in link.parts}
    with torch.device("meta"):
        outputs = output_projectors(spec, lm.width)
    fitted = ("mean_QC", "scale", "in_mean_SD", "in_std_SD")  # 0 and 1 in the old code
    expected = {f"output_projectors.{name}": tuple(value.shape) for name, value in outputs.state_dict().items() if not name.endswith(fitted)}
    for modality in ("image", "video", "audio"):
        expected |= {f"input_projectors.{modality}.proj.weight": (4096, 1024), f"input_projectors.{modality}.proj.bias": (4096,)}
    expected |= {"lm.new_input_rows": (36, 4096), "lm.new_head_rows": (36, 4096)}
    expected |= {"lm.base.model.embed_tokens.weight": (32002, 4096), "lm.base.lm_head.weight": (32002, 4096)}
    for i in range(32):
        for name in "qkvo":
            path = f"lm.base.model.layers.{i}.self_attn.{name}_proj"
            expected |= {f"{path}.lora_A.default.weight": (32, 4096), f"{path}.lora_B.default.weight": (4096, 32)}
    assert ours == expected


def test_every_row_of_theirs_has_a_place_and_the_way_back_is_exact():
    map_ = links(TOY, LM)
    for link in map_:
        rows = sorted({row for part in link.parts for row in range(part.start, part.stop)})
        assert rows == list(range(link.shape[0])), link.name
    state = {name: value.detach() for name, value in values(map_).items()}
    ours = to_ours(state, map_)
    back = to_theirs(ours, map_)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) and back[name].dtype == torch.float16 for name in state)
    again = to_ours(back, map_)
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours)
    ours["input_projectors.video.proj.bias"] = ours["input_projectors.video.proj.bias"] + 1
    with pytest.raises(AnyloomError, match=r"input_projectors\.(image|video)\.proj\.bias differs .* one llama_proj\.bias for both"):
        to_theirs(ours, map_)


def test_what_does_not_fit_fails_by_name(tmp_path, lm_dir):
    map_ = links(TOY, LM)
    state = values(map_)

    def refused(match: str, content) -> None:
        torch.save(content, tmp_path / "pytorch_model.pt")
        with pytest.raises(AnyloomError, match=match) as caught:
            import_checkpoint(tmp_path / "pytorch_model.pt", lm_dir, tmp_path / "out", TOY)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused(r"pytorch_model.pt lacks gen_text_hidden_fcs\.0\.fc\.weight: is it", {k: v for k, v in state.items() if k != "gen_text_hidden_fcs.0.fc.weight"})
    refused(r"lacks llama_proj\.bias and 1 more", {k: v for k, v in state.items() if not k.startswith("llama_proj")})
    refused(r"has the unknown visual_encoder\.x", {**state, "visual_encoder.x": torch.zeros(2)})
    matrix = "llama_model.base_model.model.lm_head.weight"
    refused(r"lm_head\.weight has shape \(276, 32\), the layout says \(274, 32\)", {**state, matrix: torch.zeros(276, 32)})
    refused("not a checkpoint of plain tensors", {"llama_proj.weight": collections.Counter, "x": Harmful()})
    refused("something else than named tensors", {"llama_proj.weight": 3})
    with pytest.raises(AnyloomError, match="is no file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"start from legacy_spec"):
        links(dataclasses.replace(TOY, output_projectors=(("audio", OutputProjectorSpec(kind="linear")),)), LM)
    tokenizer = lm_tokenizer()
    tokenizer.add_tokens(["<Img>"])
    tokenizer.save_pretrained(lm_dir)
    refused("knows <Img> or </Img> already", state)
    config = json.loads((lm_dir / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (lm_dir / "config.json").write_text(json.dumps(config | own))
    refused(r"vicuna: vicuna/config\.json names code of its own \(auto_map\), which is never run here", state)


def test_an_import_that_is_stopped_half_way_leaves_nothing(tmp_path, lm_dir, monkeypatch):
    torch.save(values(links(TOY, LM)), tmp_path / "pytorch_model.pt")

    def stopped(*_):
        assert [path.name for path in tmp_path.glob(".staging-*/*")] == ["lm"]
        raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("mmcore.model.legacy_checkpoint.save_lora", stopped)
        with pytest.raises(KeyboardInterrupt):
            import_checkpoint(tmp_path / "pytorch_model.pt", lm_dir, tmp_path / "out", TOY)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    import_checkpoint(tmp_path / "pytorch_model.pt", lm_dir, tmp_path / "out", TOY)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lm", "lora", "tensors.safetensors"]
    with pytest.raises(AnyloomError, match="out exists already: name a new directory"):
        import_checkpoint(tmp_path / "pytorch_model.pt", lm_dir, tmp_path / "out", TOY)


class Harmful:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_an_imported_toy_checkpoint_computes_what_the_old_layout_computes(tmp_path, lm_dir):
    """Reference: one LM with the file's whole matrices and peft's own LoRA, nn.Linear in, nn.Transformer out, as the old code puts them together."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    map_ = links(TOY, LM)
    state = values(map_)
    torch.save(state, tmp_path / "pytorch_model.pt")
    assert import_checkpoint(tmp_path / "pytorch_model.pt", lm_dir, tmp_path / "out", TOY) == LM
    model = load_model(TOY, tmp_path / "out" / "lm", (tmp_path / "out",)).eval()
    wide = {name: value.detach().float() for name, value in state.items()}

    base = AutoModelForCausalLM.from_pretrained(lm_dir, attn_implementation="eager", dtype=torch.float32)
    base.resize_token_embeddings(LM.rows + 13, mean_resizing=False)
    reference = get_peft_model(base, LoraConfig(r=3, lora_alpha=3, target_modules=list(TOY.lora.targets), task_type="CAUSAL_LM")).eval()
    prefix = "llama_model."
    missing, unexpected = reference.load_state_dict({k.removeprefix(prefix): v for k, v in wide.items() if k.startswith(prefix)}, strict=False)
    assert not unexpected and not any("lora" in name or "embed" in name or "lm_head" in name for name in missing)

    assert model.chat.tokenizer.convert_tokens_to_ids(list(WRAPPERS)) == [259, 260]
    table = model.lm.table
    assert table.base == LM.rows and table.signal_ids("image") == tuple(range(261, 265)) and table.signal_ids("audio") == (271, 272, 273)
    ids = torch.tensor([[5, 259, 70, 260, 33, *table.signal_ids("image"), 9, *table.signal_ids("audio")]])
    item = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds = reference.get_input_embeddings()(ids)
        embeds[:, 2] = nn.functional.linear(item[:, 0], wide["llama_proj.weight"], wide["llama_proj.bias"])
        inner = reference.base_model.model
        expected = inner.model(inputs_embeds=embeds).last_hidden_state
        ours = model.lm.embed(ids)
        ours[:, 2] = model.input_projectors["image"](item, torch.tensor([1]))[0][:, 0]
        assert torch.allclose(ours, embeds, atol=1e-6)
        length = ids.shape[1]
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        hidden = model.lm.hidden(ours, mask, torch.arange(length)[None])
        assert torch.allclose(hidden, expected, atol=1e-4)
        assert torch.allclose(model.lm.logits(hidden[0]), inner.lm_head(expected)[0], atol=1e-4)
        for modality, name, where in (("image", "gen_text_hidden_fcs", slice(5, 9)), ("audio", "gen_text_hidden_fcs_audio", slice(10, 13))):
            own = {key.removeprefix(f"{name}.0."): value for key, value in wide.items() if key.startswith(f"{name}.0.")}
            transformer = nn.Transformer(16, 2, 2, 2, 64, dropout=0.0, batch_first=True, norm_first=True).eval()
            transformer.load_state_dict({key.removeprefix("tfm."): value for key, value in own.items() if key.startswith("tfm.")})
            states = nn.functional.linear(expected[:, where] + embeds[:, where], own["fc.weight"], own["fc.bias"])
            out = nn.functional.linear(transformer(states, own["query_embs"]), own["model.weight"], own["model.bias"])
            assert torch.allclose(model.conditioning(modality, hidden[:, where]), out, atol=1e-4)
            assert float(out.std()) > 0.01
