"""Words in, files out: requests and their wordings, blocks into media, what is counted when a model is asked to draw."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_steps import png
from listed import sharded
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from toy_any import emitting
from toy_decoders import directory, streams
from toy_model import Features, build

from evals.generation.config import DrawingEvalConfig
from evals.generation.drawing import PARTS, _drawn, image_metrics, run
from evals.generation.drawing_prompts import NEW_REQUESTS, NEW_REQUESTS_OF, TALK
from evals.generation.made import drawn, unreadable
from evals.generation.requests import AFTER, JUDGED, Prompt, after_questions, answered, block_metrics, image_questions, reply
from flows.cli.ask import Speaker, chat
from infra.step import AnyloomError, Artifact, StepContext
from mmcore.chat.asking import request
from mmcore.chat.wordings import REQUESTS
from mmcore.concepts.shape_judge import TENSORS, ShapeJudge
from mmcore.concepts.shapes import CONCEPTS, PHRASES
from mmcore.encoders.squares import refuse_thin
from mmcore.inference.conversation import Conversation
from mmcore.inference.drawer import DECODERS, Drawer
from mmcore.inference.generator import DESCRIPTION, Generator
from mmcore.media.decode import decode_image
from mmcore.training.signals import caption_key
from mmcore.types import Answer, Question, SignalBlock, TextPiece
from pipelines.demo.talk import TALK as TRAINED_TALK

CONFIG = DrawingEvalConfig(bootstrap_draws=100)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """What Drawer reads of an export: a picture decoder that is sampled in 2 steps, and a sound decoder with its family's own number."""
    root = tmp_path_factory.mktemp("export")
    (root / DECODERS).mkdir()
    (root / DECODERS / "image").symlink_to(directory("tiny-sd15"))
    (root / DECODERS / "audio").symlink_to(directory("tiny-audioldm2"))
    (root / DESCRIPTION).write_text(json.dumps({"sampling": {"image": {"steps": 2, "guidance": 2.0}, "audio": {"steps": 2}}}))
    return root


def blocks(name: str, modality: str, count: int = 2) -> list[SignalBlock]:
    widest = max(stream.shape[-1] for stream in streams(name, count))
    conditioning = torch.cat([functional.pad(stream, (0, widest - stream.shape[-1])) for stream in streams(name, count)], dim=1)
    return [SignalBlock(modality, row) for row in conditioning]


# ---- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", sorted(REQUESTS))
def test_a_caption_is_asked_for_in_several_wordings(modality):
    assert request(modality, "a frog") == REQUESTS[modality][0].format("a frog")
    variants = [request(modality, "a frog", variant) for variant in range(len(REQUESTS[modality]))]
    assert len(set(variants)) == len(variants) and set(variants) == {wording.format("a frog") for wording in REQUESTS[modality]}
    assert len({caption_key(modality, "a frog", variant) for variant in range(3)}) == 3
    second = {request(modality, f"thing {i}", 1).replace(f"thing {i}", "{}") for i in range(400)}
    assert second == set(REQUESTS[modality][1:])  # captions do not all take the same second wording


def test_what_is_judged_was_never_trained_on():
    said = ("a {c} {s}", *PHRASES)
    trained = {wording.format(phrase) for wording in REQUESTS["image"] for phrase in said} | set(REQUESTS["image"])
    assert not {question.casefold() for question, _ in TRAINED_TALK} & {text.casefold() for text in TALK}
    assert not trained & {*NEW_REQUESTS, *NEW_REQUESTS_OF}
    assert len(set(TALK)) == len(TALK) and not any(text.lower().startswith(("draw", "paint", "show", "make", "create", "sketch")) for text in TALK)


class Seeing(Generator):
    """A generator whose encoder is a lookup."""

    def encode(self, modality, data):
        return Features().gather([data.decode()])[0][0]


def said_then(generator, question, picture, text, complete_blocks=True):
    conversation = Conversation(generator)
    list(conversation.say(question, [("image", picture)], 6, complete_blocks))
    return "".join(event.text for event in conversation.say(text, (), 6, complete_blocks) if isinstance(event, TextPiece)).strip()


@pytest.mark.parametrize("caption_turn", (True, False))
def test_what_is_said_later_in_many_conversations_is_answered_as_in_each_alone(caption_turn):
    generator = Seeing(build(lora=True), caption_turn=caption_turn)
    asked = [("what?", b"a", "draw it"), ("hue of it all?", b"bb", "and now?"), ("what?", b"a", "a longer thing, please")]
    items = [
        Question(text=question, media_key=str(i), modality="image", features_NE=generator.encode("image", data)) for i, (question, data, _) in enumerate(asked)
    ]
    answers = generator.follow_up(items, [text for *_, text in asked], max_new_tokens=6)
    assert [answer.text for answer in answers] == [said_then(generator, *one) for one in asked]
    assert len({answer.text for answer in answers}) > 1


