"""A recipe on the user's own files, from the command line: llava15_7b at toy size, from a list and two directories to an export that answers, and its scores
on official data to history and report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from official_data import core

from infra.artifact import find
from mmcore.runtime.seeding import seeded
from pipelines.toys.joint import tiny_clip
from pipelines.toys.parts import tiny_llama

TOY = {
    "image.arch": "clip:toy",
    "image.width": 32,
    "image.grid": 4,
    "image.image_size": 32,
    "image.compute": "float32",
    "lm_dtype": "float32",
    "chat": "chatml",
    "lora.rank": 4,
    "weights.lm": "mine",
    **{f"{stage}.{name}": value for stage in ("stage1", "stage3") for name, value in (("steps", 3), ("batch", 2), ("warmup_steps", 1))},
}


def given(folder):
    """Options for a toy CLIP, a toy Llama, and two lists about six pictures."""
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with seeded(1):
        config = transformers.CLIPVisionConfig(**body, image_size=32, patch_size=8, projection_dim=16)
        transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    tiny_clip(0)[2].save_pretrained(folder / "clip")
    for part in tiny_llama(0):
        part.save_pretrained(folder / "lm")
    records = []
    for number in range(6):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "noise"}]
        more = [{"from": "human", "value": "sure?"}, {"from": "gpt", "value": f"yes {number}"}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns + (more if number % 2 else [])})
    records.append({"id": "text", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]})
    (folder / "lcs.json").write_text(json.dumps(records[:6]))
    (folder / "mix.json").write_text(json.dumps(records))
    pairs = (("--weights", "lm", "lm"), ("--weights", "image", "clip"), ("--list", "lcs_558k", "lcs.json"), ("--list", "mix_665k", "mix.json"))
    return [part for option, name, file in pairs for part in (option, f"{name}={folder / file}")]


@pytest.mark.slow
def test_llava_at_toy_size_from_own_files_to_an_answer(here, tmp_path):
    (tmp_path / "given").mkdir()
    files = given(tmp_path / "given")
    common = ["--recipe", "llava15_7b", "--root", tmp_path / "root", *files, *(part for key, value in TOY.items() for part in ("--set", f"{key}={value}"))]
    done = here("run", *common, "--no-ray", "--no-prefect").stdout
    assert "9 of 9 steps executed" in done
    _, lm = find(tmp_path / "root", "weights_lm")
    assert lm.result["arch"] == "mine" and lm.result["licence"] == "unknown: see publisher"
    export, record = find(tmp_path / "root", "export")
    assert record.result["stages"] == ["stage1", "stage3"] and set(json.loads((export / "anyloom.json").read_text())["licences"]) == {"lm", "image"}
    assert "0 of 9 steps executed" in here("run", *common, "--no-ray", "--no-prefect").stdout
    assert here("generate", "--model", tmp_path / "root", "--image", tmp_path / "given" / "0.png", "--max-new-tokens", "4", "what is it?").stdout
    here("eval", "prepare", "core", "--data", tmp_path / "data", "--from", core(tmp_path / "hub"))
    suite = ["--list", f"core={tmp_path / 'data' / 'core.json'}", "--set", 'suite.conditions=["plain_prompt"]', "--set", "suite.bootstrap_draws=50"]
    told = here("run", *common, *suite, "--no-ray", "--no-prefect").stdout
    assert "5 of 14 steps executed" in told
    scores = here("sql", "select distinct task from leaderboard order by task", "--root", tmp_path / "root", "--format", "csv").stdout.split()
    assert scores == ["task", "mmbench_en_dev_static", "textvqa_val", "vqav2_val"]
    page = (find(tmp_path / "root", "report")[0] / "report.html").read_text()
    assert "Suites of benchmarks" in page and "mmbench_en_dev_static: official data" in page and "Training losses" in page
