"""The sound of clips: encoded like the sound alone, kept by the clip's key; clips without one have no row and are counted."""

from __future__ import annotations

import io
import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_steps import mp4, row, run_step, tone, tree, write_manifest
from PIL import Image
from test_embed import whisper_dir

import pipelines.embed.tracks
from mmcore.encoder_config import WhisperAudio
from mmcore.encoders import load_encoder
from mmcore.media.decode import decode_audio
from mmcore.stores.embeddings import EmbeddingSet
from pipelines.demo.clips import encode_mp4
from pipelines.embed.config import EmbedConfig
from pipelines.shards.config import ShardsConfig

SPEC = WhisperAudio(arch="whisper", width=16, tokens=4, max_seconds=2.0, batch=1, part_rows=2)
SHOWN = [Image.new("RGB", (32, 32), (10 * n, 0, 0)) for n in range(18)]


def broken_track(data: bytes) -> bytes:
    """The clip with its sound's bytes, which lie behind the pictures', overwritten; the pictures still decode."""
    import av

    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.size]
        places = [(packet.pos, packet.size) for packet in packets]
    damaged = bytearray(data)
    for start, size in places:
        damaged[start : start + size] = b"\xff" * size
    return bytes(damaged)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Shards of six clips: with a sound, without, a span of the first, the first again, a damaged track, a span after the sound has ended."""
    whisper_dir(tmp_path / "weights")
    (tmp_path / "lists").mkdir()
    media = {
        "tone.mp4": mp4(SHOWN, sound=tone(1.5)),
        "silent.mp4": mp4(SHOWN),
        "broken.mp4": broken_track(mp4(SHOWN, sound=tone(1.5, 300.0))),
        "short.mp4": mp4(SHOWN, sound=tone(0.3)),
    }
    for name, data in media.items():
        (tmp_path / "lists" / name).write_bytes(data)
    rows = [row(number, name, modality="video") for number, name in enumerate(("tone.mp4", "silent.mp4"))]
    rows += [row(2, "tone.mp4", modality="video", start_s=0.5, end_s=1.25), row(3, "tone.mp4", modality="video"), row(4, "broken.mp4", modality="video")]
    rows += [row(5, "short.mp4", modality="video", start_s=1.0)]
    write_manifest(tmp_path, rows)
    result = run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    assert result["written"] == 6
    return tmp_path


def embed(root: Path, name: str = "tracks", **resources) -> dict:
    return run_step(root, name, "pipelines.embed.tracks:run", EmbedConfig(spec=SPEC), {"weights": "weights", "shards_webvid": "shards"}, **resources)


def test_sounds_are_kept_by_the_clips_key_and_silent_clips_have_none(root):
    result = embed(root)
    assert result == {
        "samples": 3,
        "media": 2,
        "tokens": 8,
        "parts": 2,
        "width": 16,
        "clips": 6,
        "without_track": 1,
        "undecodable_track": 2,
    }
    stored = EmbeddingSet(root / "tracks", root / "stores")
    assert stored.modality == "audio" and stored.keys() == ["pets-000000", "pets-000002", "pets-000003"] and "pets-000001" not in stored
    data = (root / "lists" / "tone.mp4").read_bytes()
    encoder = load_encoder(SPEC, root / "weights")
    assert np.array_equal(stored.get("pets-000000"), encoder.encode([data])[0])
    assert np.array_equal(stored.get("pets-000003"), stored.get("pets-000000"))
    assert np.array_equal(stored.get("pets-000002"), encoder.forward([encoder.prepare(data, 0.5, 1.25)])[0])
    left_out = pq.read_table(root / "tracks" / "left_out.parquet").to_pylist()
    assert [(line["key"], line["reason"]) for line in left_out] == [("pets-000001", "no_track"), ("pets-000004", "decode"), ("pets-000005", "decode")]


def test_the_sound_of_a_clip_gives_the_features_of_the_same_sound_alone(root):
    samples = (tone(1.3)[0] * 32767).astype("<i2")
    alone = io.BytesIO()
    with wave.open(alone, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(samples.tobytes())
    clip = encode_mp4(SHOWN, 12, samples)  # its track is lossless
    assert np.array_equal(decode_audio(clip, 16000, 2.0), decode_audio(alone.getvalue(), 16000, 2.0))
    of_clip, of_sound = load_encoder(SPEC, root / "weights").encode([clip, alone.getvalue()])
    assert np.array_equal(of_clip, of_sound)


def test_a_killed_run_does_not_listen_again(root, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def kill(*_):
            raise KeyboardInterrupt

        patch.setattr(pipelines.embed.tracks, "embed_items", kill)
        embed(root)
    shutil.rmtree(root / "tracks")
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.embed.tracks, "decode_audio", lambda *_: pytest.fail("a clip was decoded again"))
        assert embed(root)["samples"] == 3
    assert embed(root, "calm")["samples"] == 3
    assert tree(root, "tracks")["tracks"] == tree(root, "calm")["calm"]


def test_a_sound_file_with_the_same_bytes_shares_the_stored_rows(root):
    """One space: an embed step of sounds that meets the same file encodes nothing."""
    embed(root)
    write_manifest(root, [row(0, "tone.mp4", modality="audio")], "manifest_audio")
    run_step(root, "shards_audio", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest_audio", "lists": "lists"})
    run_step(root, "sounds", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), {"weights": "weights", "shards_audiocaps": "shards_audio"})
    assert json.loads((root / "sounds" / "info" / "timing.json").read_text())["encoded"] == 0
    of_clip, of_file = (EmbeddingSet(root / name, root / "stores") for name in ("tracks", "sounds"))
    assert np.array_equal(of_clip.get("pets-000000"), of_file.get("pets-000000"))


def test_bytes_do_not_depend_on_threads(root, tmp_path):
    embed(root, "one")
    embed(root, "two", threads=2)
    assert tree(root, "one")["one"] == tree(root, "two")["two"]


def test_no_clip_with_a_sound_gives_an_empty_artifact(tmp_path):
    whisper_dir(tmp_path / "weights")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "silent.mp4").write_bytes(mp4(SHOWN))
    write_manifest(tmp_path, [row(0, "silent.mp4", modality="video")])
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    assert embed(tmp_path)["without_track"] == 1
    assert len(EmbeddingSet(tmp_path / "tracks", tmp_path / "stores")) == 0


def test_the_tiny_recipe_plans_and_runs_the_step(tmp_path):
    from flows.running.run import recipe_steps
    from infra.materialize import Place, materialize
    from infra.plan import topological

    assert "embed_video_audio" not in recipe_steps("tiny", {})
    step = recipe_steps("tiny", {"video_audio": True})["embed_video_audio"]
    artifacts = {}
    for needed in topological([step]):
        artifacts[needed.name] = materialize(needed, {name: artifacts[source.name] for name, source in needed.inputs.items()}, Place(root=tmp_path)).artifact
    found = artifacts["embed_video_audio"]
    assert found.result["clips"] == 16 and found.result["without_track"] == 8 and found.result["samples"] == 8 and found.result["undecodable_track"] == 0
    stored = EmbeddingSet(found.path, tmp_path / "stores")
    assert len(stored) == 8 and stored.get("clips_train-000000").shape == (4, 32)
