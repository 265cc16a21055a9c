"""LoRA shared or per modality: stock peft is the reference, packing and batching change nothing, stages change what they declare, routes follow the media."""

import dataclasses
import re

import pytest
import torch
from toy_any import MODES, STAGES, any_model, any_spec, chat_data, checksums, emitting, randomise, signal_side
from toy_model import Features, watched

from mmcore.chat.places import asked
from mmcore.chat.rows import RowBuilder, Turn
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import LoraSpec, check_model
from mmcore.inference.conversation import Conversation
from mmcore.inference.decoding import PackedCache, Stream, written
from mmcore.inference.generator import Generator
from mmcore.lm.language_model import packed_mask
from mmcore.lm.lora import attach_lora, load_lora, lora_parameters, save_lora
from mmcore.lm.lora_layers import _forward_any, _forward_plain, routed, routing_of
from mmcore.model.any_model import LORA, load_model
from mmcore.training.batching import collate
from mmcore.training.optimizer import FlatAdamW
from mmcore.training.stages import select_trainable
from mmcore.types import MediaBatch, Question, TextPiece
from pipelines.toys.parts import tiny_llama
from pipelines.training.loop import run_stage

ATOL = 1e-4
ADAPTERS = ("text", "image", "video", "audio")
LAYERS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


def features(modality: str, num: int = 1, length: int = 3) -> torch.Tensor:
    return torch.randn(num, length, 12, generator=torch.Generator().manual_seed(10 * MEDIA.index(modality) + num))


def batch_of(chat, modalities):
    """One row of two questions per modality (text: no medium)."""
    turns = [Turn("hue?", "red"), Turn("is there a dot?", "no")]
    rows = [chat.question_row(modality, 0 if modality == "text" else 3, turns) for modality in modalities]
    media = {}
    for modality in MEDIA:
        where = [i for i, other in enumerate(modalities) if other == modality]
        if where:
            media[modality] = (features(modality).repeat(len(where), 1, 1), torch.tensor([3] * len(where)), where)
    return collate(rows, media)


