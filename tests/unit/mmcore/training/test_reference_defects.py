"""Defects of the public NExT-GPT code: each has a test that fails if we repeat it.

What went wrong there                                                       where it is tested here
- stage 3 trains nothing (LoRA attached, then frozen)                       test_lora_modes, test_train: a stage changes exactly its tensors; here
- embeddings and head trained in full, not loaded afterwards                test_lm_families: the base stays bit-identical; here: saved and loaded
- new tokens all start at the mean, so no training tells them apart         test_lm_families: mean plus noise
- signal tokens joined by spaces: 2N - 1 positions                          here
- a collator that cuts rows, and signal tokens with them                    here; test_lm_families: one clear line for a row too long
- a missing modality becomes zeros of a fixed width 4096                    here
- media not paired with placeholders, at most 8 picked                      test_model: counts per row; test_chat: counts per text
- every sample counts as text                                               here: a route is its medium's, from a list to the row; test_lora_modes
- a block that is not whole ends the run with an assertion                  here; test_blocks
- generation that assumes a cache and may not have one                      test_generate: equals decoding without a cache; test_lora_modes: new modality
- top_p 10 by default                                                       test_choice: refused, and the default is 1
- generation that stops on a token of an older template                    here
- folders of the last dataset used for all                                  here: every list has its own
- failed reads end the process                                              test_shards, integration/test_tiny: a row of the ledger says why, the rest goes on
- the rate of the output projectors ignored                                 test_output_projectors: every modality at stage 2's own rate
- stage 2 as shipped trains audio only                                      test_output_projectors: every modality of the mixture
- queries that all start equal                                              test_output_projectors: no two start alike
- a velocity model trained on the noise, its input unscaled                 test_decoder_loss: targets and inputs of diffusers' own schedulers
- Min-SNR weights averaged away                                             test_decoder_loss: every item by its own step
- one script for three stages                                               test_own_recipes: each stage is a step with its own values
- commands and versions in the documentation that do not fit the code       here: the README's commands parse; torchvision fits torch
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from data_steps import mp4, png, run_step, wav
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import save_file
from toy_any import MODES, STAGES, any_model, chat_data, emitting, samples
from toy_model import Features

from flows.cli.main import build_parser
from mmcore.chat.chat import Chat
from mmcore.chat.rows import Turn
from mmcore.chat.special_tokens import MEDIA, TokenTable
from mmcore.config import SpecialTokens
from mmcore.lm.language_model import LanguageModel
from mmcore.lm.lora import lora_parameters, save_lora
from mmcore.model.any_model import LORA, TENSORS, AnyModel, load_model
from mmcore.stores.shards import ShardSet
from mmcore.training.batching import collate
from mmcore.training.drawn import media_of
from mmcore.training.rows import ChatData
from mmcore.training.stages import saved_tensors, select_trainable
from mmcore.types import IGNORE, Question, Shown
from pipelines.recipes import get_recipe
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig
from pipelines.toys.parts import lm_tokenizer, tiny_llama
from pipelines.training.data import dataset_samples
from pipelines.training.loop import run_stage


def test_the_default_blocks_are_whole_tokens_in_a_row_without_spaces():
    """4, 24 and 8 positions, not 7, 47 and 15; in rows, in targets, and as ids that no ordinary text has."""
    tokenizer = lm_tokenizer()
    table = TokenTable(len(tokenizer), SpecialTokens())
    assert [table.count(modality) for modality in MEDIA] == [4, 24, 8] and len(set(table.names)) == 39
    chat = Chat(tokenizer, table)
    for modality in MEDIA:
        row = chat.question_row("text", 0, [Turn("do it", ("here ", Shown(modality), " there"))])
        answer = [int(target) for target in row.targets if target != IGNORE]
        block = list(table.block(modality))
        start = answer.index(block[0])
        assert answer[start : start + len(block)] == block == list(range(block[0], block[0] + table.count(modality)))
        assert tokenizer.decode(answer[:start]) == "here " and tokenizer.decode(answer[start + len(block) : -1]) == " there"
        assert [table.modality_of(i) for i in block] == [modality] * len(block)
    names = "".join(table.names)
    assert max(chat.literal(names)) < table.base  # written in a text, a name is only text


def test_a_signal_token_that_a_text_names_is_words():
    chat = Chat(lm_tokenizer(), TokenTable(len(lm_tokenizer()), SpecialTokens(image=4, video=0, audio=0)))
    for text in ("<image_00>", "<image_04>", "see <audio_00>", "what is <video_99>?"):
        for ids in (chat.assistant(text), chat.question_prompt(text)):
            assert max(ids) < chat.table.base and text in chat.tokenizer.decode(ids)


def test_long_rows_keep_every_token_and_too_long_ones_are_refused():
    """No row is cut, whatever its length, so no block is; beyond the model's positions there is one clear line."""
    model = any_model("shared")
    long = model.chat.question_row("text", 0, [Turn("x" * 1500, ("draw ", Shown("image")))])
    batch = collate([long, model.chat.question_row("text", 0, [Turn("q", (Shown("image"),))])], {})
    assert batch.ids_BT.shape[1] == len(long.ids) > 1500
    for row in range(2):
        kept = [int(t) for t in batch.targets_BT[row] if t != IGNORE]
        assert kept[-5:] == [*model.lm.table.block("image"), model.chat.end_id]
    with pytest.raises(ValueError, match=r"a row has \d+ tokens, the language model takes at most 2048"):
        model(collate([model.chat.question_row("text", 0, [Turn("x" * 2100, (Shown("image"),))])], {}))


