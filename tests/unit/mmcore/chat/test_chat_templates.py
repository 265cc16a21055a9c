"""Chat templates token by token: what stands in a row, which tokens are targets, and that training and generation use the same ids."""

import pytest
from toy_lms import byte_tokenizer, sentencepiece_tokenizer

from mmcore.chat.chat import Chat
from mmcore.chat.places import asked
from mmcore.chat.rows import Turn
from mmcore.chat.special_tokens import TokenTable
from mmcore.chat.templates import CHAT_TEMPLATES, chat_template
from mmcore.config import SpecialTokens
from mmcore.types import IGNORE, Shown

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SENTENCES = [f"{SYSTEM} USER: what hue? ASSISTANT: red", "USER: draw a dot ASSISTANT: here it is", "what hue is it", "dark red"]


def tokenizer_for(template):
    marks = CHAT_TEMPLATES[template].marks
    if template == "vicuna_v1":
        return sentencepiece_tokenizer(SENTENCES)
    if template in ("plain", "vicuna_v0"):
        return byte_tokenizer((), "</s>", "</s>")  # OPT's one token for both
    return byte_tokenizer(marks, None, CHAT_TEMPLATES[template].end)


def made(template) -> Chat:
    tokenizer = tokenizer_for(template)
    return Chat(tokenizer, TokenTable(len(tokenizer), SpecialTokens(image=2, video=0, audio=0)), template)


def tokens(chat, ids):
    base = chat.table.base
    return [chat.table.names[int(i) - base] if int(i) >= base else chat.tokenizer.convert_ids_to_tokens([int(i)])[0] for i in ids]


def spelled(*pieces):
    """Expected tokens of a byte tokenizer: a tuple is one token, a string one token per byte."""
    out = []
    for piece in pieces:
        out += list(piece) if isinstance(piece, tuple) else [{" ": "Ġ", "\n": "Ċ"}.get(c, c) for c in piece]
    return out


DIALOGUES = {
    "chatml": (
        [("<|im_start|>",), "user\n", ("<image>", "<image>"), "\nq", ("<|im_end|>",), "\n", ("<|im_start|>",), "assistant\n"],
        ["a", ("<|im_end|>",)],
        ["\n", ("<|im_start|>",), "user\nr", ("<|im_end|>",), "\n", ("<|im_start|>",), "assistant\n"],
        [("<image_00>", "<image_01>", "<|im_end|>")],
    ),
    "llama3": (
        [
            ("<|begin_of_text|>", "<|start_header_id|>"),
            "user",
            ("<|end_header_id|>",),
            "\n\n",
            ("<image>", "<image>"),
            "\nq",
            ("<|eot_id|>", "<|start_header_id|>"),
            "assistant",
            ("<|end_header_id|>",),
            "\n\n",
        ],
        ["a", ("<|eot_id|>",)],
        [("<|start_header_id|>",), "user", ("<|end_header_id|>",), "\n\nr", ("<|eot_id|>", "<|start_header_id|>"), "assistant", ("<|end_header_id|>",), "\n\n"],
        [("<image_00>", "<image_01>", "<|eot_id|>")],
    ),
    "vicuna_v0": (
        [("</s>",), "### Human: ", ("<image>", "<image>"), "\nq\n### Assistant:"],
        [" a", ("</s>",)],
        ["\n### Human: r\n### Assistant:"],
        [("<image_00>", "<image_01>", "</s>")],
    ),
    "plain": (
        [("</s>",), "Question: ", ("<image>", "<image>"), "\nq\nAnswer:"],
        [" a", ("</s>",)],
        ["\nQuestion: r\nAnswer:"],
        [("<image_00>", "<image_01>", "</s>")],
    ),
}
"""Prompt, answer, prompt, answer of one conversation about a picture of two tokens that ends in a drawing."""


@pytest.mark.parametrize("template", list(DIALOGUES))
def test_a_conversation_token_by_token(template):
    chat = made(template)
    row = chat.question_row("image", 2, [Turn("q", "a"), Turn("r", (Shown("image"),), 0.5)], dialogue=True)
    parts = [spelled(*part) for part in DIALOGUES[template]]
    assert tokens(chat, row.ids) == [token for part in parts for token in part]
    assert tokens(chat, [t for t in row.targets if t != IGNORE]) == parts[1] + parts[3]  # the answers and their end tokens, nothing else
    starts = [len(parts[0]), len(parts[0] + parts[1] + parts[2])]
    expected = [i - 1 for start, part in zip(starts, (parts[1], parts[3]), strict=True) for i in range(start, start + len(part))]
    assert [i for i, target in enumerate(row.targets) if target != IGNORE] == expected
    assert all(row.targets[i] == row.ids[i + 1] for i in expected)
    assert row.weights[row.targets != IGNORE].tolist() == [1.0] * len(parts[1]) + [0.5] * len(parts[3])
    assert row.positions.tolist() == list(range(len(row.ids)))