@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch_equals_stock_peft_on_each_sample_alone(mode, tmp_path):
    """What save_lora wrote opens with PeftModel, and with a sample's adapters switched on peft computes that sample's logits."""
    from peft import PeftModel

    model = any_model(mode)
    save_lora(model.lm.base, model.spec.lora, tmp_path)
    names = ADAPTERS if mode == "per_modality" else ("default",)
    folders = {name: tmp_path / name if mode == "per_modality" else tmp_path for name in names}
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")) == sorted(
        (folder / "adapter_model.safetensors").relative_to(tmp_path).as_posix() for folder in folders.values()
    )
    peft = PeftModel.from_pretrained(tiny_llama(0)[0].eval(), str(folders[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(str(folders[name]), adapter_name=name)
    order = ["image", "text", "audio", "video", "image"]
    hidden_BTD = model(batch_of(model.chat, order))
    for row, modality in enumerate(order):
        alone = batch_of(model.chat, [modality])
        peft.base_model.set_adapter(list(names[:1]) if mode == "shared" or modality == "text" else ["text", modality])
        length = alone.ids_BT.shape[1]
        reference = peft(
            inputs_embeds=model.embed(alone.ids_BT, alone.media),
            attention_mask=packed_mask(alone.segments_BT, alone.segments_BT, torch.float32),
            position_ids=alone.positions_BT,
        ).logits
        assert torch.allclose(model.lm.base_logits(hidden_BTD[row, :length]), reference[0], atol=ATOL), (row, modality)
        assert torch.allclose(model(alone)[0], hidden_BTD[row, :length], atol=ATOL)


def test_segments_of_one_row_are_routed_each_by_its_own_media():
    """Three samples packed into one row (no shared prefix): hidden states and gradients of each alone."""
    model = any_model("per_modality")
    shown = {"image": [("image", 3)], "audio": [("audio", 3)], "text": []}
    inputs = {modality: features(modality).requires_grad_(True) for modality in ("image", "audio")}

    def media(rows):
        return {m: (inputs[m], torch.tensor([3]), [row]) for m, row in rows.items()}

    builder, alone = RowBuilder(), {}
    for number, (modality, counts) in enumerate(shown.items()):
        ids = model.chat.question_prompt(asked(f"what {number}?", counts))
        builder.add(ids, number + 1)
        single = RowBuilder()
        single.add(ids, 1)
        alone[modality] = model(collate([single.row()], media({modality: 0} if counts else {})))[0]
    batch = collate([builder.row()], media({"image": 0, "audio": 0}))
    packed = model(batch)[0]
    for number, (_, states) in enumerate(alone.items()):
        assert torch.allclose(packed[batch.segments_BT[0] == number + 1], states, atol=ATOL)
    # weighted: the sum of squares of states behind a norm hardly depends on anything, and its gradient is rounding
    weights = [torch.randn(states.shape, generator=torch.Generator().manual_seed(number)) for number, states in enumerate(alone.values())]
    found = [packed[batch.segments_BT[0] == number + 1] for number in range(len(alone))]
    gradient = torch.autograd.grad(sum((f * w).sum() for f, w in zip(found, weights, strict=True)), list(inputs.values()))
    expected = torch.autograd.grad(sum((s * w).sum() for s, w in zip(alone.values(), weights, strict=True)), list(inputs.values()))
    assert all(float(one.abs().max()) > 1e-2 for one in expected)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(gradient, expected, strict=True))
    bad = RowBuilder()
    bad.add(model.chat.open(), 0)
    bad.add([model.lm.table.placeholder_id("image")] * 3, 1)
    with pytest.raises(ValueError, match="row 0: a segment brings <image>, which its shared prefix does not have"):
        model(collate([bad.row()], media({"image": 0})))


def test_routes_multiply_the_low_rank_part_and_gradients_are_those_of_autograd():
    """The hand-written backward of plain layers, with bias and routes, against autograd through the other forward."""
    base, _ = tiny_llama(0)
    for layer in base.model.layers:
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(3)))
    attach_lora(base, LoraSpec(mode="per_modality", rank=3, alpha=6), 0, ("image",))
    randomise(base)
    layer = base.model.layers[0].self_attn.q_proj
    parameters = [part[name].weight for part in (layer.lora_A, layer.lora_B) for name in ("text", "image")]
    for parameter in parameters:
        parameter.requires_grad_(True)
    routes = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    results = []
    for forward in (_forward_plain, _forward_any):
        x = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(4)).requires_grad_(True)
        with routed(base, routes):
            y = forward(layer, x)
        results.append([y, *torch.autograd.grad((y * torch.arange(64.0)).sum(), [x, *parameters])])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(*results, strict=True))
    assert torch.allclose(results[0][0][1, 0], layer.base_layer(torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(4)))[1, 0], atol=1e-5)
    with pytest.raises(ValueError, match=r"per modality \(text, image\): the pass needs routes of 2, none given"):
        with routed(base, None):
            pass
    assert routing_of(base).mask_PAR is None


def test_every_adapter_has_a_gradient_in_every_step_whatever_the_batch_holds():
    model = any_model("per_modality")
    config = STAGES["stage3"]
    optimizer = FlatAdamW(select_trainable(model, config), config)
    logits, targets = model.supervised(batch_of(model.chat, ["image", "text"]))
    torch.nn.functional.cross_entropy(logits, targets).backward()
    norms = {name: 0.0 for name in ADAPTERS}
    for name, parameter in lora_parameters(model.lm.base).items():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        norms[name.split(".")[-2]] += float(parameter.grad.norm())
    assert norms["text"] > 0 and norms["image"] > 0 and norms["video"] == norms["audio"] == 0.0
    assert bool(torch.isfinite(optimizer.gradient).all())


@pytest.mark.parametrize("mode", MODES)
def test_shares_of_ranks_add_up_to_the_whole_step(mode):
    gradients = []
    for world in (1, 3):
        model = any_model(mode)
        data, config = chat_data(STAGES["stage3"], model), STAGES["stage3"]
        optimizer = FlatAdamW(select_trainable(model, config), config)
        for rank in range(world):
            for loss in data.losses(model, 0, rank, world):
                loss.total.backward()
        gradients.append(optimizer.gradient.clone())
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def declared(mode: str, stage: str, train_projectors: bool) -> set[str]:
    """Names of the tensors that a stage may change, spelled out."""
    projectors = {f"input_projectors.{m}.proj.{part}" for m in MEDIA for part in ("weight", "bias")}
    if stage == "stage1":
        return projectors
    adapters = ADAPTERS if mode == "per_modality" else ("default",)
    lora = {
        f"lm.base.model.layers.{layer}.{block}.{name}.lora_{part}.{adapter}.weight"
        for layer in range(2)
        for block, names in LAYERS.items()
        for name in names
        for part in "AB"
        for adapter in adapters
    }
    return lora | {"lm.new_input_rows", "lm.new_head_rows"} | (projectors if train_projectors else set())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("stage", "projectors"), [("stage1", True), ("stage3", True), ("stage3", False)])
