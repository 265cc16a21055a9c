"""The encoder of NExT-GPT at toy size through shards, store and stage 1, from the command line."""

import json
import re

from infra.artifact import all_records, find


def test_imagebind_goes_from_shards_to_stage_1(cli, tmp_path):
    output = cli("run", "--recipe", "tiny_nextgpt", "--root", tmp_path, "--no-ray", "--no-prefect", "stage1").stdout
    assert "tiny_nextgpt" not in output or "Traceback" not in output
    names = {record.name for _, record in all_records(tmp_path)}
    assert {"embed_image", "embed_video", "embed_audio", "stage1"} <= names and "weights_video" not in names
    for modality in ("image", "video", "audio"):
        path, record = find(tmp_path, f"embed_{modality}")
        space = json.loads((path / "generation.json").read_text())["space"]["spec"]
        assert space["kind"] == f"imagebind_{modality}" and record.result["tokens"] == record.result["media"] > 0
    stage, _ = find(tmp_path, "stage1")
    assert (stage / "tensors.safetensors").stat().st_size > 0
    again = cli("run", "--recipe", "tiny_nextgpt", "--root", tmp_path, "--no-ray", "--no-prefect", "stage1").stdout
    assert re.search(r"\b0 of \d+ steps executed", again)


def test_latents_of_the_picture_decoder_are_kept_in_the_same_store(cli, tmp_path):
    cli("run", "--recipe", "tiny_nextgpt", "--root", tmp_path, "--no-ray", "--no-prefect", "embed_latents")
    _, record = find(tmp_path, "embed_latents")
    assert record.result["media"] > 0 and record.result["tokens"] == 16 * record.result["media"] and record.result["width"] == 4
    assert cli("embed", "verify", "embed_latents", "--root", tmp_path, "--sample", "4").stdout.count("ok") == 1
    done = cli("plan", "--recipe", "tiny_nextgpt", "--root", tmp_path, "--set", "weights.kind=pretrained", expect=1)
    assert "latents of tiny-vae: give the autoencoder's directory with --weights latents=DIR" in done.stderr


def test_a_model_that_takes_no_file_is_named(cli, tmp_path):
    done = cli("plan", "--recipe", "tiny_nextgpt", "--root", tmp_path, "--weights", "clip=x.pth", expect=1)
    assert "--weights clip: no such model; files are taken for: imagebind, image, audio, text" in done.stderr
