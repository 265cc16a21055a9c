"""Bit rot: one flipped bit or a cut end in any kind of file is found by `artifacts verify`, is never trained on or scored, and goes by the command named."""

import json
import re
import shlex
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from evals.harness.features import KeptFeatures, exported_encoder
from infra.artifact import all_records, find
from mmcore.training.checkpoint import Checkpoint, save_checkpoint

pytestmark = pytest.mark.timeout(900)  # the first one also runs the whole tiny recipe
PLAIN = ("--recipe", "tiny", "--no-ray", "--no-prefect")
HARMS = ("flip", "cut")
NAMED = r"; (run `anyloom run \w+ --recipe tiny .*--force|run the same command|it is not used)"
"""What to do, in a line of `artifacts verify`."""


def pinned(root, step, name):
    """A file of the first store entry that the newest artifact of a step pins."""
    path, _ = find(root, step)
    return root / "stores" / json.loads((path / "generation.json").read_text())["entries"][0]["path"] / name


def of_artifact(step, name):
    return lambda root: next(iter(sorted(find(root, step)[0].glob(name))))


def of_entry(step, name):
    return lambda root: pinned(root, step, name)


def checkpoint(root):
    """The newest of two checkpoints of a step that was killed; made when there is none."""
    folder = root / "work" / "stage1" / ("0" * 12) / "checkpoints"
    for step in (2, 4):
        if not (folder / f"step-{step:09d}").exists():
            tensors = {"weight": torch.arange(64.0)}
            save_checkpoint(folder, Checkpoint(step=step, tensors=tensors, optimizer={"moment": torch.ones(64)}, cursor={"images": step}, log=[[0.0, 1.0]]))
    return folder / "step-000000004" / "optimizer.safetensors"


def kept_features(root):
    """Features that an evaluation has encoded itself; made when there are none."""
    kept = KeptFeatures(root / "stores", *exported_encoder(find(root, "export")[0]))
    if not kept.directory.exists():
        kept.add("a" * 64, np.ones((4, 8), np.float16))
        kept.flush()
    return next(iter(sorted(kept.directory.glob("*.safetensors"))))


KINDS = {
    "shard tar": of_entry("shards_cc3m", "shard.tar"),
    "shard index": of_entry("shards_cc3m", "index.parquet"),
    "shard ledger": of_entry("shards_cc3m", "ledger.parquet"),
    "shard record": of_entry("shards_cc3m", "record.json"),
    "manifest": of_artifact("manifest_cc3m", "manifest.parquet"),
    "index of a generation": of_artifact("shards_cc3m", "index.parquet"),
    "generation": of_artifact("embed_image", "generation.json"),
    "artifact record": of_artifact("stage1", "artifact.json"),
    "features": of_entry("embed_image", "features.npy"),
    "feature index": of_entry("embed_image", "rows.parquet"),
    "feature record": of_entry("embed_image", "record.json"),
    "rows of an artifact": of_artifact("embed_image", "rows.parquet"),
    "targets": of_entry("targets", "features.npy"),
    "weights": of_artifact("weights_lm", "lm/*.safetensors"),
    "states": of_artifact("states", "part-*.safetensors"),
    "stage tensors": of_artifact("stage1", "tensors.safetensors"),
    "adapters": of_artifact("stage3", "lora/*.safetensors"),
    "losses": of_artifact("stage1", "losses.parquet"),
    "export": of_artifact("export_early", "tensors.safetensors"),
    "samples": of_artifact("eval_vqa", "samples.parquet"),
    "checkpoint": checkpoint,
    "features of an evaluation": kept_features,
}
READ = {
    "shard tar": ("embed_image", "image.image_size=32"),
    "shard index": ("shards_cc3m", ""),
    "shard ledger": ("shards_cc3m", ""),
    "shard record": ("embed_image", "image.image_size=32"),
    "manifest": ("shards_cc3m", ""),
    "index of a generation": ("embed_image", "image.image_size=32"),
    "generation": ("stage1", "stage1.seed=5"),
    "artifact record": ("stage2", "stage2.seed=5"),
    "features": ("stage1", "stage1.seed=5"),
    "feature index": ("embed_image", ""),
    "feature record": ("stage1", "stage1.seed=5"),
    "rows of an artifact": ("stage1", "stage1.seed=5"),
    "targets": ("stage2", "stage2.seed=5"),
    "weights": ("stage1", "stage1.seed=5"),
    "states": ("stage2", "stage2.seed=5"),
    "stage tensors": ("stage3", "stage3.seed=5"),
    "adapters": ("export", ""),
    "losses": ("stage2", "stage2.seed=5"),
    "export": ("eval_vqa", ""),
    "samples": ("history", ""),
}
"""Kind -> (step that reads it, setting that makes it run again; without one its artifact is removed)."""
SAMPLE = (("shard tar", "flip"), ("features", "flip"), ("states", "cut"), ("export", "flip"))
"""What `make test-slow` takes of them; `make test-long` takes the others."""