@pytest.fixture
def ctx(tmp_path):
    """Of eval_drawing."""
    return context(tmp_path, DrawingEvalConfig(max_new_tokens=6, chunk=2))


def context(root, config, **inputs) -> StepContext:
    """inputs: name -> directory."""
    given = {name: Artifact(name=name, path=path, fingerprint="f", digest="d", result={}) for name, path in inputs.items()}
    (root / "out").mkdir(exist_ok=True)
    return StepContext(name="eval_drawing", config=config, inputs=given, sources={}, output=root / "out", work=root, stores=root / "stores")


SEEN = {"a": Features().gather(["a"])[0][0]}
"""Features of an image by its key."""


def test_a_request_after_a_question_is_answered_as_a_conversation_answers_it(ctx):
    generator = Seeing(build(lora=True), caption_turn=True)
    first = [Prompt(condition="talk", text="hello"), Prompt(condition="picture_question", text="what?", media_key="a")]
    (after,) = after_questions([Prompt(condition="asked_new_wording", text="draw it", concept=3)], first[1:])
    assert after == Prompt(condition=AFTER, text="draw it", concept=3, media_key="a", before="what?") and after_questions(first, []) == []
    answers = answered(ctx, generator, [first[0], after, first[1]], SEEN)
    assert answers[1].text == said_then(generator, "what?", b"a", "draw it", complete_blocks=False)
    assert [answers[0].text, answers[2].text] == [answer.text for answer in answered(ctx, generator, first, SEEN)]


@pytest.mark.parametrize("before", ("", "what?"))
def test_a_block_counts_when_the_model_writes_all_of_it_by_itself(before, ctx):
    asked = Prompt(condition=AFTER, text="draw it", concept=3, media_key="a" if before else "", before=before)
    first, whole = ("x", "<|im_end|>") * bool(before), tuple(f"<image_0{i}>" for i in range(4))
    for names, emitted, broken in ((whole, 1.0, ""), (whole[:2], 0.0, "the image block broke off after 2 of 4 signal tokens")):
        row = reply(asked, answered(ctx, emitting(*first, *names), [asked], SEEN)[0], "image")
        assert (row["emitted"], row["blocks"], row["broken"]) == (emitted, int(emitted), broken)


# ---- what cannot be read --------------------------------------------------------------------------------------------

CASES = Path(__file__).parents[3] / "cases"


def encode(modality: str, data: bytes) -> np.ndarray:
    """The mean colour of an image, from an encoder that takes no strips."""
    return np.asarray(refuse_thin(decode_image(data)).resize((1, 1)), np.float32).reshape(1, 3)


def asked_images(root: Path) -> Path:
    """Shards of records about images: four sound ones, a strip that no encoder takes, a file that is cut short, and a record without an image."""
    media = root / "lists" / "media"
    media.mkdir(parents=True)
    for name, data in {**{str(n): png(n) for n in range(4)}, "4": (CASES / "unencodable" / "strip.png").read_bytes(), "5": png(5)[:300]}.items():
        (media / f"{name}.png").write_bytes(data)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "noise"}]
    records = [{"image": f"media/{n}.png", "conversations": turns} for n in range(6)]
    records.append({"conversations": [{"from": "human", "value": "What is it?"}, turns[1]]})
    (root / "lists" / "instruct").mkdir()
    (root / "lists" / "instruct" / "easyvqa_test.json").write_text(json.dumps(records))
    return sharded(root, root / "lists", {"easyvqa_test": "test"})


TOLD = [
    "2 of 7 records of easyvqa_test are not drawn (no_medium 1, truncated 1), the first is easyvqa_test-000005: ",
    "1 of 5 drawn records of easyvqa_test are not asked (too_large 1), the first is easyvqa_test-000004: a strip of 1 x 1000000",
]


def test_an_image_that_the_encoder_cannot_take_is_left_out_and_the_others_are_asked_about(tmp_path):
    found = image_questions(context(tmp_path, CONFIG, shards_instruct=asked_images(tmp_path)), encode)
    keys = [f"easyvqa_test-{n:06d}" for n in range(4)]
    assert [prompt.media_key for prompt in found.prompts] == list(found.features) == keys
    assert all(line.startswith(told) for line, told in zip(found.left_out, TOLD, strict=True))
    after = after_questions([Prompt(condition=AFTER, text=f"draw {n}", concept=n) for n in range(6)], found.prompts)
    assert {prompt.media_key for prompt in after} == set(keys)