@pytest.mark.parametrize("width", [48, 64])
def test_a_sample_without_a_medium_works_at_any_width_and_a_missing_medium_is_refused(width):
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = any_model("per_modality").spec
    tokenizer = lm_tokenizer()
    small = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    lm = LanguageModel(LlamaForCausalLM(small), spec.tokens)
    model = AnyModel(spec, lm, Chat(tokenizer, lm.table))
    text = model.chat.question_row("text", 0, [Turn("hi", "hello")])
    assert model(collate([text], {})).shape[-1] == width
    asked = model.chat.question_row("audio", 3, [Turn("what?", "a bell")])
    with pytest.raises(ValueError, match="the batch has 3 <audio> tokens but 0 audio feature tokens"):
        model(collate([text, asked], {}))
    data = chat_data(STAGES["stage3"], any_model("shared"))
    data.features = {"image": Features()}
    with pytest.raises(ValueError, match="has audio input but this step has no audio features: give it embed_audio"):
        media_of(data.features, [(sample.modality, sample.key) for sample in samples()["sounds"]])


def test_every_list_has_its_own_folder_of_media(tmp_path):
    """Two lists that name a picture alike, in two folders: each gets its own, whichever list came last."""
    names, recipe = ("lcs_558k", "mix_665k"), get_recipe("llava15_7b")
    lists = {}
    for seed, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(seed))
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": name}]
        (tmp_path / name / "list.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
        lists[name] = tmp_path / name / "list.json"
    datasets = tuple(DatasetSpec(name=d.name, format="instruct", path=f"instruct/{d.name}.json", split=d.split, licence=d.licence) for d in recipe.datasets)
    run_step(tmp_path, "manifest", "pipelines.shards.manifest:run", ManifestConfig(datasets=datasets), {}, lists)
    result = run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest"}, lists)
    assert result["written"] == 2
    found = ShardSet(tmp_path / "shards", tmp_path / "stores")
    for seed, name in enumerate(names):
        (key,) = found.keys(source=name)
        assert found.media_sha(key) == hashlib.sha256(png(seed)).hexdigest()


@pytest.mark.parametrize("width", [48, 96])
def test_what_was_trained_for_another_width_is_refused_by_name_and_shape(width, tmp_path):
    """Stages of a 64 wide language model, loaded into another: one line with both shapes and the remedy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = any_model("shared", lora=False)
    tokenizer = lm_tokenizer()
    small = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    LlamaForCausalLM(small).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    for prefix in ("input_projectors.image.proj.weight", "output_projectors.image.into.weight", "lm.new_head_rows"):
        stage = tmp_path / prefix
        stage.mkdir()
        save_file({name: value.detach().clone() for name, value in model.named_parameters() if name == prefix}, stage / TENSORS)
        with pytest.raises(
            ValueError, match=rf"{prefix} has shape \(\d+, \d+\), the model wants \(\d+, \d+\): it was trained with another language model"
        ) as caught:
            load_model(model.spec, tmp_path / "lm", (stage,))
        assert "\n" not in str(caught.value) and "64" in str(caught.value) and str(width) in str(caught.value)


def test_every_sample_is_routed_by_its_own_medium():
    model = any_model("per_modality")
    data = chat_data(STAGES["stage3"], model)
    seen = set()
    for batch in data.batches(0):
        routes = model.routes(batch.ids_BT, batch.segments_BT)
        for row in range(len(batch.ids_BT)):
            real = batch.segments_BT[row] >= 0
            media = {m for m in MEDIA if int((batch.ids_BT[row] == model.lm.table.placeholder_id(m)).sum())}
            expected = torch.tensor([1.0, *(float(m in media) for m in MEDIA)])
            assert bool((routes[row][real] == expected).all())
            seen.add(frozenset(media))
    assert seen == {frozenset(), *(frozenset({m}) for m in MEDIA)}


@pytest.mark.parametrize("mode", MODES)
def test_what_stage_3_trained_is_what_the_next_stage_loads(mode, tmp_path):
    """LoRA trains, is saved with the new rows, and comes back bit for bit; the base is never among the saved tensors."""
    model = any_model(mode, lora=False)
    model.add_lora()
    config = STAGES["stage3"]
    assert sum(".lora_" in name for name in select_trainable(model, config)) == len(lora_parameters(model.lm.base)) > 0
    trained, _, _ = run_stage(config, model, chat_data(config, model), tmp_path / "work")
    assert all(bool(p.any()) for n, p in lora_parameters(model.lm.base).items() if ".lora_B." in n)
    stored = saved_tensors(model, config, trained)
    assert {"lm.new_input_rows", "lm.new_head_rows"} <= stored.keys() and not any(name.startswith("lm.base") for name in stored)
    stage = tmp_path / "stage3"
    save_lora(model.lm.base, model.spec.lora, stage / LORA)
    save_file(stored, stage / TENSORS)
    tiny_llama(0)[0].save_pretrained(tmp_path / "lm")
    model.chat.tokenizer.save_pretrained(tmp_path / "lm")
    loaded = load_model(model.spec, tmp_path / "lm", (stage,))
    own, other = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own if "output_projectors" not in name)


@pytest.mark.parametrize(
    ("names", "limit", "blocks", "broken"),
    [
        (("a", "<image_00>", "<image_01>", "<image_02>", "<image_03>", "b"), 9, ["image"], ()),
        (("<image_00>", "<image_01>", "b"), 9, [], ("the image block broke off after 2 of 4 signal tokens",)),
        (("<image_02>", "b"), 9, [], ("<image_02> came without the signal tokens before it",)),
        (("<image_00>", "<audio_00>", "<audio_01>"), 9, ["audio"], ("the image block broke off after 1 of 4 signal tokens",)),
        (("<image_00>", "<image_01>", "<image_02>"), 2, [], ("the image block broke off after 2 of 4 signal tokens",)),
        (("<audio_00>", "<audio_01>", "b"), 2, ["audio"], ()),
    ],
)
def test_a_broken_block_is_reported_and_can_be_completed(names, limit, blocks, broken):
    answer = emitting(*names).answer([Question(text="draw")], max_new_tokens=limit, complete_blocks=False)[0]
    assert [block.modality for block in answer.blocks] == blocks and answer.broken == broken
    made = emitting(*names)
    answer = made.answer([Question(text="draw")], max_new_tokens=limit)[0]
    assert answer.broken == () and answer.blocks  # completed: never broken
    written = [i for i in answer.token_ids if i >= made.model.lm.table.base]
    assert written[: len(made.model.lm.table.block(answer.blocks[0].modality))] == list(made.model.lm.table.block(answer.blocks[0].modality))


def test_generation_stops_on_its_own_templates_end_token_and_nothing_else():
    made = emitting("a", "#", "#", "#", "b")
    answer = made.answer([Question(text="x")], max_new_tokens=12)[0]
    assert answer.text == "a###b" and answer.token_ids[-1] == made.model.chat.end_id == made.model.chat.tokenizer.eos_token_id
    assert len(emitting("a", "b", "a", "b").answer([Question(text="x")], max_new_tokens=3)[0].token_ids) == 3


def test_labels_are_the_answers_alone_for_every_kind_of_sample():
    """No prompt, system text, placeholder or padding is ever a target, and every row has some."""
    model = any_model("shared")
    config = dataclasses.replace(STAGES["stage3"], batch=20)
    table, end = model.lm.table, model.chat.end_id
    for batch in chat_data(config, model).batches(0):
        for ids, targets, segments in zip(batch.ids_BT.numpy(), batch.targets_BT.numpy(), batch.segments_BT.numpy(), strict=True):
            where = np.flatnonzero(targets != IGNORE)
            assert len(where) and (segments[where] >= 0).all()
            assert not any(int(t) >= table.base + table.num_signals for t in targets[where])
            assert sum(int(t) == end for t in targets[where]) == (2 if (segments > 1).any() else 1)  # one end per answer; the user's ends are no targets
            assert all(targets[i] == ids[i + 1] for i in where)


def test_a_record_of_a_list_is_routed_by_the_medium_that_it_names(tmp_path):
    """From NExT-GPT's JSON, whose fields are input_image and its like, over manifest and shards to the route of the row; answers' media count for nothing."""
    media = {"image": ("a.png", png(0)), "video": ("a.mp4", mp4([Image.new("RGB", (32, 32))] * 6)), "audio": ("a.wav", wav(0))}
    records = [{"input_" + modality: name, "conversations": _turns(f"<{modality}>\nwhat?", "noise")} for modality, (name, _) in media.items()]
    records.append({"image": "a.png", "conversations": _turns("<image>\nand this?", "noise")})
    records.append({"output_audio": "b.wav", "conversations": _turns("let me hear it", "<audio>")})
    records.append({"conversations": _turns("hello", "hi")})
    for name, data in media.values():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "list.json").write_text(json.dumps(records))
    spec, sources = DatasetSpec(name="mosit", format="instruct", path="instruct/mosit.json", split="train", licence="x"), {"mosit": tmp_path / "list.json"}
    run_step(tmp_path, "manifest", "pipelines.shards.manifest:run", ManifestConfig(datasets=(spec,)), {}, sources)
    assert run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest"}, sources)["written"] == len(records)
    found, _ = dataset_samples({"instruct": ShardSet(tmp_path / "shards", tmp_path / "stores")}, ["mosit"])
    model = any_model("per_modality")
    config = dataclasses.replace(STAGES["stage3"], mixture=(("mosit", 1.0),), dialogues=("mosit",))
    data = ChatData(config, model.chat, found, {m: Features() for m in MEDIA}, model.spec.input_projector)
    for sample, medium in zip(found["mosit"], ("image", "video", "audio", "image", None, None), strict=True):
        batch = collate([data.row(sample, 0, 3 if medium else 0)], {})
        expected = torch.tensor([1.0, *(float(m == medium) for m in MEDIA)])
        assert bool((model.routes(batch.ids_BT, batch.segments_BT)[0] == expected).all()), sample.key


def _turns(human, gpt):
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def documented_commands() -> list[str]:
    """Every `anyloom ...` of the README: lines of its code blocks (without comments, and without what --help says of its examples), and code in its text."""
    text = (Path(__file__).parents[4] / "README.md").read_text()
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.S | re.M)
    found = [line for block in blocks for line in re.findall(r"^\$? ?(?:eval \"\$\()?(?:\.venv/bin/)?anyloom (.+?)(?:\)\")?$", block, re.M)]
    found += [line for block in blocks for line in re.findall(r"^  anyloom (.+?)(?: {2,}.*)?$", block, re.M)]
    return found + re.findall(r"`anyloom ([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


@pytest.mark.parametrize("command", documented_commands())
def test_the_commands_of_the_readme_are_those_that_there_are(command, capsys):
    words = shlex.split(command, comments=True)
    if words[0] == "COMMAND":
        words = words[1:]
    try:
        build_parser().parse_args(words)
    except SystemExit as stop:
        assert stop.code == 0 and words[-1] == "--help", capsys.readouterr().err


def test_the_readme_names_enough_commands_to_be_tested():
    assert len(documented_commands()) > 25 and {"run", "chat", "sql", "pack", "stack"} <= {command.split()[0] for command in documented_commands()}


def test_torchvision_was_built_for_the_torch_that_is_installed():
    try:
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchvision is not installed")
    (torch_of,) = (requirement for requirement in map(Requirement, needs) if requirement.name == "torch")
    assert torch_of.specifier.contains(importlib.metadata.version("torch"), prereleases=True)
