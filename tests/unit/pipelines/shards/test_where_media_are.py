"""Where the media of a list are: names by a template, whole soundtracks, folders that are linked into the list's, further roots. Nothing else is read."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_steps import png, run_step, wav

from infra.fingerprint import to_plain
from infra.step import AnyloomError
from pipelines.dag.build import build
from pipelines.recipes import get_recipe
from pipelines.shards.config import ShardsConfig
from pipelines.shards.errors import FetchError
from pipelines.shards.fetch import read_local

CASES = Path(__file__).resolve().parents[3] / "cases"


def built(tmp_path: Path, dataset: str, listed: Path, overrides: dict) -> list[tuple[str, str]]:
    """(status, reason or detail) of every row: the manifest and shards steps of tiny as `--list DATASET=FILE --set ...` plans them."""
    steps = build(get_recipe("tiny", {"max_lost": 1.0, **overrides}), {dataset: listed}, {})
    group = {"sounds_train": "audiocaps", "stamps_train": "cc3m"}[dataset]
    manifest, shards = steps[f"manifest_{group}"].config, steps[f"shards_{group}"].config
    manifest = replace(manifest, datasets=tuple(spec for spec in manifest.datasets if spec.name == dataset))
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    run_step(tmp_path, "m", "pipelines.shards.manifest:run", manifest, {}, {dataset: listed})
    run_step(tmp_path, "s", "pipelines.shards.plan:run", shards, {"manifest": "m"}, {dataset: listed})
    return [(line["status"], line["reason"]) for line in pq.read_table(tmp_path / "s" / "ledger.parquet").to_pylist()]


@pytest.mark.parametrize(
    ("template", "names", "found"),
    [
        ("{youtube_id}.wav", ("abc", "def", "ghi"), 3),
        ("media/{youtube_id}_{start_time}.wav", ("abc_30", "def_30", "ghi_0"), 3),
        ("{youtube_id}_{start_time}.wav", ("abc_30", "def"), 1),
    ],
)
def test_sounds_are_found_by_the_template_that_is_set(tmp_path, template, names, found):
    own = tmp_path / "own"
    (own / Path(template).parent).mkdir(parents=True)
    shutil.copy(CASES / "audiocaps_names" / "caps.csv", own)
    for seed, name in enumerate(names):
        (own / Path(template).parent / f"{name}.wav").write_bytes(wav(seed))
    key = "datasets.sounds_train.media_template"
    rows = built(tmp_path, "sounds_train", own / "caps.csv", {key: template})
    assert [status for status, _ in rows].count("written") == found and {reason for _, reason in rows} <= {"", "missing_file"}


def test_a_span_of_a_whole_soundtrack_is_taken(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "caps.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,abc,1,a tone\n")
    (own / "abc.wav").write_bytes(wav(1, seconds=3))
    overrides = {"datasets.sounds_train.media_template": "{youtube_id}.wav", "datasets.sounds_train.span_s": 1.5}
    assert built(tmp_path, "sounds_train", own / "caps.csv", overrides) == [("written", "")]
    (row,) = pq.read_table(tmp_path / "s" / "index.parquet").to_pylist()
    assert (row["start_s"], row["end_s"]) == (1.0, 2.5)


def test_without_the_options_the_message_says_how_they_are_typed(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(CASES / "audiocaps_names" / "caps.csv", own)
    with pytest.raises(AnyloomError, match=r"--set 'datasets\.sounds_train\.media_template=\.\.\.'.*--set 'datasets\.sounds_train\.media_roots="):
        built(tmp_path, "sounds_train", own / "caps.csv", {"max_lost": 0.5})


@pytest.fixture
def linked(tmp_path):
    """A list with media beside it, and in a folder that is linked into its own."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    (own / "pics").mkdir(parents=True)
    elsewhere.mkdir()
    (own / "pics" / "plain.png").write_bytes(png(1))
    (elsewhere / "1.png").write_bytes(png(2))
    (own / "linked").symlink_to("../elsewhere")
    shutil.copy(CASES / "linked_folder" / "cc.tsv", own)
    with (own / "cc.tsv").open("a") as file:
        file.write(f"absolute\t{elsewhere}/1.png\nby root\t1.png\nthe list root itself\t{own}/pics/plain.png\nout\t../elsewhere/1.png\nother\t/etc/passwd\n")
    return own / "cc.tsv"


