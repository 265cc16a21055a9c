"""generate, chat and pack from the command line on toy exports: options reach the model, what is broken is named, and no mistake ends a chat."""

import json

import numpy as np
import pytest
import torch
from toy_any import emitting
from toy_model import build, save_export, uncached, watched

from flows.cli.ask import Speaker, chat, shown
from flows.cli.main import build_parser, main
from infra.step import AnyloomError
from infra.storage import digest_tree
from mmcore.inference.conversation import Conversation
from mmcore.inference.generator import DESCRIPTION, Generator
from mmcore.inference.next_token import LIKELIEST, Sampling
from mmcore.types import BrokenBlock, Medium, TextPiece

IMAGE, AUDIO = tuple(f"<image_0{i}>" for i in range(4)), ("<audio_00>", "<audio_01>")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return save_export(build(lora=True), tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The command line in this process: arguments -> (stdout, stderr), after a look at the exit code."""
    monkeypatch.setattr("infra.settings.offline_environment", lambda: None)  # which stays as it is for the other tests
    monkeypatch.chdir(tmp_path)

    def command(*arguments, expect=0):
        assert main([*map(str, arguments)]) == expect
        return capsys.readouterr()

    return command


def typed(monkeypatch, *lines):
    """What is typed into a chat."""
    rest = iter(lines)
    monkeypatch.setattr("builtins.input", lambda _: next(rest))


@pytest.mark.parametrize("command", [("generate", "--model", "m", "hello"), ("chat", "--model", "m")])
def test_without_options_the_likeliest_tokens_are_written_and_blocks_completed(command):
    args = build_parser().parse_args(command)
    assert Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed) == LIKELIEST
    assert (args.top_k, args.top_p, args.seed) == (Sampling().top_k, Sampling().top_p, Sampling().seed) == (0, 1.0, 0)
    assert args.complete_blocks is True and build_parser().parse_args([*command, "--no-complete-blocks"]).complete_blocks is False


def test_options_of_sampling_reach_the_model(export, run, monkeypatch):
    made = Generator.load(export)
    hot = {"temperature": 3.0, "seed": 7}
    said = []
    for settings in ({}, hot, hot | {"top_k": 3}, hot | {"top_p": 0.05}, hot | {"top_k": 1}):
        sampling = Sampling(**settings) if settings else LIKELIEST
        events = list(made.stream("what is it?", max_new_tokens=8, sampling=sampling))
        assert all(isinstance(event, TextPiece) for event in events)
        text = "".join(event.text for event in events)
        options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        assert run("generate", "--model", export, "--max-new-tokens", 8, *options, "what is it?").out == f"{shown(text)}\n"
        said.append(text)
        typed(monkeypatch, "what is it?", "/quit")
        talked = "".join(event.text for event in Conversation(made, sampling).say("what is it?", max_new_tokens=8))
        assert run("chat", "--model", export, "--max-new-tokens", 8, *options).out == f"{shown(talked)}\n"
    assert len(set(said[:4])) == 4 and said[4] == said[0]  # drawn among one: the likeliest


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--top-p", "10", "--top-p 10.0: it must be above 0 and at most 1"),
        ("--top-p", "0", "--top-p 0.0: it must be above 0 and at most 1"),
        ("--top-k", "-1", "--top-k -1: it must be 0 (all tokens) or more"),
        ("--temperature", "-0.5", "--temperature -0.5: it must be 0 (the likeliest token) or more"),
        ("--max-new-tokens", "0", "--max-new-tokens 0: it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_one_line(export, run, option, value, message):
    assert run("generate", "--model", export, option, value, "hello", expect=1) == ("", f"anyloom: {message}\n")


def test_a_packed_model_answers_with_its_base_or_bundled(export, run, tmp_path):
    ask = ("--max-new-tokens", 6, "what is it?")
    answer = run("generate", "--model", export, *ask).out
    assert len(answer) > 1
    said = run("pack", "--model", export, "--out", tmp_path / "light").out
    assert said.startswith(f"{tmp_path / 'light'}: ") and said.endswith(" MB, without model.safetensors of the language model (--base gives them back)\n")
    assert not list((tmp_path / "light").rglob("model.safetensors"))
    assert run("generate", "--model", tmp_path / "light", "--base", export / "lm", *ask).out == answer
    lacking = run("generate", "--model", tmp_path / "light", *ask, expect=1)
    assert lacking.out == "" and len(lacking.err.splitlines()) == 1 and "model.safetensors" in lacking.err and "--base" in lacking.err
    assert ", without" not in run("pack", "--model", export, "--out", tmp_path / "whole", "--bundle").out
    assert digest_tree(tmp_path / "whole") == digest_tree(export)
    assert run("generate", "--model", tmp_path / "whole", *ask).out == answer
    again = run("pack", "--model", export, "--out", tmp_path / "whole", expect=1)
    assert again.err == f"anyloom: --out {tmp_path / 'whole'}: it exists already; name a new directory\n"


def test_blocks_are_completed_or_named_when_they_are_not_whole(run, monkeypatch, tmp_path):
    (tmp_path / DESCRIPTION).write_text("{}")
    whole, broken = "<image: conditioning 5 x 8; this model has no decoder for it>", "the image block broke off after 2 of 4 signal tokens"

    def say(*arguments):
        monkeypatch.setattr("flows.cli.ask.load", lambda directory, base=None: emitting(*IMAGE[:2], "b", "<|im_end|>", "c"))
        typed(monkeypatch, "draw", "and now?", "/quit")
        return run(arguments[0], "--model", tmp_path, *arguments[1:])

    assert say("generate", "draw") == (f"{whole}c\n", "")
    assert say("generate", "--no-complete-blocks", "draw") == ("b\n", f"{broken}\n")
    assert say("chat").out == f"{whole}c\n\n"
    chatted = say("chat", "--no-complete-blocks")
    assert chatted.out == "b\nc\n" and chatted.err.splitlines()[1:] == [broken]


class Failing:
    """A Drawer whose decoder fails, or makes what no file can hold."""

    def __init__(self, error):
        self._error = error

    def can(self, modality):
        return True

    def draw(self, blocks, seeds):
        if self._error:
            raise AnyloomError(self._error)
        return [Medium("audio", np.full(8, np.nan, np.float32), 16000)]


@pytest.mark.parametrize(
    ("error", "message"),
    [("the decoder failed", "the decoder failed"), ("", "an audio clip with samples that are not finite cannot be written; generate it again in float32")],
)
def test_a_medium_that_cannot_be_made_ends_no_chat(error, message, monkeypatch, tmp_path, capsys):
    """The answer ends there, and the conversation goes on with what was said: the next turn sees the tokens up to the block."""
    (tmp_path / DESCRIPTION).write_text("{}")
    made = emitting("a", *AUDIO, "b")
    speaker, states, template = Speaker(made, tmp_path, tmp_path / "made", seed=0, max_new_tokens=9), watched(made), made.model.chat
    monkeypatch.setattr(speaker, "_drawer", Failing(error))
    typed(monkeypatch, "say it", "and now?", "/quit")
    chat(speaker, [])
    said = capsys.readouterr()
    assert said.out == "a\nb\n" and said.err.splitlines()[1:] == [message] and not (tmp_path / "made").exists()
    answer = [*template.literal("a"), *made.model.lm.table.block("audio"), *template.close()]
    ids = [*template.question_prompt("say it", opened=False), *answer, *template.question_prompt("and now?", opened=False, later=True)]
    assert torch.allclose(states[3][0], uncached(made.model, ids)[-1], atol=1e-4)


def test_a_message_that_is_too_long_is_refused_and_the_chat_goes_on(monkeypatch, tmp_path, capsys):
    (tmp_path / DESCRIPTION).write_text("{}")
    made = emitting("a", "<|im_end|>", "b")
    typed(monkeypatch, "hello", "x" * 2100, "and now?", "/quit")
    chat(Speaker(made, tmp_path, tmp_path, 0, 9), [])
    said = capsys.readouterr()
    assert said.out == "a\nb\n" and len(said.err.splitlines()) == 2 and "tokens, the language model takes at most 2048" in said.err


HOSTILE = [
    ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("\x9b2J", r"\x9b2J"),
    ("over\rwritten\x08", r"over\rwritten\x08"),
    ("\u202eturned", r"\u202eturned"),
    ("a\u2028b", r"a\u2028b"),
    ("one\ntwo", "one\ntwo"),
    ("Grüße, 猫 🐈", "Grüße, 猫 🐈"),
]


@pytest.mark.parametrize(("raw", "told"), HOSTILE)
def test_nothing_that_a_model_says_is_obeyed_by_the_terminal(export, tmp_path, capsys, raw, told):
    speaker = Speaker(Generator.load(export), export, tmp_path, 0, 8)
    capsys.readouterr()
    speaker.say(iter([TextPiece(raw[:1]), TextPiece(raw[1:]), BrokenBlock(raw)]))
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{told}\n", f"{told}\n")


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_escape_sequences_in_answers_and_licences_are_shown_as_text(run, monkeypatch, tmp_path, command):
    class Says:
        """A generator of an export whose texts are hostile."""

        def __init__(self):
            self.description = {"commercial_use": "no", "licences": {"lm": {"name": "lm\x1b[31m", "licence": "x", "commercial_use": "no"}}}

        def stream(self, *_):
            yield TextPiece("\x1b[2Jhi\nthere")

    class Talk:
        def __init__(self, *_):
            pass

        def say(self, *_):
            yield from Says().stream()
            raise ValueError("the context is full\x1b[0m")

    (tmp_path / DESCRIPTION).write_text("{}")
    monkeypatch.setattr("flows.cli.ask.load", lambda directory, base=None: Says())
    monkeypatch.setattr("mmcore.inference.conversation.Conversation", Talk)
    typed(monkeypatch, "hello", "/x\x1b[31m", "/quit")
    said = run(command, "--model", tmp_path, *(["hello"] if command == "generate" else []))
    assert said.out.startswith("\\x1b[2Jhi\nthere\n") and "\x1b" not in said.out + said.err
    assert "lm\\x1b[31m: x" in said.err and (command == "generate" or "the context is full\\x1b[0m" in said.err)


def test_answers_are_documents_too(export, run, monkeypatch, tmp_path):
    (tmp_path / DESCRIPTION).write_text("{}")
    monkeypatch.setattr("flows.cli.ask.load", lambda directory, base=None: emitting("a", *IMAGE, "b", "<|im_end|>", "c"))
    said = run("generate", "--model", tmp_path, "draw", "--json")
    drawn = {"modality": "image", "file": None, "conditioning": [5, 8]}
    answer = {"text": "ab", "pieces": [{"text": "a"}, drawn, {"text": "b"}], "broken": []}
    assert json.loads(said.out) == {"model": str(tmp_path), "terms": ""} | answer and said.err.startswith("a<image: conditioning 5 x 8")
    typed(monkeypatch, "draw", "/quit")
    assert json.loads(run("chat", "--model", tmp_path, "--json").out)["turns"] == [{"question": "draw"} | answer]
    monkeypatch.undo()
    assert json.loads(run("pack", "--model", export, "--out", tmp_path / "packed", "--json").out)["directory"] == str(tmp_path / "packed")
