"""Limits of an answer: the model's context, the limit of tokens, stop strings; and that no answer depends on what stands beside it in a list."""

import tracemalloc

import numpy as np
import pytest
import torch
from toy_model import build

from mmcore.inference.conversation import Conversation
from mmcore.inference.decoding import cut, held_back
from mmcore.inference.generator import Generator
from mmcore.inference.next_token import Sampling
from mmcore.types import Question, TextPiece

DRAWN = Sampling(temperature=3.0, seed=7)


def generator(context: int = 0, caption_turn: bool = False, never_ends: bool = True) -> Generator:
    model = build(lora=True)
    if context:
        model.lm.base.config.max_position_embeddings = context
    if never_ends:
        model.lm.head.weight.data[model.chat.end_id] = 0
    return Generator(model, caption_turn=caption_turn)


def shown(text: str, key: str = "a", seed: int = 0, tokens: int = 3) -> Question:
    features = np.random.default_rng(seed).normal(1, 3, (tokens, 12)).astype(np.float32)
    return Question(text=text, media_key=key, modality="image", features_NE=features)


@pytest.mark.parametrize("helped", [False, True])
@pytest.mark.parametrize("media", [False, True])
def test_an_answer_that_reaches_the_end_of_the_context_ends_there_and_the_others_go_on(helped, media):
    def ask(text):
        return shown(text) if media else Question(text=text)

    long, short = ask("long " * 8), ask("x")
    free = generator().answer([short], max_new_tokens=60, caption_turn=helped)[0]
    needed = generator().answer([long], max_new_tokens=1, caption_turn=helped)[0].num_input_tokens
    room = generator()._least(long, helped) + 5
    found = generator(context=room).answer([long, short], max_new_tokens=60, caption_turn=helped)
    assert found[0].finish == "length" and found[0].num_input_tokens == needed <= room
    assert len(found[0].token_ids) == room - needed + 1  # the last one is written and not read
    same = min(len(free.token_ids), len(found[1].token_ids))
    assert found[1].token_ids[:same] == free.token_ids[:same] and same > 5


@pytest.mark.parametrize("helped", [False, True])
def test_a_question_beyond_the_context_is_not_read_and_the_others_are_answered(helped):
    asked = [shown("what " * 2), shown("what " * 300), Question(text="why " * 300), Question(text="who?"), shown("x", "b", tokens=400)]
    found = generator(context=150).answer(asked, max_new_tokens=4, caption_turn=helped)
    assert [answer.finish for answer in found] == ["length", "too_long", "too_long", "length", "too_long"]
    for answer in (found[1], found[2], found[4]):
        assert answer.text == "" and answer.token_ids == () and answer.num_input_tokens > 150
    assert found[0].token_ids and found[3].token_ids
    followed = generator(context=200).follow_up([Question(text="who?"), Question(text="why " * 300)], ["and?", "and?"], max_new_tokens=4)
    assert [answer.finish for answer in followed] == ["length", "too_long"]


def test_a_prompt_beyond_the_context_is_refused_before_anything_of_its_size_is_made(monkeypatch):
    made = generator(context=64)
    monkeypatch.setattr("mmcore.inference.decoding.packed_mask", lambda *_: pytest.fail("the mask was built"))
    with pytest.raises(ValueError, match=r"a row has \d+ tokens, the language model takes at most 64") as caught:
        list(made.stream("word " * 40_000))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="takes at most 64"):
        list(Conversation(made).say("word " * 40_000))
    tracemalloc.start()
    assert made.answer([Question(text="word " * 40_000)])[0].finish == "too_long"
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_a_stream_and_a_conversation_end_at_the_end_of_the_context():
    made = generator(context=80)
    text = "".join(event.text for event in made.stream("who?", max_new_tokens=500) if isinstance(event, TextPiece))
    assert text.strip() == made.answer([Question(text="who?")], max_new_tokens=500)[0].text != ""
    talk = Conversation(made)
    assert "".join(event.text for event in talk.say("who?", max_new_tokens=500)) == text