@pytest.mark.parametrize("relative", [False, True])
def test_media_of_a_linked_folder_are_read_where_its_root_is_named(tmp_path, linked, relative):
    before = built(tmp_path, "stamps_train", linked, {})
    assert before == [("written", ""), ("failed", "bad_uri"), ("failed", "bad_uri"), ("failed", "missing_file"), *[("failed", "bad_uri")] * 3]
    root = "../elsewhere" if relative else str(tmp_path / "elsewhere")
    for value in (root, [root]):
        rows = built(tmp_path, "stamps_train", linked, {"datasets.stamps_train.media_roots": value})
        assert rows == [*[("written", "")] * 5, *[("failed", "bad_uri")] * 2]
    with pytest.raises(AnyloomError, match=r"--set datasets\.stamps_train\.media_roots: .*nowhere is no directory"):
        built(tmp_path, "stamps_train", linked, {"datasets.stamps_train.media_roots": "nowhere"})


def test_roots_of_one_dataset_do_not_open_them_to_another(tmp_path, linked):
    rows = built(tmp_path, "stamps_train", linked, {"datasets.stamps_heldout.media_roots": [str(tmp_path / "elsewhere")]})
    assert ("written", "") in rows and rows[1:3] == [("failed", "bad_uri")] * 2


def test_whatever_a_list_names_nothing_outside_the_roots_is_read(tmp_path):
    """Random trees with links in all directions: what is read lies below the list's folder or a named root, however it is spelled."""
    for seed in range(60):
        draws = random.Random(seed)
        top = tmp_path / str(seed)
        base, root, outside = top / "base", top / "root", top / "outside"
        for place in (base, root, outside):
            (place / "sub").mkdir(parents=True)
            (place / "sub" / "f").write_bytes(f"{place.name}".encode())
            (place / f"in_{place.name}").write_bytes(f"{place.name}".encode())
        for number in range(4):
            where, to = draws.choice([base, root]), draws.choice([base, root, outside, outside / "sub", outside / "in_outside"])
            target = to if draws.random() < 0.5 else Path(os.path.relpath(to, where))
            (where / f"l{number}").symlink_to(target)
        names = ["sub/f", "in_root", "in_base", "in_outside", *(f"l{n}{tail}" for n in range(4) for tail in ("", "/sub/f", "/in_outside", "/../in_outside"))]
        for name in (*names, "../outside/in_outside", f"{outside}/in_outside", f"{root}/in_root", f"{root}/../outside/in_outside", f"/{outside}/in_outside"):
            for roots in ((), (root,)):
                try:
                    data = read_local(name, base, 1000, roots)
                except FetchError as error:
                    assert error.reason in ("bad_uri", "missing_file")
                    continue
                assert data == b"base" or (roots and data == b"root"), (seed, name, roots)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ({"datasets.sounds.media_template": "x"}, r"--set datasets\.sounds\.media_template: no such key; close ones: datasets\.sounds_train\.media_template"),
        ({"datasets.sounds_train.template": "x"}, r"no such key; close ones: datasets\.sounds_train\.media_template"),
        ({"datasets.sounds_train": "x"}, "no such key"),
        ({"datasets.sounds_train.media_template": 3}, "expected str"),
        ({"datasets.sounds_train.span_s": "long"}, "expected float"),
        ({"datasets.sounds_train.span_s": -1}, "expected seconds >= 0"),
        ({"datasets.sounds_train.media_roots": [1]}, "expected directories"),
        ({"datasets.sounds_train.media_roots": 1}, "expected directories"),
    ],
)
def test_wrong_options_are_refused_by_name(override, problem):
    with pytest.raises(AnyloomError, match=problem):
        get_recipe("tiny", override)


def test_options_that_are_not_set_change_no_identity_and_those_that_are_reach_their_steps_only():
    before, after = build(get_recipe("tiny")), build(get_recipe("tiny", {"datasets.sounds_train.media_roots": "/x", "datasets.sounds_train.span_s": 2}))
    changed = {name for name in before if to_plain(before[name].config) != to_plain(after[name].config)}
    assert changed == {"manifest_audiocaps", "shards_audiocaps"}
    assert "media_roots" not in to_plain(ShardsConfig())