def test_a_stage_changes_exactly_the_declared_tensors(mode, stage, projectors, tmp_path):
    model = any_model(mode, lora=stage == "stage1")
    if stage == "stage3":
        model.add_lora()
    before = checksums(model)
    _, log, _ = run_stage(dataclasses.replace(STAGES[stage], train_projectors=projectors), model, chat_data(STAGES[stage], model), tmp_path)
    after = checksums(model)
    assert all(0 < row[log.columns.index("gradient_norm")] < float("inf") for row in log.rows)
    assert {name for name in before if before[name] != after[name]} == declared(mode, stage, projectors)


@pytest.mark.parametrize("mode", MODES)
def test_stage_2_changes_output_projectors_and_head_rows_only(mode, tmp_path):
    model = any_model(mode)
    whole = checksums(model)
    side, data = signal_side(model)
    before = checksums(side)
    _, log, _ = run_stage(STAGES["stage2"], side, data, tmp_path)
    after = checksums(side)
    assert all(0 < row[log.columns.index("gradient_norm")] < float("inf") for row in log.rows)
    changed = {name for name in before if before[name] != after[name]}
    projector = {f"output_projectors.image.{name}" for name, _ in model.output_projectors["image"].named_parameters()}
    assert changed == projector | {"lm.new_head_rows"}
    assert checksums(model) == whole


def conversation(model, pieces):
    """Hidden states of turns (ids, media) in one row: appended one after the other, and in one go; and the cache that grew."""
    grown, whole = PackedCache(model, 1), PackedCache(model, 1)
    states, position = [], 0
    for ids, media in pieces:
        states.append(grown.extend([[(0, position, ids)]], media))
        position += len(ids)
    together = {m: part for _, media in pieces for m, part in media.items()}
    return states, whole.extend([[(0, 0, [i for ids, _ in pieces for i in ids])]], together), grown


def medium(modality, num=1):
    return MediaBatch(features_BNE=features(modality, num), lengths_B=torch.tensor([3] * num), rows_B=torch.zeros(num, dtype=torch.int64))


@pytest.mark.parametrize("mode", MODES)
def test_a_new_modality_in_a_later_turn_gives_what_a_fresh_run_gives(mode):
    model = any_model(mode)
    chat = model.chat
    first = [*chat.question_prompt(asked("what is it?", [("image", 3)])), *chat.literal("a dot"), *chat.close()]
    second = [*chat.question_prompt(asked("and this?", [("audio", 3)]), later=True), *chat.literal("a bell"), *chat.close()]
    third = chat.question_prompt("really?", opened=False, later=True)
    pieces = [(first, {"image": medium("image")}), (second, {"audio": medium("audio")}), (third, {})]
    states, fresh, cache = conversation(model, pieces)
    assert cache.recomputed == (1 if mode == "per_modality" else 0)
    assert torch.allclose(states[-1], fresh[:, -len(third) :], atol=ATOL)
    assert torch.allclose(states[1], fresh[:, len(first) : len(first) + len(second)], atol=ATOL)
    assert torch.allclose(states[0], fresh[:, : len(first)], atol=ATOL) == (mode == "shared")  # the first turn had another route


def test_media_of_a_recomputed_row_keep_their_order():
    """Two pictures and a sound over three turns, in two rows of which only one brings the sound."""
    model = any_model("per_modality")
    chat, table = model.chat, model.lm.table
    pictures = features("image", 4)
    holes = [table.placeholder_id("image")] * 3

    def part(index, rows):
        return MediaBatch(features_BNE=pictures[index], lengths_B=torch.tensor([3] * len(index)), rows_B=torch.tensor(rows))

    sound = MediaBatch(features_BNE=features("audio"), lengths_B=torch.tensor([3]), rows_B=torch.tensor([1]))
    turns = [[chat.open() + holes, chat.open() + holes], [chat.literal("xy") + holes, holes], [chat.literal("?"), [table.placeholder_id("audio")] * 3]]
    media = [{"image": part([0, 1], [0, 1])}, {"image": part([2, 3], [0, 1])}, {"audio": sound}]
    cache = PackedCache(model, 2)
    for rows, given in zip(turns, media, strict=True):
        hidden = cache.extend([[(0, cache.lengths[b], ids)] for b, ids in enumerate(rows)], given)
    assert cache.recomputed == 1
    joined = [[i for rows in turns for i in rows[b]] for b in range(2)]
    whole = PackedCache(model, 2).extend([[(0, 0, ids)] for ids in joined], {"image": part([0, 2, 1, 3], [0, 0, 1, 1]), "audio": sound})
    for b, ids in enumerate(joined):
        last = len(turns[2][b])
        assert torch.allclose(hidden[b, :last], whole[b, len(ids) - last : len(ids)], atol=ATOL)