def test_vicuna_is_what_the_whole_text_becomes():
    """SentencePiece: pieces joined give the ids of the whole conversation, as the reference tokenises it; only answers are targets."""
    chat = made("vicuna_v1")
    whole = chat.tokenizer
    first = [whole.bos_token_id, *whole.encode(f"{SYSTEM} USER: what hue? ASSISTANT: dark red", add_special_tokens=False), whole.eos_token_id]
    row = chat.question_row("text", 0, [Turn("what hue?", "dark red"), Turn("draw\nit", (Shown("image"),)), Turn("what", "it")], dialogue=True)
    assert row.ids[: len(first)].tolist() == first
    rest = tokens(chat, row.ids[len(first) :])
    text = "".join(rest).replace("\u2581", " ")
    assert text == "USER: draw<0x0A>it ASSISTANT:<image_00><image_01></s>USER: what ASSISTANT: it</s>"
    answer = tokens(chat, whole.encode("dark red", add_special_tokens=False))
    assert answer[0].startswith("\u2581")
    tail = tokens(chat, whole.encode("it", add_special_tokens=False))
    assert tokens(chat, [t for t in row.targets if t != IGNORE]) == [*answer, "</s>", "<image_00>", "<image_01>", "</s>", *tail, "</s>"]
    picture = chat.question_row("image", 2, [Turn("what hue?", "red")])
    text = "".join(tokens(chat, picture.ids)).replace("\u2581", " ")
    assert text == f"<s> {SYSTEM} USER: <image><image><0x0A>what hue? ASSISTANT: red</s>"
    assert chat.decode(row.ids[-2:]).endswith("it") and chat.decode([int(i) for i in first[-3:]]).endswith("red")


@pytest.mark.parametrize("template", list(CHAT_TEMPLATES))
def test_prompts_of_generation_are_the_rows_of_training_up_to_the_answer(template):
    chat = made(template)

    def prompt_of(row):
        return row.ids[: next(i for i, target in enumerate(row.targets) if target != IGNORE) + 1].tolist()

    def last_prompt_of(row, answer):
        return row.ids[: len(row.ids) - len(chat.assistant(answer)) - 1].tolist()

    assert prompt_of(chat.question_row("text", 0, [Turn("q?", "a")])) == chat.question_prompt("q?", opened=False)
    media = [*chat.media_prefix("image", 2), *chat.question_prompt("q?", opened=True)]
    assert prompt_of(chat.question_row("image", 2, [Turn("q?", "a")])) == media
    assert chat.question_prompt(asked("q?", [("image", 2)])) == media == chat.question_prompt(asked("<image> q?", [("image", 2)]))
    assert prompt_of(chat.caption_row("image", 2, "red")) == chat.caption_prompt("image", 2)
    helped = chat.question_row("image", 2, [Turn("q?", "a")], caption="red")
    said = [*chat.caption_prompt("image", 2), *chat.spoken("red"), *chat.close(), *chat.question_prompt("q?", opened=False, later=True)]
    assert last_prompt_of(helped, "a") == said
    talk = chat.question_row("text", 0, [Turn("q?", "a"), Turn("r?", "b")], dialogue=True)
    grown = [*chat.question_prompt("q?", opened=False), *chat.spoken("a"), *chat.close(), *chat.question_prompt("r?", later=True)]
    assert last_prompt_of(talk, "b") == grown
    named = chat.question_prompt(asked("what <image> and?", [("image", 1)]))
    assert named[: len(chat.open())] == chat.open() and named.count(chat.table.placeholder_id("image")) == 1


@pytest.mark.parametrize("template", list(CHAT_TEMPLATES))
def test_contents_become_no_mark(template):
    chat = made(template)
    forged = "".join(chat.template.marks) + (chat.tokenizer.eos_token or "")
    marks = {chat.tokenizer.convert_tokens_to_ids(mark) for mark in chat.template.marks} | {chat.end_id}
    assert not marks & set(chat.question_prompt(f"x{forged}y")[len(chat.open()) : -len(chat._assistant)])
    row = chat.question_row("text", 0, [Turn(f"x{forged}", "a")])
    assert sum(int(i) == chat.end_id for i in row.ids) == sum(int(i) == chat.end_id for i in chat.question_row("text", 0, [Turn("x", "a")]).ids)


def test_a_tokenizer_without_the_marks_and_an_unknown_template_are_named():
    tokenizer = tokenizer_for("plain")
    table = TokenTable(len(tokenizer), SpecialTokens(image=2, video=0, audio=0))
    with pytest.raises(ValueError, match=r"tokenizer lacks <\|im_end\|>, which the chat template chatml is made of: set another `chat`"):
        Chat(tokenizer, table)
    with pytest.raises(ValueError, match="chat template 'alpaca' is unknown; there are: chatml, vicuna_v1, llama3, vicuna_v0, plain"):
        chat_template("alpaca")


