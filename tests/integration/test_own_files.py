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


MINE = """
from dataclasses import replace

from pipelines.recipes import get_recipe
from pipelines.recipes.recipe import Dataset, Recipe, change_stage

DATASETS = (
    Dataset(name="photos", format="cc3m", list="lists/photos.tsv", media_roots=("/", ), heldout=0.25, licence="mine"),
    Dataset(name="chats", format="instruct", list="lists/chats.json", licence="mine"),
)


def mine() -> Recipe:
    recipe = get_recipe("tiny")
    for stage in ("stage1", "stage3"):
        recipe = change_stage(recipe, stage, mixture=())
    stages = (recipe.entries["stage1"], recipe.entries["stage3"])
    return replace(recipe, name="mine", lists="own", datasets=DATASETS, stages=stages, decoders=(), image_decoder=None, generation=False)
"""


def own_lists(folder, photos):
    """photos.tsv about pictures that lie elsewhere, and chats.json about some of them; the recipe beside them."""
    (folder / "lists").mkdir(parents=True)
    photos.mkdir()
    for number in range(24):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    lines = [f"photo number {number}, take {take}\t{photos}/{number}.png\n" for take in range(2) for number in range(24)]
    (folder / "lists" / "photos.tsv").write_text("".join(lines))
    chats = [{"id": str(n), "conversations": [{"from": "human", "value": f"how are you, {n}?"}, {"from": "gpt", "value": f"fine, {n}"}]} for n in range(12)]
    (folder / "lists" / "chats.json").write_text(json.dumps(chats))
    (folder / "mine.py").write_text(MINE.replace('"/"', f'"{photos}"'))


@pytest.mark.slow
def test_a_recipe_file_on_own_lists_from_nothing_to_the_history(here, tmp_path):
    own_lists(tmp_path / "own", tmp_path / "photos")
    common = ["--recipe", tmp_path / "own" / "mine.py", "--root", tmp_path / "root", "--no-ray", "--no-prefect"]
    told = here("run", *common).stdout
    assert "steps executed" in told and "left out" not in told
    manifest = find(tmp_path / "root", "manifest_cc3m")[1].result["rows"]
    assert manifest["photos"] + manifest["photos_heldout"] == 48 and manifest["photos_heldout"] % 2 == 0 and 4 <= manifest["photos_heldout"] <= 24
    query = "select recipe, task, condition, subgroup from metric join run using (run_id) where metric = 'right_wins'"
    assert "mine,captions,right,image" in here("sql", query, "--root", tmp_path / "root", "--format", "csv").stdout
    export = find(tmp_path / "root", "export")[0]
    assert (export / "info" / "recipe.py").read_text() == (tmp_path / "own" / "mine.py").read_text()
    assert "0 of" in here("run", *common).stdout
    (tmp_path / "own" / "mine.py").write_text((tmp_path / "own" / "mine.py").read_text() + "# a remark\n")
    assert "1 of" in here("run", *common).stdout, "only the export, whose bytes are the same"
    assert "# a remark" in (find(tmp_path / "root", "export")[0] / "info" / "recipe.py").read_text()
    (tmp_path / "more.tsv").write_text(f"one more photo\t{tmp_path}/photos/3.png\n")
    more = ["--data", f"more=cc3m:{tmp_path / 'more.tsv'}", "--set", f"datasets.more.media_roots={tmp_path / 'photos'}"]
    told = here("plan", *common[:-2], *more).stdout
    assert "stale" in told and "waiting" in told