def directory_of(path, root):
    """The artifact, entry or checkpoint that a file belongs to."""
    parts = path.relative_to(root).parts
    return root.joinpath(*parts[:3]) if parts[0] == "artifacts" else path.parent


def in_a_medium(tar):
    """A place in a tar that is handed out; texts for people and the headers are not."""
    first = pq.read_table(tar.with_name("index.parquet"), columns=["media_offset", "media_bytes"]).to_pylist()[0]
    return first["media_offset"] + first["media_bytes"] // 2


def harm(path, how):
    """Damage a file that others may share; returns its bytes as they were."""
    whole = path.read_bytes()
    place = in_a_medium(path) if path.name == "shard.tar" else len(whole) * 3 // 5
    data = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] if how == "flip" else whole[:place]
    path.unlink()
    path.write_bytes(data)
    return whole


def test_verify_finds_every_kind_of_rot(copy, here):
    checkpoint(copy)
    assert "0 damaged" in here("artifacts", "verify", "--root", copy).stdout
    for kind, place in KINDS.items():
        for how in HARMS:
            path = place(copy)
            whole = harm(path, how)
            done = here("artifacts", "verify", "--root", copy, expect=1)
            (line,) = [line for line in done.stdout.splitlines() if line.startswith("DAMAGED")]
            assert str(directory_of(path, copy)) in line and re.search(NAMED, line), (
                kind,
                how,
            )
            assert "1 damaged" in done.stdout, (kind, how)
            path.write_bytes(whole)
    assert "0 damaged" in here("artifacts", "verify", "--root", copy).stdout


def test_one_damaged_record_stops_neither_plan_nor_list_nor_what_does_not_need_it(copy, here):
    path, _ = find(copy, "stage2")
    harm(path / "artifact.json", "cut")
    plan = here("plan", "--recipe", "tiny", "--root", copy).stdout
    assert re.search(r"│ stage2 +│ damaged +│", plan) and re.search(r"│ stage1 +│ done", plan) and re.search(r"│ export +│ waiting", plan)
    listed = here("artifacts", "--root", copy).stdout
    assert "36 artifacts" in listed and f"DAMAGED  {path / 'artifact.json'} is damaged" in listed and "--force stage2" in listed
    here("run", "stage1", *PLAIN, "--root", copy)
    done = here("run", *PLAIN, "--root", copy, expect=1)
    assert "--force stage2" in done.stderr and str(path) in done.stderr and len(done.stderr.strip().splitlines()) == 1
    here("run", *PLAIN, "--root", copy, "--force", "stage2")
    assert re.search(r"\b0 of 37 steps executed", here("run", *PLAIN, "--root", copy).stdout)


@pytest.mark.parametrize(
    ("kind", "how"), [pytest.param(kind, how, marks=pytest.mark.slow if (kind, how) in SAMPLE else pytest.mark.long) for kind in READ for how in HARMS]
)
def test_rot_is_never_used_and_the_command_that_is_named_mends_it(copy, here, kind, how):
    reader, setting = READ[kind]
    before = {record.name: record.digest for _, record in all_records(copy)}
    path = KINDS[kind](copy)
    harm(path, how)
    if not setting:
        shutil.rmtree(find(copy, reader)[0])
    known = set((copy / "artifacts" / reader).glob("*"))
    done = here("run", reader, *PLAIN, *(["--set", setting] if setting else []), "--root", copy, expect=1)
    assert str(directory_of(path, copy)) in done.stderr and "--force" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert {one for one in (copy / "artifacts" / reader).glob("*") if not one.name.startswith(".")} == known
    (line,) = [line for line in here("artifacts", "verify", "--root", copy, expect=1).stdout.splitlines() if line.startswith("DAMAGED")]
    (command,) = re.findall(r"`anyloom (.*)`", line)
    here(*shlex.split(command), *(["--yes"] if command.startswith("artifacts gc") else ["--no-ray", "--no-prefect"]))
    here("run", reader, *PLAIN, *(["--set", setting] if setting else []), "--root", copy)
    assert "0 damaged" in here("artifacts", "verify", "--root", copy).stdout
    after = {record.name: record.digest for _, record in all_records(copy)}
    assert {name: after[name] for name in before if name not in (reader, "report", "history")} == {
        name: digest for name, digest in before.items() if name not in (reader, "report", "history")
    }