def test_answers_in_a_mixed_batch_are_those_alone():
    made = Generator(any_model("per_modality"), caption_turn=False)
    items = [Question(text=f"what {i}?") for i in range(2)]
    for number, modality in enumerate(("image", "audio", "video", "image")):
        array, lengths = Features().gather([f"{modality}-{number}"])
        items.append(Question(text="what is it?", media_key=f"m{number}", modality=modality, features_NE=array[0, : lengths[0]]))
    for helped in (False, True):
        together = made.answer(items, max_new_tokens=6, caption_turn=helped)
        alone = [made.answer([item], max_new_tokens=6, caption_turn=helped)[0] for item in items]
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({a.token_ids for a in together}) > 2


@pytest.mark.parametrize("mode", MODES)
def test_a_conversation_answers_as_a_fresh_run_over_its_turns(mode, monkeypatch):
    """Four turns: picture, words, sound (a new modality), a turn cut short; every answer equals plain decoding of the whole text so far."""
    made = Generator(any_model(mode), caption_turn=False)
    chat = made.model.chat
    monkeypatch.setattr(made, "encode", lambda modality, data: features(modality)[0].numpy())
    talk, said, known = Conversation(made), [], {}
    for number, (prompt, modality) in enumerate((("what?", "image"), ("really?", None), ("and this?", "audio"), ("so?", None))):
        media = [(modality, b"")] if modality else []
        if modality:
            known[modality] = medium(modality)
        said += [*chat.question_prompt(asked(prompt, [(m, 3) for m, _ in media]), later=number > 0)]
        fresh = PackedCache(made.model, 1)
        stream = Stream(row=0, segment=0, position=len(said))
        with torch.no_grad():
            last = fresh.extend([[(0, 0, said)]], known)[0, -1:]
            for _ in written(fresh, [stream], last, chat.end_id, 5):
                pass
        pieces = [event.text for event in talk.say(prompt, media, max_new_tokens=5) if isinstance(event, TextPiece)]
        assert "".join(pieces) == chat.decode(stream.tokens)
        said += [*stream.tokens, *(chat.close()[1:] if stream.tokens[-1] == chat.end_id else chat.close())]
    assert talk.cache.recomputed == (1 if mode == "per_modality" else 0) and talk.num_turns == 4
    cut = talk.say("and?", max_new_tokens=5)
    next(cut, None)
    cut.close()  # not read to its end
    read = talk.cache.lengths[0]
    for _ in talk.say("again?", max_new_tokens=2):
        pass
    assert talk.num_turns == 6 and talk.cache.lengths[0] > read


@pytest.mark.parametrize("mode", MODES)
def test_a_model_with_caption_turns_takes_one_in_a_conversation_too(mode, monkeypatch):
    made = Generator(any_model(mode), caption_turn=True)
    monkeypatch.setattr(made, "encode", lambda modality, data: features(modality)[0].numpy())
    media = [("image", b"")]
    alone = list(made.stream("what?", media, max_new_tokens=5))
    talk = Conversation(made)
    assert list(talk.say("what?", media, max_new_tokens=5)) == alone and talk.num_turns == 2
    assert list(Conversation(made).say("what?", max_new_tokens=5)) == list(made.stream("what?", max_new_tokens=5))