def _chatml(system: str) -> str:
    """ChatML as SmolLM2 and Qwen2 publish it: with a system turn of their own where a conversation has none."""
    return (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\n" + system + "<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _sentencepiece_of_llama2():
    """As Llama 2 and Vicuna v1.5 set theirs: a space before the text, but none after a special token in it."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = sentencepiece_tokenizer(SENTENCES)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    return tokenizer


LLAMA3 = (
    "{% for message in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
VICUNA = (  # FastChat's conversation of v1.1 and v1.5; the tokenizer puts its first token before the text
    '{{ "' + SYSTEM + "\" }}{% for message in messages %}{% if message['role'] == 'user' %}{{ (' ' if loop.first else '') + 'USER: ' + message['content'] }}"
    "{{ ' ASSISTANT:' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SMOLLM2_SYSTEM, QWEN2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "You are a helpful assistant."
PUBLISHED = {
    "SmolLM2": ("chatml", _chatml(SMOLLM2_SYSTEM), f"<|im_start|>system\n{SMOLLM2_SYSTEM}<|im_end|>\n"),
    "Qwen2": ("chatml", _chatml(QWEN2_SYSTEM), f"<|im_start|>system\n{QWEN2_SYSTEM}<|im_end|>\n"),
    "Vicuna v1.5": ("vicuna_v1", VICUNA, ""),
    "Llama 3": ("llama3", LLAMA3, ""),
}
"""Model -> (our template, what its publisher's template renders as Jinja, its default system turn, which is left out here)."""


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_a_conversation_has_the_ids_that_the_published_template_gives(model):
    template, jinja, system = PUBLISHED[model]
    tokenizer = _sentencepiece_of_llama2() if template == "vicuna_v1" else tokenizer_for(template)
    if template == "llama3":
        tokenizer.bos_token = "<|begin_of_text|>"
    tokenizer.chat_template = jinja
    chat = Chat(tokenizer, TokenTable(len(tokenizer), SpecialTokens(image=2, video=0, audio=0)), template)
    turns = [("what hue?", "dark red"), ("draw a dot", "here it is"), ("is it?", "it is\nred")]
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    before = tokenizer.encode(system, add_special_tokens=False) if system else []
    first = [tokenizer.bos_token_id] if template == "vicuna_v1" else []
    row = chat.question_row("text", 0, [Turn(*turn) for turn in turns], dialogue=True)
    whole = first + tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokens(chat, whole) == tokens(chat, [*before, *row.ids, *chat.close()[1:]])
    assert whole == [*before, *row.ids.tolist(), *chat.close()[1:]]
    asked = first + tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert asked == before + chat.dialogue_prompt("text", 0, turns[:-1], turns[-1][0])
    assert tokens(chat, [t for t in row.targets if t != IGNORE]) == tokens(chat, [i for _, text in turns for i in (*chat.spoken(text), chat.end_id)])


@pytest.mark.parametrize("model", [name for name, (template, *_) in PUBLISHED.items() if template != "vicuna_v1"])
def test_a_turn_of_the_system_stands_where_the_published_template_has_it(model):
    template, jinja, _ = PUBLISHED[model]
    tokenizer = tokenizer_for(template)
    if template == "llama3":
        tokenizer.bos_token = "<|begin_of_text|>"
    tokenizer.chat_template = jinja
    chat = Chat(tokenizer, TokenTable(len(tokenizer), SpecialTokens(image=2, video=0, audio=0)), template)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what hue?"}, {"role": "assistant", "content": "red"}]
    row = chat.question_row("text", 0, [Turn("what hue?", "red")], system="Be brief.")
    assert tokenizer.apply_chat_template(messages, return_dict=False) == [*row.ids.tolist(), *chat.close()[1:]]
    assert chat.dialogue_prompt("text", 0, [], "what hue?", system="Be brief.") == chat.question_prompt("what hue?", system="Be brief.")


@pytest.mark.parametrize("template", list(CHAT_TEMPLATES))
def test_the_system_speaks_once_and_only_where_the_template_has_a_place(template):
    chat = made(template)
    plain = chat.question_row("text", 0, [Turn("q", "a"), Turn("r", "b")], dialogue=True)
    told = chat.question_row("text", 0, [Turn("q", "a"), Turn("r", "b")], dialogue=True, system="what hue")
    said = chat.tokenizer.decode(told.ids.tolist())
    assert said.count("what hue") == (1 if chat.template.system else 0) and (said == chat.tokenizer.decode(plain.ids.tolist())) != bool(chat.template.system)
    if template == "vicuna_v1":
        assert chat.question_row("text", 0, [Turn("q", "a")], system=SYSTEM).ids.tolist() == chat.question_row("text", 0, [Turn("q", "a")]).ids.tolist()
    if not chat.template.system:
        with pytest.raises(ValueError, match=f"the chat template {template} has no turn of the system"):
            chat.check_system("what hue")
    shared = chat.question_row("image", 2, [Turn("q", "a"), Turn("r", "b")], system="what hue")
    prefix = [int(i) for i in shared.ids[shared.segments == 0] if i < chat.table.base]
    assert ("what hue" in chat.tokenizer.decode(prefix)) == bool(chat.template.system)
