"""The model at toy size: where features go, what the new tokens own, LoRA files, the shape of packing."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from infra.fingerprint import to_plain
from mmcore.chat.chat import Chat
from mmcore.chat.rows import Turn
from mmcore.config import InputProjectorSpec, LoraSpec, ModelSpec, OutputProjectorSpec, SpecialTokens, model_spec_from_json
from mmcore.encoder_config import TimmImage, WhisperAudio
from mmcore.lm.language_model import LanguageModel
from mmcore.lm.lora import attach_lora, load_lora, lora_parameters, save_lora
from mmcore.model.any_model import AnyModel
from mmcore.projectors.inputs import build_input_projector
from mmcore.projectors.outputs import sinusoids
from mmcore.training.batching import collate
from mmcore.training.scoring import caption_nll
from mmcore.types import IGNORE
from pipelines.toys.parts import tiny_llama

SPEC = ModelSpec(
    dtype="float32",
    lora=LoraSpec(rank=2, alpha=4),
    tokens=SpecialTokens(image=4, video=0, audio=2),
    encoders=(("image", TimmImage(arch="x", width=12, grid=1)), ("audio", WhisperAudio(arch="whisper", width=6, tokens=1))),
    input_projector=InputProjectorSpec(init_std=0.02),
    output_projector=OutputProjectorSpec(width=16, layers=1, heads=2, ffn=32, queries=5, out=8),
)


@pytest.fixture
def model() -> AnyModel:
    base, tokenizer = tiny_llama(0)
    lm = LanguageModel(base.eval(), SPEC.tokens, SPEC.seed)
    return AnyModel(SPEC, lm, Chat(tokenizer, lm.table)).requires_grad_(False)


def features(num: int, length: int, width: int = 12) -> torch.Tensor:
    return torch.randn(num, length, width, generator=torch.Generator().manual_seed(num * 100 + length))


def test_new_rows_are_separate_parameters_and_differ(model):
    names = dict(model.lm.named_parameters())
    assert names["new_input_rows"].shape == names["new_head_rows"].shape == (6, 64)
    base = model.lm.base.get_input_embeddings().weight
    for name in ("new_input_rows", "new_head_rows"):
        rows = names[name]
        assert rows.dtype == torch.float32 and rows.data_ptr() != base.data_ptr()
        assert torch.cdist(rows, rows).add(torch.eye(6)).min() > 1e-3
        assert (rows - base.mean(0)).norm(dim=1).max() < base.norm(dim=1).mean()
    assert not torch.equal(names["new_input_rows"], names["new_head_rows"])
    assert base.shape[0] == model.lm.table.base  # the matrix has not grown


def test_logits_and_embeddings_of_the_new_tokens(model):
    ids = torch.tensor([[5, model.lm.table.base + 2, 7]])
    embeds = model.lm.embed(ids)
    assert torch.equal(embeds[0, 1], model.lm.new_input_rows[2]) and torch.equal(embeds[0, 0], model.lm.base.get_input_embeddings().weight[5])
    hidden = torch.randn(3, 64)
    logits = model.lm.logits(hidden)
    assert logits.shape == (3, model.lm.table.base + 6)  # placeholders have no column: they cannot be emitted
    assert torch.allclose(logits[:, -6:], hidden @ model.lm.new_head_rows.T)


def test_features_go_to_the_placeholders_in_order(model):
    rows = [model.chat.caption_row("image", 3, "a"), model.chat.caption_row("audio", 2, "bc"), model.chat.caption_row("image", 2, "d")]
    image, audio = features(2, 3), features(1, 2, 6)
    batch = collate(rows, {"image": (image, torch.tensor([3, 2]), [0, 2]), "audio": (audio, torch.tensor([2]), [1])})
    embeds = model.embed(batch.ids_BT, batch.media)
    holes = batch.ids_BT == model.lm.table.placeholder_id("image")
    expected, _ = model.input_projectors["image"](image, torch.tensor([3, 2]))
    assert torch.equal(embeds[holes], torch.cat([expected[0], expected[1, :2]]))
    holes = batch.ids_BT == model.lm.table.placeholder_id("audio")
    assert torch.equal(embeds[holes], model.input_projectors["audio"](audio, torch.tensor([2]))[0][0])


@pytest.mark.parametrize(("tokens", "given"), [(3, 2), (2, 3)])
def test_count_mismatch_raises_with_both_counts(model, tokens, given):
    batch = collate([model.chat.caption_row("image", tokens, "a")], {"image": (features(1, given), torch.tensor([given]), [0])})
    with pytest.raises(ValueError, match=f"row 0 has {tokens} <image> tokens but {given} image feature tokens"):
        model(batch)


def test_mismatch_that_cancels_over_rows_or_lacks_features_raises(model):
    rows = [model.chat.caption_row("image", 1, "a"), model.chat.caption_row("image", 3, "a")]
    with pytest.raises(ValueError, match="row 0 has 1 <image> tokens but 3"):
        model(collate(rows, {"image": (features(2, 3), torch.tensor([3, 1]), [0, 1])}))
    with pytest.raises(ValueError, match="4 <image> tokens but 0 image feature tokens"):
        model(collate(rows, {}))


def test_a_modality_without_an_encoder_is_named(model):
    batch = collate([model.chat.caption_row("video", 2, "a")], {"video": (features(1, 2), torch.tensor([2]), [0])})
    with pytest.raises(ValueError, match="this model has no video encoder: add it to the recipe's encoders"):
        model(batch)


def test_packing_equals_separate_sequences(model):
    """Shared prefix: the same loss and the same gradient into the picture as one sequence per question."""
    attach_lora(model.lm.base, SPEC.lora, 0)
    turns = [Turn("red?", "yes", 0.5), Turn("hue?", "dark red"), Turn("is there a circle?", "no", 2.0)]
    image = features(1, 3)
    for caption in (None, "a red dot"):
        results = []
        for groups in ([turns], [[turn] for turn in turns]):
            rows = [model.chat.question_row("image", 3, group, caption) for group in groups]
            pictures = image.repeat(len(rows), 1, 1).requires_grad_(True)
            batch = collate(rows, {"image": (pictures, torch.tensor([3] * len(rows)), list(range(len(rows))))})
            logits, targets = model.supervised(batch)
            where = batch.targets_BT != IGNORE
            nll = functional.cross_entropy(logits, targets, reduction="none") * batch.weights_BT[where]
            answers = batch.segments_BT[where] > 0
            loss = nll[answers].sum()
            loss.backward()
            results.append((float(loss), pictures.grad.sum(0)))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
        assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_padding_changes_nothing(model):
    long, short = model.chat.caption_row("image", 3, "a long caption of many bytes"), model.chat.caption_row("image", 2, "ab")
    image = features(2, 3)
    alone = model(collate([short], {"image": (image[1:, :2], torch.tensor([2]), [0])}))
    both = model(collate([long, short], {"image": (image, torch.tensor([3, 2]), [0, 1])}))
    assert torch.allclose(alone[0], both[1, : alone.shape[1]], atol=1e-5)
    nll, counts = caption_nll(model, image, torch.tensor([3, 2]), "image", ["a long caption of many bytes", "ab"])
    one, _ = caption_nll(model, image[1:], torch.tensor([2]), "image", ["ab"])
    assert counts.tolist() == [29, 3] and nll[1] == pytest.approx(float(one), rel=1e-5)


def test_lora_starts_at_nothing_and_loads_with_peft(model, tmp_path):
    from peft import PeftModel

    batch = collate([model.chat.question_row("text", 0, [Turn("hi", "hello")])], {})
    before = model(batch)
    attach_lora(model.lm.base, SPEC.lora, 0)
    assert torch.equal(model(batch), before)
    with pytest.raises(ValueError, match="already has"):
        attach_lora(model.lm.base, SPEC.lora, 0)
    assert all(p.dtype == torch.float32 for p in lora_parameters(model.lm.base).values())
    for i, parameter in enumerate(lora_parameters(model.lm.base).values()):
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(i))
    after = model(batch)
    assert not torch.allclose(after, before)
    save_lora(model.lm.base, SPEC.lora, tmp_path / "a")
    save_lora(model.lm.base, SPEC.lora, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "adapter_config.json").read_text()

    base, tokenizer = tiny_llama(0)
    peft_model = PeftModel.from_pretrained(base.eval(), str(tmp_path / "a"))
    logits = peft_model(input_ids=batch.ids_BT).logits
    assert torch.allclose(logits[0], model.lm.base_logits(after[0]), atol=1e-5)

    base, tokenizer = tiny_llama(0)
    lm = LanguageModel(base.eval(), SPEC.tokens)
    other = AnyModel(SPEC, lm, Chat(tokenizer, lm.table))
    attach_lora(other.lm.base, SPEC.lora, 5)
    load_lora(other.lm.base, tmp_path / "a")
    assert torch.equal(other(batch), after)
    base, _ = tiny_llama(0)
    attach_lora(base, LoraSpec(rank=3, alpha=4), 0)
    with pytest.raises(ValueError, match="the adapter has r=2, the model computes r=3"):
        load_lora(base, tmp_path / "a")


def test_input_projector_standardises_and_keeps_the_scale():
    projector = build_input_projector(InputProjectorSpec(init_std=0.1), 200, 50, seed=0)
    data = np.random.default_rng(0).normal(3.0, 7.0, (4000, 200)).astype(np.float32)
    data[:, 5] = 1.0  # a constant channel must not blow up
    projector.fit([data[:1000], data[1000:]])
    embeds, mask = projector(torch.from_numpy(data[None, :500]), torch.tensor([400]))
    assert float(embeds.std()) == pytest.approx(0.1, rel=0.1) and int(mask.sum()) == 400
    assert torch.allclose(projector.mean_E, torch.from_numpy(data.mean(0)), atol=1e-2) and projector.std_E[5] == 1.0
    with pytest.raises(ValueError, match="7 channels, the input projector takes 200"):
        projector(torch.zeros(1, 2, 7), torch.tensor([2]))
    with pytest.raises(ValueError, match="unknown"):
        build_input_projector(InputProjectorSpec(kind="none"), 2, 2, 0)


def test_output_projector_queries_differ_at_step_0(model):
    projector = model.output_projectors["image"]
    hidden = torch.randn(3, 4, 64)
    out = projector(hidden, torch.randn(4, 64))
    assert out.shape == (3, 5, 8)
    assert torch.pdist(projector.queries_QW).min() > 0 and torch.pdist(out[0]).min() > 0
    shuffled = projector(hidden[:, [1, 0, 2, 3]], torch.zeros(4, 64))
    assert not torch.allclose(shuffled, projector(hidden, torch.zeros(4, 64)))  # the order of the signal tokens matters
    projector.fit(torch.full((5, 8), 2.0), 0.5)
    assert torch.allclose(projector(hidden, torch.zeros(4, 64)), torch.full((3, 5, 8), 2.0), atol=0.1)  # untrained: the mean predictor
    with pytest.raises(ValueError, match="4 tokens, 3 hidden states"):
        projector(hidden[:, :3], torch.zeros(4, 64))
    assert sinusoids(5, 7).shape == (5, 7)


def test_spec_survives_json():
    assert model_spec_from_json(json.loads(json.dumps(to_plain(SPEC)))) == SPEC
    with pytest.raises(ValueError, match="not a model description"):
        model_spec_from_json({"dtype": "float32"})
