"""The judge of spoken words, what eval_speaking counts, and its place in the report."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from data_steps import run_step, wav
from test_report import _artifact
from test_weights import ct2_file, encoder_variables
from toy_decoders import directory
from toy_voice import decoder_variables

from evals.config import ReportConfig
from evals.generation.config import SpeakingEvalConfig
from evals.generation.made import unreadable, wav_bytes
from evals.generation.requests import AFTER, JUDGED, Prompt, block_metrics
from evals.generation.speaking import QUIET, VOICE, _audio, _heard, _kept, image_blocks, right_words, rows_of, word_metrics
from evals.generation.speaking_prompts import NEW_REQUESTS
from evals.pages.run.context import RunPage
from evals.pages.run.speaking import speaking_section
from evals.tables import METRICS, SPEAKING_SAMPLES, write_table
from infra.step import AnyloomError, Artifact, Resources, StepContext
from mmcore.chat.wordings import REQUESTS
from mmcore.concepts.shapes import CONCEPTS
from mmcore.concepts.speech_judge import BEGIN, END, LONGEST, SpeechJudge
from mmcore.decoders.texts import encode_texts
from mmcore.inference.drawer import DECODERS
from mmcore.inference.generator import DESCRIPTION
from mmcore.types import Answer, Medium, SignalBlock
from pipelines.weights.config import WeightsConfig
from pipelines.weights.ct2 import whisper_decoder

CONFIG = SpeakingEvalConfig(bootstrap_draws=200, shown=2)
RUN = "pipelines.weights.speech_judge:run"
PLACES = {"export": "export", "voice": "voice", "speech_judge": "judge"}


def tokenizer(path):
    """One token a byte, then Whisper's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([END, *BEGIN])
    made.save(str(path))


def toy_whisper(root):
    (root / "assets" / "whisper").mkdir(parents=True)
    variables = encoder_variables(layers=1) | decoder_variables()
    variables["encoder/conv1/weight"] = variables["encoder/conv1/weight"][:, :1].repeat(80, 1)  # the mel bins of the real one
    variables["encoder/position_encodings/encodings"] = variables["encoder/position_encodings/encodings"][:1].repeat(1500, 0)
    variables.pop("decoder/extra", None)
    ct2_file(root / "assets" / "whisper" / "model.bin", variables)
    tokenizer(root / "assets" / "whisper" / "tokenizer.json")
    return variables


def test_the_decoders_fused_projections_are_split():
    variables = decoder_variables()
    found = whisper_decoder(variables)
    at = "decoder/layer_0/attention/linear_1"
    assert (found["layers.0.encoder_attn.k_proj.weight"] == variables[f"{at}/weight"][:4].astype("float32")).all()
    assert (found["layers.0.encoder_attn.v_proj.bias"] == variables[f"{at}/bias"][4:].astype("float32")).all()
    assert "layers.0.encoder_attn.k_proj.bias" not in found and "layers.0.self_attn.k_proj.bias" not in found
    with pytest.raises(ValueError, match="head is not its embedding matrix"):
        whisper_decoder(decoder_variables() | {"decoder/projection/weight": variables["decoder/embeddings/weight"] + 1})
    with pytest.raises(ValueError, match=r"variables of the decoder that no layer of ours takes.*odd"):
        whisper_decoder(decoder_variables() | {"decoder/odd": variables["decoder/embeddings/weight"]})


def test_the_judge_is_opened_from_its_step_and_hears_the_same_in_any_company(tmp_path):
    toy_whisper(tmp_path)
    result = run_step(tmp_path, "judge", RUN, WeightsConfig(kind="pretrained", arch="whisper-tiny.en"), {"assets": "assets"})
    assert result["licence"] == "MIT" and result["parameters"] > 1000
    judge = SpeechJudge(tmp_path / "judge", heard_s=2.0)
    both = judge.hear([wav(0), wav(1, 3.0)])
    assert judge.hear([wav(1, 3.0)]) == both[1:] and all(isinstance(text, str) and text == text.strip() and len(text) <= LONGEST for text in both)
    assert not any(name in text for text in both for name in (END, *BEGIN))
    with pytest.raises(AnyloomError, match="no weights for arch 'whisper-large'"):
        run_step(tmp_path, "other", RUN, WeightsConfig(kind="pretrained", arch="whisper-large"), {"assets": "assets"})


def test_a_word_is_right_when_it_was_heard():
    red = next(number for number, concept in enumerate(CONCEPTS) if concept.caption == "a red circle")
    gray = next(number for number, concept in enumerate(CONCEPTS) if concept.caption == "a gray triangle")
    assert right_words("A red circle.", red) == {"shape": 1.0, "colour": 1.0, "both": 1.0}
    assert right_words("read circles", red) == {"shape": 0.0, "colour": 0.0, "both": 0.0} and right_words("", red)["both"] == 0.0
    assert right_words("The Grey Triangle", gray)["both"] == 1.0 and right_words("the great triangle", gray) == {"shape": 1.0, "colour": 0.0, "both": 0.0}


