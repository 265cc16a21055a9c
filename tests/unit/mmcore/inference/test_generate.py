"""Generation at toy size: batches equal single questions, equal plain decoding, and signal blocks are whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toy_model import Features, asked, build, save_export, uncached, watched

from infra.step import AnyloomError
from infra.storage import digest_tree
from mmcore.chat import places
from mmcore.inference.conversation import Conversation
from mmcore.inference.generator import Generator
from mmcore.types import Question, SignalBlock, TextPiece
from pipelines.toys.parts import tiny_llama
from pipelines.training.pack import pack


def questions() -> list[Question]:
    """Two pictures with several questions, two without a picture, one picture with more questions than a row takes."""
    items = []
    for number, sample in enumerate(asked(3)):
        features, lengths = Features().gather([sample.key])
        for i in range((3, 2, 20)[number]):
            items.append(Question(text=f"question {i} of {number}?", media_key=sample.media_sha256, modality="image", features_NE=features[0, : lengths[0]]))
    items += [Question(text="hello"), Question(text="and what now?")]
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))]


def grown(model, ids, media, limit):
    """ids and the likeliest tokens after them, up to the end token or `limit` of them; every one from a pass of its own over the whole row."""
    ids = list(ids)
    for _ in range(limit):
        ids.append(int(model.lm.logits(uncached(model, ids, media)[-1:]).argmax()))
        if ids[-1] == model.chat.end_id:
            break
    return ids


def generator(signal_bias: float = 0.0) -> Generator:
    model = build(lora=True)
    for projector in model.output_projectors.values():
        projector.fit(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), 1.0)
    model.lm.new_head_rows.data.add_(signal_bias)
    return Generator(model, caption_turn=False)


@pytest.mark.parametrize("helped", [False, True])
def test_batch_equals_one_by_one(helped):
    made, items = generator(), questions()
    together = made.answer(items, max_new_tokens=7, caption_turn=helped)
    for item, answer in zip(items, together, strict=True):
        alone = made.answer([item], max_new_tokens=7, caption_turn=helped)[0]
        assert (alone.token_ids, alone.caption, alone.text, alone.num_input_tokens) == (answer.token_ids, answer.caption, answer.text, answer.num_input_tokens)
        assert 1 <= len(answer.token_ids) <= 7
        assert (answer.caption is not None) == (helped and item.features_NE is not None)
    assert len({answer.token_ids for answer in together}) > 3


@pytest.mark.parametrize("helped", [False, True])
def test_answer_equals_decoding_without_cache(helped):
    made = generator()
    item = next(item for item in questions() if item.features_NE is not None)
    answer = made.answer([item], max_new_tokens=6, caption_turn=helped)[0]
    chat, count = made.model.chat, len(item.features_NE)

    media = {"image": [item.features_NE]}
    if helped:
        ids = grown(made.model, chat.caption_prompt("image", count), media, 24)
        ids += (chat.close() if ids[-1] != chat.end_id else chat.close()[1:]) + chat.question_prompt(item.text, opened=False)
    else:
        ids = chat.media_prefix("image", count) + chat.question_prompt(item.text, opened=True)
    assert answer.num_input_tokens == len(ids)
    assert tuple(grown(made.model, ids, media, 6)[len(ids) :]) == answer.token_ids


def test_signal_blocks_are_forced_complete_in_order():
    made = generator()
    rows = made.model.lm.new_head_rows
    rows.data.zero_()
    state = made.answer([Question(text="draw")], max_new_tokens=1)[0].token_ids[0]
    rows.data[2] = 1.001 * made.model.lm.base.get_output_embeddings().weight[state] * 3  # token <image_02> beats everything there
    table = made.model.lm.table
    answer = made.answer([Question(text="draw"), Question(text="other words")], max_new_tokens=2)[0]
    assert answer.token_ids == table.block("image")  # from its beginning, and whole although the limit is 2
    assert [block.modality for block in answer.blocks] == ["image"] and answer.blocks[0].conditioning_QC.shape == (5, 8)
    assert answer.text == ""
    events = list(made.stream("draw", max_new_tokens=2))
    assert [type(event) for event in events] == [SignalBlock]
    assert torch.allclose(events[0].conditioning_QC, answer.blocks[0].conditioning_QC, atol=1e-5)

    ids = [*made.model.chat.question_prompt("draw", opened=False), *table.block("image")]
    with torch.no_grad():
        expected = made.model.conditioning("image", uncached(made.model, ids)[None, -4:])[0]
    assert torch.allclose(expected, answer.blocks[0].conditioning_QC, atol=1e-4)


def test_stream_says_what_answer_says(monkeypatch):
    made, item = generator(), next(item for item in questions() if item.features_NE is not None)
    monkeypatch.setattr(made, "encode", lambda modality, data: item.features_NE)
    for helped in (False, True):
        made.caption_turn = helped
        answer = made.answer([item], max_new_tokens=9)[0]
        pieces = [event.text for event in made.stream(item.text, [("image", b"")], max_new_tokens=9) if isinstance(event, TextPiece)]
        assert "".join(pieces).strip() == answer.text
    named = [event.text for event in made.stream(f"<image>\n{item.text}", [("image", b"")], max_new_tokens=9) if isinstance(event, TextPiece)]
    assert "".join(named).strip() == made.answer([item], max_new_tokens=9, caption_turn=False)[0].text
    with pytest.raises(ValueError, match="<image> 1 times but 2 image media"):
        list(made.stream("<image>?", [("image", b""), ("image", b"")]))


def test_two_pictures_in_one_prompt_are_read_each_where_it_stands(monkeypatch):
    made, pictures = generator(), {data: Features().gather([data.decode()])[0][0] for data in (b"a", b"d")}
    assert [len(array) for array in pictures.values()] == [3, 2]
    monkeypatch.setattr(made, "encode", lambda modality, data: pictures[data])
    states, prompt, first = watched(made), "both <image> and <image>?", []
    for order in ((b"a", b"d"), (b"d", b"a"), (b"a", b"a")):
        states.clear()
        text = "".join(event.text for event in made.stream(prompt, [("image", data) for data in order], max_new_tokens=6) if isinstance(event, TextPiece))
        first.append(states[0][0])
        arrays = [pictures[data] for data in order]
        ids = made.model.chat.question_prompt(places.asked(prompt, [("image", len(array)) for array in arrays]))
        assert torch.allclose(first[-1], uncached(made.model, ids, {"image": arrays})[-1], atol=1e-4)
        assert text == made.model.chat.decode(grown(made.model, ids, {"image": arrays}, 6)[len(ids) :])
    assert not any(torch.allclose(first[0], other, atol=1e-2) for other in first[1:])


def test_load_an_export_directory(tmp_path):
    made = generator()
    made.model.lm.new_head_rows.data.add_(0.01)
    save_export(made.model, tmp_path, caption_turn=True)
    loaded = Generator.load(tmp_path)
    assert loaded.caption_turn is True
    loaded_answers, answers = loaded.answer(questions(), max_new_tokens=5), made.answer(questions(), max_new_tokens=5, caption_turn=True)
    assert [a.token_ids for a in loaded_answers] == [a.token_ids for a in answers]
    with pytest.raises(ValueError, match="cannot read audio"):
        loaded.encode("audio", b"")
    with pytest.raises(AnyloomError, match="not an exported model"):
        Generator.load(tmp_path / "lm")
    save_file({"lm.surplus": torch.zeros(1)}, tmp_path / "tensors.safetensors")
    with pytest.raises(AnyloomError, match=r"lm\.surplus"):
        Generator.load(tmp_path)


def test_progress_and_empty_input():
    made, seen = generator(), []
    assert made.answer([]) == []
    made.answer(questions(), max_new_tokens=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (27, 27)


def test_packed_without_its_language_model_it_answers_the_same_with_the_base_given(tmp_path):
    export = save_export(generator().model, tmp_path / "export")
    asked = [Question(text=text) for text in ("what is it?", "who?")]
    answers = [answer.token_ids for answer in Generator.load(export).answer(asked, max_new_tokens=5)]

    said = pack(export, tmp_path / "bundled", bundle=True)
    assert digest_tree(tmp_path / "bundled") == digest_tree(export) and ", without" not in said
    assert "model.safetensors" in pack(export, tmp_path / "light", bundle=False)
    assert not list((tmp_path / "light").rglob("model.safetensors")) and (export / "lm" / "model.safetensors").is_file()
    assert [answer.token_ids for answer in Generator.load(tmp_path / "light", base=export / "lm").answer(asked, max_new_tokens=5)] == answers
    with pytest.raises(AnyloomError, match=r"model\.safetensors.*--base"):
        Generator.load(tmp_path / "light")
    with pytest.raises(AnyloomError, match=r"has no model\.safetensors"):
        Generator.load(tmp_path / "light", base=tmp_path)
    other, _ = tiny_llama(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(AnyloomError, match="other weights"):
        Generator.load(tmp_path / "light", base=tmp_path / "other")
    with pytest.raises(AnyloomError, match="exists already"):
        pack(export, tmp_path / "light", bundle=False)
    with pytest.raises(AnyloomError, match="cannot be bundled"):
        pack(tmp_path / "light", tmp_path / "again", bundle=True)


@pytest.mark.parametrize("prompt", (Path(__file__).parents[3] / "cases" / "html_in_text" / "prompts.txt").read_text().splitlines())
def test_names_of_placeholders_in_a_prompt_without_media_are_words(prompt):
    """In `answer`, `stream` and a conversation alike, beside other questions."""
    made = generator()
    ids = made.model.chat.question_prompt(prompt)
    assert max(ids) < made.model.lm.table.base and prompt in made.model.chat.tokenizer.decode(ids)
    answers = made.answer([Question(text="hello"), Question(text=prompt), *questions()[:3]], max_new_tokens=5)
    assert answers[1].num_input_tokens == len(ids) and tuple(grown(made.model, ids, {}, 5)[len(ids) :]) == answers[1].token_ids
    for events in (made.stream(prompt, max_new_tokens=5), Conversation(made).say(prompt, max_new_tokens=5)):
        assert "".join(event.text for event in events if isinstance(event, TextPiece)).strip() == answers[1].text