def test_the_step_goes_on_without_what_it_cannot_read(tmp_path, export, monkeypatch):
    """All of eval_drawing but for the words of the model, which gives no image."""
    (tmp_path / "lists" / "cc3m").mkdir(parents=True)
    (tmp_path / "lists" / "cc3m" / "stamps_heldout.tsv").write_text("".join(f"A thing {n}\tmedia/{n}.png\n" for n in range(4)))
    (tmp_path / "lists" / "media").mkdir()
    for n in range(4):
        (tmp_path / "lists" / "media" / f"{n}.png").write_bytes(png(n))
    inputs = {"shards_cc3m": sharded(tmp_path, tmp_path / "lists", {"stamps_heldout": "heldout"}, group="cc3m")}
    shutil.rmtree(tmp_path / "lists")
    inputs |= {"shards_instruct": asked_images(tmp_path), "export": export, "picture_judge": judge_at(tmp_path / "judge")}
    generator = Generator(build(lora=True), caption_turn=False)
    monkeypatch.setattr(generator, "encode", lambda modality, data: np.resize(encode(modality, data), SEEN["a"].shape))
    monkeypatch.setattr(Generator, "load", lambda *_, **__: generator)
    result = run(context(tmp_path, replace(CONFIG, draws=1, questions=5, max_new_tokens=2), **inputs))
    assert result["prompts"]["picture_question"] == 4 and result["prompts"][AFTER] == len(CONCEPTS) and result["unreadable"] == {}
    assert all(line.startswith(told) for line, told in zip(result["left_out"], TOLD, strict=True))


def judge_at(folder: Path) -> Path:
    """An untrained judge of images."""
    folder.mkdir()
    save_file(dict(ShapeJudge().state_dict()), folder / TENSORS)
    return folder


def test_an_image_that_cannot_be_read_counts_as_wrong_and_is_counted(tmp_path, export):
    (good, _), bad = blocks("tiny-sd15", "image"), SignalBlock("image", torch.full_like(blocks("tiny-sd15", "image")[0].conditioning_QC, torch.nan))
    drawer, given = Drawer(export), [good, bad, good]
    media = drawn(lambda numbers: drawer.draw([given[n] for n in numbers], numbers), range(3))
    assert media[1] is None and [(medium.data == drawer.draw([good], [n])[0].data).all() for n, medium in enumerate(media) if medium] == [True, True]
    prompts = [Prompt(condition=JUDGED[0], text=f"draw {n}", concept=n) for n in range(3)]
    said = {"caption": None, "token_ids": (), "num_input_tokens": 1}
    answers = [Answer(text="", **said, blocks=(block,)) for block in given]
    rows, pixels = _drawn(context(tmp_path, CONFIG, export=export, picture_judge=judge_at(tmp_path / "judge")), prompts, answers)
    assert [row["drawn"] for row in rows] == [1.0, 0.0, 1.0] and (pixels[1] == 255).all() and rows[1]["seen_shape"] == ""
    assert not any(rows[1][part] for part in (*PARTS, *(f"{part}_of_other" for part in PARTS)))
    replies = [reply(prompt, answer, "image") for prompt, answer in zip(prompts, answers, strict=True)]
    assert unreadable((row["condition"] for row in replies), (row["made_as"] for row in rows if row["drawn"])) == {JUDGED[0]: 1}


# ---- blocks into media ----------------------------------------------------------------------------------------------


def test_a_picture_depends_on_its_block_and_its_seed_only(export):
    drawer, (first, second) = Drawer(export), blocks("tiny-sd15", "image")
    alone, together = drawer.draw([first], [3]), drawer.draw([second, first], [4, 3])
    np.testing.assert_allclose(together[1].data.astype(int), alone[0].data.astype(int), atol=1)
    assert (drawer.draw([first], [3])[0].data == alone[0].data).all()
    assert (drawer.draw([first], [5])[0].data != alone[0].data).any() and (together[0].data != together[1].data).any()


def test_a_block_for_two_streams_is_cut_where_the_second_begins(export):
    (sound,) = Drawer(export).draw(blocks("tiny-audioldm2", "audio", 1), [0])
    assert sound.modality == "audio" and sound.data.ndim == 1 and np.isfinite(sound.data).all()


def test_what_cannot_be_drawn_is_said(export):
    drawer = Drawer(export)
    assert drawer.can("image") and not drawer.can("video")
    with pytest.raises(AnyloomError, match="no decoder for video: name one in the recipe's decoders"):
        drawer.draw([SignalBlock("video", torch.zeros(2, 8))], [0])
    with pytest.raises(AnyloomError, match="makes 2 tokens of width 5"):
        drawer.draw([SignalBlock("image", torch.zeros(2, 5))], [0])
    assert drawer.draw([], []) == []


# ---- the terminal ---------------------------------------------------------------------------------------------------