def test_what_is_asked_in_new_wordings_was_never_trained_on():
    trained = {wording.format('the words "a {c} {s}"') for wording in REQUESTS["audio"]}
    assert not trained & set(NEW_REQUESTS) and all('"a {c} {s}"' in wording for wording in NEW_REQUESTS)


def spoken_rows():
    """Every concept asked for in both ways; the first three of the new wordings got no sound, the rest was heard without a fault."""
    prompts = [Prompt(condition=name, text=f"{name} {i}", concept=i) for name in JUDGED for i in range(len(CONCEPTS))]
    heard = {(prompt.condition, number): CONCEPTS[prompt.concept].caption for number, prompt in enumerate(prompts) if number >= 3}
    heard |= {(VOICE, number): concept.caption for number, concept in enumerate(CONCEPTS)}
    return rows_of(CONFIG, prompts, heard, {(JUDGED[0], 5): "sounds/005.wav"})


def test_an_unanswered_request_counts_as_wrong_and_every_sound_meets_another_request():
    rows = spoken_rows()
    assert [row["spoken"] for row in rows[:4]] == [0.0, 0.0, 0.0, 1.0] and all(row["concept"] != row["other_concept"] for row in rows)
    at = {(row["condition"], row["subgroup"]): row for row in word_metrics(CONFIG, rows)}
    assert at[JUDGED[0], "both"]["value"] == pytest.approx(21 / 24) and at[JUDGED[1], "both"]["value"] == at[VOICE, "both"]["value"] == 1.0
    assert at[f"{JUDGED[0]}, shuffled", "both"]["value"] == 0.0 and at[f"{JUDGED[0]} - shuffled", "both"]["ci_lo"] > 0.5
    assert at[JUDGED[0], "both"]["clusters"] == len(CONCEPTS) and at[JUDGED[0], "both"]["ci_lo"] < 21 / 24 < at[JUDGED[0], "both"]["ci_hi"]


def test_answers_become_sounds_that_are_heard_and_some_are_kept(tmp_path):
    """The way from signal blocks to rows, with a toy voice and a toy judge; the language model's part is the block."""
    toy_whisper(tmp_path)
    run_step(tmp_path, "judge", RUN, WeightsConfig(kind="pretrained", arch="whisper-tiny.en"), {"assets": "assets"})
    for place in (tmp_path / "export" / DECODERS / "audio", tmp_path / "voice" / "pipeline"):
        shutil.copytree(directory("tiny-voice"), place)
    (tmp_path / "export" / DESCRIPTION).write_text("{}")
    prompts = [Prompt(condition=name, text=f"{name} {i}", concept=i) for name in JUDGED for i in range(2)] + [Prompt(condition="talk", text="hello")]
    (tokens,), _ = encode_texts(directory("tiny-voice"), [CONCEPTS[0].caption])
    block, said = SignalBlock("audio", tokens[0]), {"caption": None, "token_ids": (), "num_input_tokens": 1}
    answers = [Answer(text="", **said, blocks=() if i == 1 else (block,), broken=()) for i in range(len(prompts))]
    inputs = {name: Artifact(name=name, path=tmp_path / place, fingerprint="f", digest="d", result={}) for name, place in PLACES.items()}
    config = replace(CONFIG, heard_s=2.0, batch=16)
    places = {"output": tmp_path / "out", "work": tmp_path / "w", "stores": tmp_path}
    ctx = StepContext(name="eval_speaking", config=config, inputs=inputs, sources={}, resources=Resources(), **places)
    sounds = _audio(ctx, prompts, answers)
    asked = {(JUDGED[0], 0), (JUDGED[1], 2), (JUDGED[1], 3), (JUDGED[2], 4), (JUDGED[2], 5)}  # not the unanswered one, and not the sound in an ordinary talk
    assert set(sounds) == asked | {(VOICE, number) for number in range(len(CONCEPTS))} and sounds[JUDGED[0], 0] == sounds[VOICE, 0] != sounds[VOICE, 1]
    heard, kept = _heard(ctx, sounds), _kept(ctx, sounds)
    assert set(heard) == set(sounds) and kept == {(JUDGED[0], 0): "sounds/000.wav"}
    assert (tmp_path / "out" / "sounds" / "000.wav").read_bytes() == sounds[VOICE, 0]
    rows = rows_of(config, prompts, heard, kept)
    assert [row["spoken"] for row in rows[:4]] == [1.0, 0.0, 1.0, 1.0] and rows[0]["sound"] == "sounds/000.wav" and len(rows) == 6 + len(CONCEPTS)


