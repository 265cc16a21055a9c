"""User text never becomes a control token, whatever the tokenizer makes of its names; it decodes to itself."""

import random

import pytest
from tokenizers import AddedToken
from toy_lms import byte_tokenizer, sentencepiece_tokenizer

from mmcore.chat.chat import Chat
from mmcore.chat.plain_text import PlainText
from mmcore.chat.rows import Turn
from mmcore.chat.special_tokens import TokenTable
from mmcore.chat.templates import CHAT_TEMPLATES
from mmcore.config import SpecialTokens
from pipelines.toys.parts import lm_tokenizer

SENTENCES = ["USER: what hue? ASSISTANT: red", "[INST] draw </s> it <s>", "what hue is it"]
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
MARKS = ("[INST]", "[/INST]", "<tool_call>", "<think>", "<<SYS>>", "{{x}}")
WORDS = ("COVID", "   ", "\t\t")


def _with_marks(tokenizer):
    """Marks that are added but not special, as in Mistral's and Qwen's tokenizers; and added words and runs of spaces, which are text."""
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in MARKS])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in WORDS])
    return tokenizer


TOKENIZERS = {
    "toy": lambda: _with_marks(lm_tokenizer()),
    "bytes": lambda: _with_marks(byte_tokenizer(SPECIAL, "<s>", "</s>")),
    "one token for both ends": lambda: _with_marks(byte_tokenizer((), "</s>", "</s>")),
    "sentencepiece": lambda: _with_marks(sentencepiece_tokenizer(SENTENCES)),
}


def control_ids(tokenizer) -> set[int]:
    names = {*SPECIAL, *MARKS} & set(tokenizer.get_vocab())
    return {tokenizer.get_vocab()[name] for name in names} | {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_no_text_of_names_makes_a_control_token(kind):
    tokenizer = TOKENIZERS[kind]()
    plain, control = PlainText(tokenizer), control_ids(tokenizer)
    draws, words = random.Random(0), WORDS if kind != "sentencepiece" else ()  # which puts a space behind an added word
    for _ in range(300):
        text = "".join(draws.choice([*SPECIAL, *MARKS, *words, "<image>", "<", "[", "s>", "a", " ", "é", "\n"]) for _ in range(draws.randrange(1, 7)))
        for ids in (plain.inside(text), plain.first(text)):
            assert not control & set(ids), (text, ids)
        assert tokenizer.decode(plain.inside(text)).strip() == text.strip(), text


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_text_without_names_is_tokenized_as_ever(kind):
    tokenizer = TOKENIZERS[kind]()
    plain = PlainText(tokenizer)
    for text in ("what hue is it?", "a < b and [c]", "COVID", "x   y"):
        assert plain.first(text) == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.get_vocab()["COVID"] in plain.inside("a COVID b") and tokenizer.get_vocab()["   "] in plain.inside("a   b")


def test_a_sign_that_is_a_control_token_is_left_out():
    tokenizer = byte_tokenizer(("<s>", "</s>"), "<s>", "</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["\u2603"]})
    tokenizer.add_tokens([AddedToken("[", special=False, normalized=False)])
    plain = PlainText(tokenizer)
    assert tokenizer.decode(plain.inside("a[b[")) == "ab" and plain.inside("[") == []
    assert tokenizer.get_vocab()["\u2603"] not in plain.inside("a\u2603")


@pytest.mark.parametrize("template", list(CHAT_TEMPLATES))
def test_a_conversation_has_the_same_control_tokens_whatever_is_said(template):
    marks = CHAT_TEMPLATES[template].marks
    tokenizer = _with_marks(sentencepiece_tokenizer(SENTENCES) if template == "vicuna_v1" else byte_tokenizer((*marks, *SPECIAL), "<s>", "</s>"))
    chat = Chat(tokenizer, TokenTable(len(tokenizer), SpecialTokens(image=2, video=0, audio=0)), template)
    control = control_ids(tokenizer) | set(range(chat.table.base, chat.table.base + len(chat.table.names)))

    def of(text: str) -> list[int]:
        row = chat.question_row("text", 0, [Turn(text, text), Turn(text, text)], dialogue=True, system=text)
        return [int(i) for i in row.ids if int(i) in control]

    for name in (*SPECIAL, *MARKS, *marks, "<image>", "<video>", "<image_00>", "<image_01>", "<audio_07>"):
        assert of(f"x {name} y{name}") == of("x") and of(name) == of("x"), name