@pytest.mark.parametrize("mode", MODES)
def test_a_refused_message_leaves_the_conversation_as_it_was(mode, monkeypatch):
    """Two conversations, one of which is given what the model does not take, a new modality among it: both then say the same."""
    made = Generator(any_model(mode), caption_turn=False)
    monkeypatch.setattr(made, "encode", lambda modality, data: features(modality)[0].numpy())
    states, talks, found = watched(made), (Conversation(made), Conversation(made)), []
    for talk, refused in zip(talks, (True, False), strict=True):
        said = list(talk.say("what?", [("image", b"")], max_new_tokens=5))
        if refused:
            for media in ((), [("audio", b"")]):
                with pytest.raises(ValueError, match=r"a row has \d+ tokens, the language model takes at most 2048"):
                    list(talk.say("x" * 2100, media))
            with pytest.raises(ValueError, match="names <image> 2 times but 1"):
                list(talk.say("<image> or <image>?", [("image", b"")]))
        states.clear()
        said += [*talk.say("really?", max_new_tokens=5), *talk.say("and this?", [("audio", b"")], max_new_tokens=5)]
        cache = talk.cache
        assert cache.lengths[0] == cache.segments_BL.shape[1] == cache.cache.get_seq_length()
        found.append((said, cache.lengths, cache.recomputed, talk.num_turns, torch.cat(states)))
    assert found[0][:-1] == found[1][:-1] and torch.allclose(found[0][-1], found[1][-1], atol=ATOL)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_comes_to_the_models_limit_is_kept_as_far_as_it_was_read(mode):
    made = emitting(*"a" * 40, mode=mode)
    talk, frame = Conversation(made), len(made.model.chat.question_prompt("", opened=False))
    assert [piece.text for piece in talk.say("x" * (2048 - frame - 2), max_new_tokens=40)] == ["a"] * 3
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a row has \d+ tokens, the language model takes at most 2048"):
            next(talk.say("more?"))
        assert talk.cache.lengths[0] == talk.cache.segments_BL.shape[1] == talk.cache.cache.get_seq_length() == 2048


def test_adapters_are_saved_and_loaded_with_the_model(tmp_path):
    model = any_model("per_modality")
    tiny_llama(0)[0].save_pretrained(tmp_path / "lm")
    model.chat.tokenizer.save_pretrained(tmp_path / "lm")
    for name in ("a", "b"):
        save_lora(model.lm.base, model.spec.lora, tmp_path / name / LORA)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    loaded = load_model(model.spec, tmp_path / "lm", (tmp_path / "a",))
    batch = batch_of(model.chat, ["audio", "text"])
    own, other = lora_parameters(model.lm.base), lora_parameters(loaded.lm.base)
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert torch.allclose(loaded.lm.hidden(*_inputs(loaded, batch)), model.lm.hidden(*_inputs(loaded, batch)), atol=ATOL)
    with pytest.raises(ValueError, match=r"holds the LoRA adapters audio, image, text, video, the model has shared: lora\.mode"):
        load_model(any_spec("shared"), tmp_path / "lm", (tmp_path / "a",))
    fewer = dataclasses.replace(model.spec, encoders=model.spec.encoders[:1])
    with pytest.raises(ValueError, match=r"audio, image, text, video, the model has image, text"):
        load_model(fewer, tmp_path / "lm", (tmp_path / "a",))
    load_lora(model.lm.base, tmp_path / "b" / LORA)


def _inputs(model, batch):
    """Arguments of LanguageModel.hidden, features from one model's projectors."""
    mask = packed_mask(batch.segments_BT, batch.segments_BT, torch.float32)
    return model.embed(batch.ids_BT, batch.media), mask, batch.positions_BT, None, model.routes(batch.ids_BT, batch.segments_BT)


def test_new_adapters_change_nothing_and_wrong_modes_are_named():
    for mode in MODES:
        model = any_model(mode, lora=False)
        batch = batch_of(model.chat, ["image", "text"])
        before = model(batch)
        model.add_lora()
        model.add_lora()  # a second time: nothing
        assert torch.allclose(model(batch), before, atol=1e-6)
        count = sum(p.numel() for p in lora_parameters(model.lm.base).values())
        widths = [64 + 64, 64 + 32, 64 + 32, 64 + 64, *[64 + 160] * 3]  # inputs + outputs of q k v o and the feed-forward layers
        assert count == (4 if mode == "per_modality" else 1) * 2 * 2 * sum(widths)  # adapters, layers, rank
    with pytest.raises(ValueError, match=r"lora\.mode 'each' is unknown: use shared or per_modality"):
        attach_lora(tiny_llama(0)[0], LoraSpec(mode="each"), 0)
    with pytest.raises(ValueError, match=r"lora\.mode 'each'"):
        check_model(any_spec("each"))
    with pytest.raises(ValueError, match=re.escape("lora.targets names fc1, and no layer of the language model is called so (llama has q_proj,")):
        attach_lora(tiny_llama(0)[0], LoraSpec(targets=("q_proj", "fc1")), 0)
