"""The embedding store from the command line: build, plan's reasons, verify, stats, gc."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from infra.artifact import find
from infra.garbage import note_entries

PLAIN = ("--no-ray", "--no-prefect")


@pytest.fixture(scope="module")
def built(here, tmp_path_factory):
    """A root with the tiny recipe's embeddings."""
    root = tmp_path_factory.mktemp("store") / "runs"
    here("embed", "build", "--recipe", "tiny", "--root", root, *PLAIN)
    return root


@pytest.fixture
def root(built, tmp_path):
    """A copy of its own (hard links: what is committed never changes)."""
    shutil.copytree(built, tmp_path / "runs", copy_function=os.link, ignore=shutil.ignore_patterns("locks"))
    return tmp_path / "runs"


def encoded(root, name):
    path, _ = find(root, name)
    return json.loads((path / "info" / "timing.json").read_text())["encoded"]


def first_part(root, name):
    path, _ = find(root, name)
    return root / "stores" / json.loads((path / "generation.json").read_text())["entries"][0]["path"]


def test_the_second_build_does_nothing_and_a_forced_one_encodes_nothing(root, here):
    assert re.search(r"\b0 of \d+ steps executed", here("embed", "build", "--recipe", "tiny", "--root", root, *PLAIN).stdout)
    here("embed", "build", "--recipe", "tiny", "--root", root, *PLAIN, "--force", "embed_image", "--force", "targets")
    assert encoded(root, "embed_image") > 0  # same bytes: the artifact that was there stays, with its own timing
    stats = json.loads(here("embed", "stats", "--json", "--root", root).stdout)
    assert len(stats) == 4 and not any(line["unpinned_parts"] for line in stats)


@pytest.mark.parametrize(
    ("change", "reason", "encodes"),
    [
        pytest.param("image.dtype=float32", r"config\.spec\.dtype: \"?float16\"? -> \"?float32", True, marks=pytest.mark.slow),
        ("image.image_size=32", r"config\.spec\.image_size: 64 -> 32", True),
        pytest.param("image.revision=3", r"config\.spec\.revision: 2 -> 3", True, marks=pytest.mark.slow),
        ("image.part_rows=7", r"config\.spec\.part_rows: 16 -> 7", False),
    ],
)
def test_plan_names_the_field_and_only_what_changes_features_is_encoded(root, here, change, reason, encodes):
    plan = here("plan", "--recipe", "tiny", "--root", root, "--set", change).stdout
    line = next(line for line in plan.splitlines() if re.search(r"│ embed_image +│", line))
    assert "stale" in line and re.search(reason, line)
    assert all("done" in line for line in plan.splitlines() if re.search(r"│ (embed_audio|targets|shards_\w+) +│", line))
    here("run", "embed_image", "--recipe", "tiny", "--root", root, "--set", change, *PLAIN)
    assert (encoded(root, "embed_image") > 0) == encodes


@pytest.mark.slow
def test_new_weights_are_named_and_encoded_again(root, here):
    here("run", "weights_image", "--recipe", "tiny", "--root", root, "--set", "weights.image=test_vit", *PLAIN)
    plan = here("plan", "--recipe", "tiny", "--root", root, "--set", "weights.image=test_vit").stdout
    assert re.search(r"│ embed_image +│ stale +│ inputs\.weights: ", plan)


def test_verify_passes_and_finds_changed_features(root, here):
    output = here("embed", "verify", "--root", root, "--sample", "12").stdout
    assert output.count("ok") == 4 and "DIFFERS" not in output
    part = first_part(root, "embed_image")
    features = np.load(part / "features.npy")
    features[:] = features[::-1]
    (part / "features.npy").unlink()  # the file is a hard link
    np.save(part / "features.npy", features)
    done = here("embed", "verify", "embed_image", "--root", root, "--sample", "999", expect=1)
    assert "DIFFERS  embed_image/" in done.stdout and f"DAMAGED  embed_image/{find(root, 'embed_image')[0].name}: part {part.name}" in done.stdout
    (advised,) = re.findall(r"run `anyloom (.*?)`", done.stdout)
    here(*advised.split(), *PLAIN)
    assert "ok" in here("embed", "verify", "embed_image", "--root", root, "--sample", "999").stdout


def test_gc_removes_what_nothing_pins_after_saying_what(root, here):
    assert "nothing to remove" in here("embed", "gc", "--root", root, "--yes").stdout
    here("run", "embed_image", "--recipe", "tiny", "--root", root, "--set", "image.dtype=int8", *PLAIN)
    (int8,) = [path.parent for path in (root / "artifacts" / "embed_image").glob("*/generation.json") if '"int8"' in path.read_text()]
    shutil.rmtree(int8)
    stats = json.loads(here("embed", "stats", "--json", "--root", root).stdout)
    (unused,) = [line for line in stats if line["unpinned_parts"]]
    assert unused["stored_as"] == "int8" and 0 < unused["largest_error"] < 0.02 and not unused["used_by"]
    said = here("embed", "gc", "--root", root).stdout
    assert f"stores/embeddings/{unused['space']}/parts/" in said and "add --yes" in said
    note_entries(root / "work" / "embed_image" / ("0" * 12), root / "stores", [])
    assert "removed" in here("embed", "gc", "--root", root, "--yes").stdout
    after = json.loads(here("embed", "stats", "--json", "--root", root).stdout)
    assert sum(line["parts"] for line in after) == sum(line["parts"] for line in stats) - unused["parts"]
    removed = json.loads(here("embed", "gc", "--root", root, "--json").stdout)
    assert removed == {"root": str(root), "removable": [], "removed_bytes": 0}
    checked = json.loads(here("embed", "verify", "--root", root, "--sample", "4", "--json").stdout)
    assert checked and all(one["ok"] and one["largest"] <= one["tolerance"] and not one["damaged"] for one in checked)


def test_parts_of_an_interrupted_build_are_kept(root, here):
    path, _ = find(root, "embed_audio")
    generation = json.loads((path / "generation.json").read_text())
    parts = [root / "stores" / entry["path"] for entry in generation["entries"]]
    shutil.rmtree(path)
    note_entries(root / "work" / "embed_audio" / ("1" * 12), root / "stores", parts)
    assert f"kept: {len(parts)} parts of interrupted builds" in here("embed", "gc", "--root", root, "--yes").stdout and parts[0].exists()
    here("embed", "gc", "--root", root, "--yes", "--unfinished")
    assert not parts[0].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify",), "no embeddings below"),
        (("verify", "stage1"), "no artifact called stage1"),
        (("verify", "--sample", "0"), "--sample 0: at least 1"),
    ],
)
def test_mistakes_are_one_line(cli, tmp_path, arguments, message):
    done = cli("embed", *arguments, "--root", tmp_path, expect=1)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("harm", ["{", '{"spec": {}}'])
def test_a_damaged_description_of_a_space_names_the_step_whose_force_mends_it(root, here, harm):
    described = first_part(root, "embed_image").parent.parent / "space.json"
    described.unlink()  # the file is a hard link
    described.write_text(harm)
    said = here("embed", "stats", "--root", root, expect=1).stderr
    (step,) = re.findall(r"--force (\w+)", said)
    here("run", step, "--recipe", "tiny", "--root", root, "--force", step, *PLAIN)
    assert here("embed", "stats", "--root", root).stdout