def test_media_become_files_that_overwrite_nothing(export, tmp_path, capsys):
    (block,) = blocks("tiny-sd15", "image", 1)
    out = tmp_path / "made"
    out.mkdir()
    (out / "image_1.png").write_bytes(b"mine")
    speaker = Speaker(None, export, out, seed=7, max_new_tokens=4)
    speaker.say(iter([TextPiece("here: "), block, TextPiece(" and "), block]))
    said = capsys.readouterr().out
    assert said == f"here: <{out / 'image_2.png'}> and <{out / 'image_3.png'}>\n"
    assert (out / "image_1.png").read_bytes() == b"mine"
    shown = [np.asarray(Image.open(out / f"image_{n}.png")) for n in (2, 3)]
    assert (shown[0] == Drawer(export).draw([block], [7])[0].data).all() and (shown[0] != shown[1]).any()  # the second one takes the next seed
    speaker.save_conditioning(tmp_path / "c.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "c.safetensors")["image_1"], block.conditioning_QC)


def test_a_block_without_a_decoder_is_shown_as_what_it_is(export, tmp_path, capsys):
    speaker = Speaker(None, export, tmp_path / "made", seed=0, max_new_tokens=4)
    speaker.say(iter([SignalBlock("video", torch.zeros(5, 8))]))
    assert capsys.readouterr().out == "<video: conditioning 5 x 8; this model has no decoder for it>\n" and not (tmp_path / "made").exists()
    with pytest.raises(AnyloomError, match="the model drew nothing"):
        Speaker(None, export, tmp_path, 0, 4).save_conditioning(tmp_path / "c.safetensors")


def test_chat_takes_media_by_path_and_survives_mistakes(export, tmp_path, capsys, monkeypatch):
    from test_generate import generator

    picture = tmp_path / "p.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    made = generator()
    shown = []
    monkeypatch.setattr(made, "encode", lambda modality, data: shown.append(data) or np.ones((3, 12), np.float32))
    shows, asks = f"/image {picture}", ["<image> or <image>?", "a <video> tag?", "/new", "/quit", "no"]
    lines = iter(["/image nowhere.png", shows, "what?", "and now?", "/dance", shows, *asks])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat(Speaker(made, export, tmp_path, 0, 4), [])
    said = capsys.readouterr()
    assert shown == [picture.read_bytes()] and said.out.count("\n") >= 3 and next(lines) == "no"
    assert "--image nowhere.png: No such file" in said.err and "/dance: no such command" in said.err and "names <image> 2 times but 1" in said.err


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_recall_false_alarms_and_precision_are_counted_over_replies():
    def replies(condition, emitted, broken=""):
        return [{"condition": condition, "prompt": f"{condition} {i}", "emitted": float(e), "broken": broken} for i, e in enumerate(emitted)]

    rows = (
        replies("asked_new_wording", [1, 1, 0, 1]) + replies("asked_other", [1, 0], "broke off") + replies("talk", [0, 0, 1]) + replies("picture_question", [0])
    )
    at = {(row["condition"], row["metric"]): row for row in block_metrics(CONFIG, rows)}
    assert at["asked", "emits_block"]["value"] == pytest.approx(4 / 6) and at["asked", "emits_block"]["n"] == 6
    assert at["not_asked", "emits_block"]["value"] == pytest.approx(1 / 4) and at["talk", "emits_block"]["value"] == pytest.approx(1 / 3)
    assert at["all", "precision"]["value"] == pytest.approx(4 / 5) and at["all", "broken_block"]["value"] == pytest.approx(2 / 10)
    assert at["asked_new_wording", "emits_block"]["ci_lo"] < 0.75 < at["asked_new_wording", "emits_block"]["ci_hi"]
    silent = block_metrics(CONFIG, replies("asked_new_wording", [0, 0]) + replies("talk", [0]))
    assert not [row for row in silent if row["metric"] == "precision"]  # nothing was drawn: no share of it either


def test_pictures_are_judged_against_what_was_asked_and_against_another_request():
    samples = []
    for name in ("asked_new_wording", "asked_trained_wording"):
        for i, concept in enumerate(CONCEPTS):
            right = float(i % 4 != 0)  # a quarter was never drawn, or wrong
            samples.append({"made_as": name, "concept": concept.caption, "shape": right, "colour": right, "both": right})
            samples[-1] |= {"shape_of_other": float(i % 3 == 0), "colour_of_other": 0.0, "both_of_other": 0.0}
    at = {(row["condition"], row["subgroup"]): row for row in image_metrics(CONFIG, samples)}
    assert at["asked_new_wording", "both"]["value"] == pytest.approx(0.75) and at["asked_new_wording, shuffled", "shape"]["value"] == pytest.approx(1 / 3)
    assert at["asked_new_wording - shuffled", "both"]["ci_lo"] > 0.4 and at["chance", "colour"]["value"] == pytest.approx(1 / 8)
