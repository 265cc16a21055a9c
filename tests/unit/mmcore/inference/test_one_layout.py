"""A conversation has the same tokens in training and in generation, wherever its media stand: token by token, over whole conversations."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_any import STAGES, any_model, emitting
from toy_model import Features, uncached

from mmcore.chat.places import asked, counted
from mmcore.chat.records import talk_of
from mmcore.chat.rows import Turn
from mmcore.inference.conversation import Conversation
from mmcore.inference.generator import Generator
from mmcore.training.batching import collate
from mmcore.training.rows import ChatData
from mmcore.types import IGNORE, Question, Sample, Shown

CASES = Path(__file__).parents[3] / "cases"
IMAGE, AUDIO = tuple(f"<image_0{i}>" for i in range(4)), ("<audio_00>", "<audio_01>")
TOKENS = {"image": 3, "video": 2, "audio": 4}
FEATURES = {modality: np.full((count, 12), 0.1 * count, np.float32) for modality, count in TOKENS.items()}
END = "<|im_end|>"

IMG, VID, AUD = ("image",), ("video",), ("audio",)
RECORDS = {
    "first turn, at its beginning": (["<image>\nwhat is it?", "x", "and now?", "y"], [IMG, ()], ()),
    "first turn, in front of a word": (["<image> what is it?", "x"], [IMG], ()),
    "first turn, at its end": (["what is it?\n<image>", "x", "and now?", "y"], [IMG, ()], ()),
    "first turn, in a sentence": (["what is <image> here?", "x", "and now?", "y"], [IMG, ()], ()),
    "first turn, alone": (["<image>", "x", "and now?", "y"], [IMG, ()], ()),
    "later turn, at its beginning": (["hello", "x", "<audio>\nwhat is it?", "y", "and now?", "z"], [(), AUD, ()], ()),
    "later turn, in a sentence": (["hello", "x", "what is <video>, say?", "y"], [(), VID], ()),
    "later turn, at its end": (["hello", "x", "so", "w", "what is this: <image>", "y"], [(), (), IMG], ()),
    "later turn, alone": (["hello", "x", "<image>", "y"], [(), IMG], ()),
    "several media in one turn": (["is <image> like <audio> ?", "x", "why?", "y"], [IMG + AUD, ()], ()),
    "media in several turns": (["<image>\nwhat?", "x", "and <audio> ?", "y", "<video>", "z"], [IMG, AUD, VID], ()),
    "beside names that are words": (["<image>\nis the <image> tag a <video> tag?", "x", "<audio>?", "y"], [IMG, ()], ()),
    "an answer is a medium": (["draw it", "<image>", "and now?", "y"], [(), ()], IMG),
    "an answer begins with a medium": (["draw it", "<image>x", "and now?", "y"], [(), ()], IMG),
    "an answer ends with a medium": (["draw it", "x<audio>", "and now?", "y"], [(), ()], AUD),
    "an answer has media among its words": (["draw it", "x<image>y<audio>z", "<image>\nand now?", "w"], [(), IMG], IMG + AUD),
    "words only": (["<video> in HTML?", "x", "<image_00>?", "y"], [(), ()], ()),
}
"""Turns of a record, the media of each of its questions, and those of its answers."""


def script(answers: list[str], outputs: tuple[str, ...]) -> list[str]:
    """Names of the tokens that a model writes as these answers; a name of a medium that it gives is its block."""
    blocks = {f"<{modality}>": block for modality, block in (("image", IMAGE), ("audio", AUDIO)) if modality in outputs}
    names: list[str] = []
    for text in answers:
        for piece in re.split("(<image>|<audio>)", text):
            names += blocks.get(piece, tuple(piece))
        names.append(END)
    return names


def read(talk: Conversation) -> list[int]:
    """Every token that the model has read."""
    return talk.cache._ids_BL[0].tolist()


def trained(chat, turns: list[str], inputs: list[str], outputs: tuple[str, ...], caption: str | None = None, system: str = "") -> list[int]:
    """The tokens of a record in training."""
    speakers = [(("human", "gpt")[place % 2], text) for place, text in enumerate(turns)]
    talk = talk_of(speakers, {m: inputs.count(m) for m in inputs}, {m: outputs.count(m) for m in outputs})
    questions = counted([question for question, _ in talk.exchanges], [(modality, TOKENS[modality]) for modality in inputs])
    exchanges = list(zip(questions, (answer for _, answer in talk.exchanges), strict=True))
    return [token for part in chat.conversation(exchanges, caption, system) for token in part.ids]


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("name", list(RECORDS))
def test_a_conversation_is_read_as_it_was_trained(name, system, monkeypatch):
    turns, given, outputs = RECORDS[name]
    inputs = [modality for media in given for modality in media]
    made = emitting(*script(turns[1::2], outputs), mode="per_modality")
    monkeypatch.setattr(made, "encode", lambda modality, data: FEATURES[modality])
    talk = Conversation(made, system=system)
    for question, media in zip(turns[::2], given, strict=True):
        list(talk.say(question, [(modality, b"") for modality in media], max_new_tokens=20))
    ids = trained(made.model.chat, turns, inputs, outputs, system=system)
    assert read(talk) == ids[: len(read(talk))] and len(ids) - len(read(talk)) <= 1  # the last end token is not read
    holes = {modality: sum(i == made.model.lm.table.placeholder_id(modality) for i in ids) for modality in TOKENS}
    assert holes == {modality: TOKENS[modality] * inputs.count(modality) for modality in TOKENS}


@pytest.mark.parametrize("turns", [["what?", "x", "and?", "y"], ["hello", "x", "what?", "y", "and?", "z"]])
def test_a_caption_turn_stands_before_the_question_that_shows_the_medium(turns, monkeypatch):
    place = 2 * (len(turns) == 6)
    answers = [*turns[1::2]]
    answers.insert(place // 2, "red")
    made = emitting(*script(answers, ()), mode="per_modality", caption_turn=True)
    monkeypatch.setattr(made, "encode", lambda modality, data: FEATURES[modality])
    talk = Conversation(made)
    for number, question in enumerate(turns[::2]):
        list(talk.say(question, [("image", b"")] if 2 * number == place else [], max_new_tokens=20))
    record = [f"<image>\n{text}" if at == place else text for at, text in enumerate(turns)]
    ids = trained(made.model.chat, record, ["image"], (), caption="red")
    assert read(talk) == ids[: len(read(talk))] and len(ids) - len(read(talk)) <= 1


def stage3(*samples: Sample, model, **changes) -> ChatData:
    """Stage 3 on these samples."""
    config = dataclasses.replace(STAGES["stage3"], mixture=(("s", 1.0),), **changes)
    return ChatData(config, model.chat, {"s": list(samples)}, {"image": Features()}, model.spec.input_projector)


def test_a_picture_in_a_later_turn_stays_there_in_training():
    """The record of the case, in a dataset that is not said to hold dialogues: its questions cannot share a prefix, so it is a conversation."""
    record = json.loads((CASES / "later_turn" / "record.json").read_text())[0]
    talk = talk_of([(turn["from"], turn["value"]) for turn in record["conversations"]], {"image": 1}, {})
    model = any_model("shared")
    sample = Sample(key="k", source="s", modality="image", conversations=talk.exchanges)
    row = stage3(sample, model=model).row(sample, 0, 3)
    chat = model.chat
    grown = [*chat.question_prompt("I will show you something."), *chat.spoken("Go ahead."), *chat.close()]
    grown += [*chat.question_prompt(asked("What is it?", [("image", 3)]), later=True), *chat.spoken("a square"), chat.end_id]
    assert row.ids.tolist() == grown and row.positions.tolist() == list(range(len(grown)))
    answers = chat.tokenizer.decode([int(i) for i in row.targets if i != IGNORE])
    assert answers == f"Go ahead.{END}a square{END}"


@pytest.mark.parametrize("question", ["what hue?", "<image>\nwhat hue?", "what hue has <image> here?", "what hue?\n<image>"])
def test_each_question_of_a_training_row_is_the_prompt_of_its_answer(question, monkeypatch):
    """`answer`, `stream` and a row of training have the same tokens, and answer and stream say the same."""
    model = any_model("per_modality")
    made, chat = Generator(model, caption_turn=False), model.chat
    said = asked(question, [("image", 0)])
    texts = [question, "is it?"] if isinstance(said[0], Shown) else [question]
    pairs = ((said, "red"), ("is it?", "no"))[: len(texts)]
    sample = Sample(key="a", source="s", modality="image", conversations=pairs)
    row = stage3(sample, model=model, questions=2).row(sample, 0, 3)
    features = Features().gather(["a"])[0][0]
    monkeypatch.setattr(made, "encode", lambda modality, data: features)
    segments = sorted({int(segment) for segment in row.segments} - {0})
    rows = [[int(i) for i, where in zip(row.ids, row.segments, strict=True) if where in (0, segment)] for segment in segments]
    assert len(rows) == len(texts)
    answers = made.answer([Question(text=text, media_key="a", modality="image", features_NE=features) for text in texts], max_new_tokens=6)
    for text, answer in zip(texts, answers, strict=True):
        ids = chat.question_prompt(asked(text, [("image", 3)]))
        assert answer.num_input_tokens == len(ids) and any(seen[: len(ids)] == ids for seen in rows)
        events = made.stream(text, [("image", b"")], max_new_tokens=6)
        assert "".join(event.text for event in events).strip() == answer.text
        with torch.no_grad():
            first = int(model.lm.logits(uncached(model, ids, {"image": [features]})[-1:]).argmax())
        assert answer.token_ids[0] == first


def test_questions_that_place_their_medium_are_answered_beside_others_as_alone():
    made = Generator(any_model("per_modality"), caption_turn=False)
    features = Features().gather(["a"])[0][0]
    texts = ["what?", "is <image> red?", "and <image>, is it?", "why?", "<image>\nso?", "two <image> of <image>?", "the <video> tag?"]
    items = [Question(text=text, media_key="a", modality="image", features_NE=features) for text in texts] + [Question(text="<image> in HTML?")]
    for helped in (False, True):
        together = made.answer(items, max_new_tokens=2, caption_turn=helped)
        alone = [made.answer([item], max_new_tokens=2, caption_turn=helped)[0] for item in items]
        assert [(a.token_ids, a.num_input_tokens, a.caption) for a in together] == [(a.token_ids, a.num_input_tokens, a.caption) for a in alone]
        assert [a.caption is not None for a in together] == [helped, False, False, helped, helped, helped, helped, False]
    items = [items[0], items[1], items[-1]]
    follow = made.follow_up(items, ["and now?"] * len(items), max_new_tokens=3)
    assert [a.token_ids for a in follow] == [made.follow_up([item], ["and now?"], max_new_tokens=3)[0].token_ids for item in items]


def test_a_row_of_training_gives_the_states_that_generation_reads():
    model = any_model("shared")
    chat, features = model.chat, torch.from_numpy(FEATURES["image"])[None]
    turns = [Turn("hello", "x"), Turn(("what is ", Shown("image"), ", say?"), "y")]
    row = chat.question_row("image", 3, turns, dialogue=True)
    with torch.no_grad():
        hidden_TD = model(collate([row], {"image": (features, torch.tensor([3]), [0])}))[0]
    grown = [*chat.question_prompt("hello"), *chat.spoken("x"), *chat.close()]
    grown += chat.question_prompt(asked("what is <image>, say?", [("image", 3)]), later=True)
    assert row.ids[: len(grown)].tolist() == grown
    assert torch.allclose(hidden_TD[len(grown) - 1], uncached(model, grown, {"image": [FEATURES["image"]]})[-1], atol=1e-5)


def test_answers_before_a_medium_is_shown_take_the_route_they_have_when_they_are_written():
    model = any_model("per_modality")
    chat = model.chat
    turns = [Turn("hello", "x"), Turn("so?", "z"), Turn(("what is ", Shown("image"), "?"), "y"), Turn("why?", "w")]
    row = chat.question_row("image", 3, turns, dialogue=True, routed=True)
    early, late = ([int(i) for i in row.ids[row.segments == segment]] for segment in (1, 2))
    whole = chat.question_row("image", 3, turns, dialogue=True)
    assert late == whole.ids.tolist() and early == whole.ids[: len(early)].tolist() and set(row.segments) == {1, 2}
    answers = [chat.tokenizer.decode([int(i) for i in row.targets[row.segments == segment] if i != IGNORE]) for segment in (1, 2)]
    assert answers == [f"x{END}z{END}", f"y{END}w{END}"] and (whole.targets != IGNORE).sum() == (row.targets != IGNORE).sum()
    batch = collate([row], {"image": (torch.from_numpy(FEATURES["image"])[None], torch.tensor([3]), [0])})
    routes = model.routes(batch.ids_BT, batch.segments_BT)[0]
    assert [routes[row.segments == segment].unique(dim=0).tolist() for segment in (1, 2)] == [[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]]
    with torch.no_grad():
        hidden_TD = model(batch)[0]
    first = chat.question_prompt("hello")
    assert torch.allclose(hidden_TD[len(first) - 1], uncached(model, first)[-1], atol=1e-5)
    assert (
        chat.question_row("image", 3, turns[2:], dialogue=True, routed=True).ids.tolist()
        == chat.question_row("image", 3, turns[2:], dialogue=True).ids.tolist()
    )
