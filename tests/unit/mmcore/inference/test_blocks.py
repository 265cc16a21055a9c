"""Signal blocks of a model whose tokens are scripted: several in one answer, one beyond a caption's limit, and those that are not whole."""

import pytest
import torch
from toy_any import emitting
from toy_model import Features, uncached, watched

from mmcore.inference.conversation import Conversation
from mmcore.inference.generator import CAPTION_TOKENS
from mmcore.types import BrokenBlock, Question, SignalBlock, TextPiece

IMAGE, AUDIO = tuple(f"<image_0{i}>" for i in range(4)), ("<audio_00>", "<audio_01>")
ATOL = 1e-4


def ids_of(made, *names):
    table, tokenizer = made.model.lm.table, made.model.chat.tokenizer
    return [table.base + table.names.index(name) if name in table.names else tokenizer.convert_tokens_to_ids(name) for name in names]


def test_one_answer_holds_text_and_several_media_each_from_the_states_at_its_own_tokens():
    names = ("a", *IMAGE, "b", *AUDIO, "c", *IMAGE, "d")
    made = emitting(*names)
    answer = made.answer([Question(text="draw, say, draw")], max_new_tokens=20)[0]
    assert answer.token_ids == (*ids_of(made, *names), made.model.chat.end_id) and answer.text == "abcd" and answer.broken == ()
    assert [block.modality for block in answer.blocks] == ["image", "audio", "image"]
    prompt = made.model.chat.question_prompt("draw, say, draw", opened=False)
    states_TD = uncached(made.model, [*prompt, *answer.token_ids])[len(prompt) :]
    for block, start in zip(answer.blocks, (1, 6, 9), strict=True):
        own_SD = states_TD[start : start + len(made.model.lm.table.block(block.modality))]
        with torch.no_grad():
            expected = made.model.conditioning(block.modality, own_SD[None])[0]
        assert torch.allclose(block.conditioning_QC, expected, atol=ATOL)
    assert not torch.allclose(answer.blocks[0].conditioning_QC, answer.blocks[2].conditioning_QC, atol=ATOL)
    events = list(emitting(*names).stream("draw, say, draw", max_new_tokens=20))
    assert [event.text if isinstance(event, TextPiece) else event.modality for event in events] == ["a", "image", "b", "audio", "c", "image", "d"]
    streamed = [event.conditioning_QC for event in events if isinstance(event, SignalBlock)]
    assert all(torch.allclose(one, block.conditioning_QC, atol=ATOL) for one, block in zip(streamed, answer.blocks, strict=True))


@pytest.mark.parametrize("words", [CAPTION_TOKENS - 4, CAPTION_TOKENS - 2, CAPTION_TOKENS - 1, CAPTION_TOKENS])
def test_a_block_that_goes_beyond_a_captions_limit_is_read_once(words):
    """A caption whose block ends at the limit, goes beyond it, or does not begin: the answer is that of one pass, alone and in a conversation."""
    names = ("a",) * words + IMAGE * (words < CAPTION_TOKENS)
    features_NE = Features().gather(["a"])[0][0]
    made, talking = (emitting(*names, "b", "c", caption_turn=True) for _ in range(2))
    chat = made.model.chat
    item = Question(text="what?", media_key="a", modality="image", features_NE=features_NE)
    ids = [*chat.caption_prompt("image", 3), *ids_of(made, *names), *chat.close(), *chat.question_prompt("what?", opened=False, later=True)]
    states = watched(made)
    answer = made.answer([item], max_new_tokens=4)[0]
    assert (answer.text, answer.caption, answer.num_input_tokens) == ("bc", "a" * words, len(ids))
    expected = uncached(made.model, ids, {"image": [features_NE]})[-1]
    assert torch.allclose(states[len(names)][0], expected, atol=ATOL)

    talking.encode = lambda modality, data: features_NE
    states = watched(talking)
    talk = Conversation(talking)
    assert "".join(event.text for event in talk.say("what?", [("image", b"")], max_new_tokens=4)) == "bc"
    assert torch.allclose(states[len(names)][0], expected, atol=ATOL) and talk.cache.lengths == [len(ids) + 2]


@pytest.mark.parametrize(
    ("names", "limit", "text", "broken"),
    [
        ((*IMAGE[:2], "b"), 9, "b", ["the image block broke off after 2 of 4 signal tokens"]),
        ((IMAGE[2], "b"), 9, "b", ["<image_02> came without the signal tokens before it"]),
        (("a", IMAGE[0], *AUDIO), 9, "a", ["the image block broke off after 1 of 4 signal tokens"]),
        (IMAGE, 2, "", ["the image block broke off after 2 of 4 signal tokens"]),
        ((IMAGE[1], "a", *IMAGE[:3]), 9, "a", ["<image_01> came without the signal tokens before it", "the image block broke off after 3 of 4 signal tokens"]),
    ],
)
def test_a_block_that_is_not_whole_is_named_wherever_blocks_are_not_completed(names, limit, text, broken):
    ended, whole = ("x", "<|im_end|>"), ["audio"] if AUDIO[0] in names else []

    def stream(made, **options):
        return list(made.stream("draw", max_new_tokens=limit, **options))

    def said(made, **options):
        return list(Conversation(made).say("draw", max_new_tokens=limit, **options))

    for way in (stream, said):
        events = way(emitting(*names), complete_blocks=False)
        assert [event.reason for event in events if isinstance(event, BrokenBlock)] == broken
        assert "".join(event.text for event in events if isinstance(event, TextPiece)) == text
        assert [event.modality for event in events if isinstance(event, SignalBlock)] == whole
        completed = way(emitting(*names))
        assert not any(isinstance(event, BrokenBlock) for event in completed) and any(isinstance(event, SignalBlock) for event in completed)
    answer = emitting(*ended, *names).follow_up([Question(text="what?")], ["draw"], max_new_tokens=limit, complete_blocks=False)[0]
    assert (answer.text, list(answer.broken), [block.modality for block in answer.blocks]) == (text, broken, whole)
    answer = emitting(*ended, *names).follow_up([Question(text="what?")], ["draw"], max_new_tokens=limit)[0]
    assert answer.broken == () and answer.blocks


def test_a_conversation_goes_on_after_a_block_that_was_cut_off():
    made = emitting("a", *IMAGE, "b")
    talk, states, chat = Conversation(made), watched(made), made.model.chat
    assert [event.reason for event in talk.say("draw", max_new_tokens=3, complete_blocks=False) if isinstance(event, BrokenBlock)]
    states.clear()
    list(talk.say("and now?", max_new_tokens=1))
    said = [*ids_of(made, "a", *IMAGE[:2]), *chat.close()]
    ids = [*chat.question_prompt("draw", opened=False), *said, *chat.question_prompt("and now?", opened=False, later=True)]
    assert torch.allclose(states[0][0], uncached(made.model, ids)[-1], atol=ATOL)