def test_no_new_tokens_are_no_tokens_and_fewer_are_refused():
    made = generator()
    (answer,) = made.answer([Question(text="who?")], max_new_tokens=0)
    assert (answer.text, answer.token_ids, answer.finish) == ("", (), "length") and answer.num_input_tokens > 0
    assert list(made.stream("who?", max_new_tokens=0)) == []
    with pytest.raises(ValueError, match="max_new_tokens -1: it must be 0"):
        made.answer([Question(text="who?")], max_new_tokens=-1)
    assert len(made.answer([Question(text="who?")], max_new_tokens=1)[0].token_ids) == 1


def test_questions_without_a_key_or_with_other_features_are_about_their_own_medium():
    made = generator()
    keyless = [shown("what?", "", seed) for seed in range(3)]
    alone = [made.answer([item], max_new_tokens=8)[0].token_ids for item in keyless]
    assert len(set(alone)) > 1
    for items in (keyless, [shown("what?", "same", seed) for seed in range(3)]):
        assert [answer.token_ids for answer in made.answer(items, max_new_tokens=8)] == alone


@pytest.mark.parametrize("media", [False, True])
def test_a_drawn_answer_does_not_depend_on_its_place_in_the_list(media):
    made = generator()
    asked = [shown(text, text) if media else Question(text=text) for text in ("what is it?", "who?", "when was it?", "why?")]
    first = made.answer(asked, max_new_tokens=8, sampling=DRAWN)
    for order in ([3, 2, 1, 0], [1, 3], [2]):
        found = made.answer([asked[i] for i in order], max_new_tokens=8, sampling=DRAWN)
        assert [answer.token_ids for answer in found] == [first[i].token_ids for i in order]
    assert len({answer.token_ids for answer in first}) == 4


def test_a_stop_string_ends_the_answer_and_is_cut_off():
    made = generator()
    whole = made.answer([Question(text="who?")], max_new_tokens=40, sampling=DRAWN)[0]
    stop = whole.text[5:8]
    at = whole.text.index(stop)
    (answer,) = made.answer([Question(text="who?")], max_new_tokens=40, sampling=DRAWN, stop=["", "never said", stop])
    assert answer.text == whole.text[:at].strip() and answer.finish == "stop" and len(answer.token_ids) < len(whole.token_ids)
    said = "".join(event.text for event in made.stream("who?", max_new_tokens=40, sampling=DRAWN, stop=[stop]) if isinstance(event, TextPiece))
    assert said.strip() == answer.text
    made.model.lm.base.generation_config.stop_strings = [stop]
    assert made.answer([Question(text="who?")], max_new_tokens=40, sampling=DRAWN)[0].text == answer.text


def test_cut_and_held_back():
    assert cut("one\n\ntwo###", ["###", "\n\n"]) == ("one", True) and cut("one", ["", "x"]) == ("one", False)
    assert held_back("one\n", ["\n\n"]) == 1 and held_back("one##", ["###"]) == 2 and held_back("one", ["###"]) == 0


def test_rows_of_training_beyond_the_context_are_refused_before_their_mask_is_built(monkeypatch):
    from mmcore.types import Batch

    model = build()
    model.lm.base.config.max_position_embeddings = 8
    monkeypatch.setattr("mmcore.model.any_model.packed_mask", lambda *_: pytest.fail("the mask was built"))
    ids = torch.ones(1, 9, dtype=torch.int64)
    zeros = torch.zeros_like(ids)
    batch = Batch(ids_BT=ids, targets_BT=zeros, weights_BT=zeros.float(), segments_BT=zeros, positions_BT=torch.arange(9)[None], groups_BT=zeros)
    with pytest.raises(ValueError, match="a row has 9 tokens, the language model takes at most 8"):
        model(batch)