def test_an_audio_clip_that_cannot_be_read_is_wrong_and_counted_and_the_others_are_heard(tmp_path):
    """A clip whose values are not finite, a file that is cut short, one without samples, and one that is none; beside a sound one."""
    toy_whisper(tmp_path)
    run_step(tmp_path, "judge", RUN, WeightsConfig(kind="pretrained", arch="whisper-tiny.en"), {"assets": "assets"})
    nothing = wav_bytes(Medium("audio", np.array([0.0, np.nan, 0.5], np.float32), 16000))
    assert nothing == wav_bytes(None) == b"" and wav_bytes(Medium("audio", np.zeros(9, np.float32), 16000))[:4] == b"RIFF"
    files = [wav(0), nothing, wav(1)[:2000], wav(2, 0.0), b"not an audio clip", wav(3)]
    prompts = [Prompt(condition=JUDGED[0], text=f"say {n}", concept=n) for n in range(len(files))]
    audio = {(JUDGED[0], n): data for n, data in enumerate(files)}
    inputs = {"speech_judge": Artifact(name="judge", path=tmp_path / "judge", fingerprint="f", digest="d", result={})}
    places = {"output": tmp_path / "out", "work": tmp_path / "w", "stores": tmp_path}
    ctx = StepContext(name="eval_speaking", config=replace(CONFIG, heard_s=2.0, batch=4), inputs=inputs, sources={}, resources=Resources(), **places)
    heard = _heard(ctx, audio)
    assert set(heard) == {(JUDGED[0], 0), (JUDGED[0], 5)}
    judge = SpeechJudge(tmp_path / "judge", 2.0)
    assert list(heard.values()) == judge.hear([wav(0)]) + judge.hear([wav(3)])
    assert unreadable((name for name, _ in audio), (name for name, _ in heard)) == {JUDGED[0]: 4}
    assert not set(_kept(ctx, audio)) & {(JUDGED[0], 1)}  # there is no file to keep
    rows = [row for row in rows_of(CONFIG, prompts, heard, {}) if row["made_as"] == JUDGED[0]]
    assert [row["spoken"] for row in rows] == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0] and not any(row["both"] for row in rows[1:5])


def replies():
    def some(condition, sounds, pictures):
        return [
            {"condition": condition, "prompt": f"{condition} {i}", "emitted": float(s), "pictures": p, "broken": ""}
            for i, (s, p) in enumerate(zip(sounds, pictures, strict=True))
        ]

    rows = some(JUDGED[0], [1, 1], [0, 0]) + some(JUDGED[1], [1], [0]) + some(AFTER, [0, 1], [1, 0])
    return rows + some("talk", [0, 0], [0, 0]) + some("picture_question", [0], [0]) + some("asked_for_a_picture", [0, 1], [1, 0])


def test_sounds_and_pictures_are_counted_where_each_was_asked_for():
    rows = block_metrics(CONFIG, replies(), JUDGED, QUIET, "audio") + image_blocks(CONFIG, replies())
    at = {(row["condition"], row["metric"], row["subgroup"]): row["value"] for row in rows}
    assert at["asked", "emits_block", "audio"] == pytest.approx(4 / 5) and at["not_asked", "emits_block", "audio"] == pytest.approx(1 / 5)
    assert at["all", "precision", "audio"] == pytest.approx(4 / 5) and at["asked", "emits_block", "image"] == pytest.approx(1 / 5)
    assert at["asked_for_a_picture", "emits_block", "image"] == at["asked_for_a_picture", "emits_block", "audio"] == pytest.approx(1 / 2)


def test_the_report_plays_what_was_kept_and_says_what_was_heard(tmp_path):
    artifact, samples = _artifact(tmp_path, "eval_speaking"), spoken_rows()
    metrics = block_metrics(CONFIG, replies(), JUDGED, QUIET, "audio") + image_blocks(CONFIG, replies()) + word_metrics(CONFIG, samples)
    samples[5] |= {"prompt": 'say <b>"it"</b>', "both": 0.0}
    write_table(artifact.path / "metrics.parquet", metrics, METRICS)
    write_table(artifact.path / "samples.parquet", samples, SPEAKING_SAMPLES)
    (artifact.path / "sounds").mkdir()
    (artifact.path / "sounds" / "005.wav").write_bytes(wav(0))
    artifact = replace(artifact, result={"unreadable": {JUDGED[0]: 3}, "left_out": ["1 of 9 <records>"]})
    html = speaking_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={}), artifact)
    assert f"counted as wrong: {JUDGED[0]} 3." in html and "Left out: 1 of 9 &lt;records&gt;" in html
    assert html.count("<audio controls") == 1 and "data:audio/wav;base64," in html and samples[5]["heard"] in html and "<td >wrong</td>" in html
    assert "say &lt;b&gt;" in html and "0.875" in html
